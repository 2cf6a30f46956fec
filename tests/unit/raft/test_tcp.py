"""Peers over TCP on loopback: who is let in, and what becomes of messages and calls."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest
from quorate_core.errors import (
    InvariantViolation,
    NotFound,
    NotProposed,
    OutcomeUnknown,
    QuorateError,
    SettingsError,
    TooManyRequests,
)
from quorate_core.frames import FRAME_BYTES_MAX, FrameTooLarge, encode_frame
from quorate_core.serving import bound_address, open_listener
from quorate_core.tasks import TaskOwner
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import (
    AppendRequest,
    Entry,
    HeartbeatRequest,
    InstallSnapshot,
    Message,
    SnapshotMeta,
)
from quorate_raft.runtime import metrics
from quorate_raft.runtime.calls import CALL_BYTES_SERVED_MAX, CALLS_SERVED_MAX
from quorate_raft.runtime.handshake import NONCE_BYTES, DialerHandshake, Purpose
from quorate_raft.runtime.tcp import STRANGERS_MAX, TcpConfig, TcpNetwork
from quorate_raft.runtime.wire import seal
from structlog.testing import capture_logs
from support.raft_members import LOOPBACK, PATIENCE_S
from support.raft_peers import (
    Raw,
    Site,
    credentials,
    fake_peer,
    proven_connection,
    raw_connection,
    shake_hands,
    town,
    turn,
    until,
    watch_loop,
)

SOON_S = 0.2


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Site, Site]]:
    async with town("ab") as built:
        a, b = await built.start("a"), await built.start("b")
        await a.up("b")
        await b.up("a")
        yield a, b


async def test_messages_arrive_whole_and_in_order(pair: tuple[Site, Site]) -> None:
    a, b = pair
    sent: list[Message] = [
        AppendRequest(
            "a", "b", 3, 7, 2, tuple(Entry(8 + n, 3, data=b"x" * n, request_id=2**63 + n) for n in range(200)), 5
        ),
        HeartbeatRequest("a", "b", 3, 5, 2**60),
        AppendRequest("a", "b", 3, 8, 3, (Entry(9, 3, data=b"y" * 3_000_000),), 5),
        HeartbeatRequest("a", "b", 3, 9),
    ]
    for message in sent:
        a.network.send(message)
    assert [await b.receiver.next() for _ in sent] == sent


async def test_both_sides_know_who_is_connected(pair: tuple[Site, Site]) -> None:
    a, b = pair
    assert (a.network.connected(), b.network.connected()) == (["b"], ["a"])


async def test_calls_are_answered_each_by_its_own_answer(pair: tuple[Site, Site]) -> None:
    a, b = pair
    turn = {number: asyncio.Event() for number in range(20)}

    async def in_reverse(_method: str, payload: bytes) -> bytes:
        number = int(payload)
        if number < 19:
            await turn[number + 1].wait()
        turn[number].set()
        return b"%d" % (number * 2)

    b.receiver.handler = in_reverse
    answers = await asyncio.gather(*(a.network.call("b", "double", b"%d" % n, PATIENCE_S) for n in range(20)))
    assert answers == [b"%d" % (n * 2) for n in range(20)]


async def test_a_peers_error_is_raised_as_what_it_was(pair: tuple[Site, Site]) -> None:
    a, b = pair

    async def fail(_method: str, _payload: bytes) -> bytes:
        raise NotFound("no such lease", lease=5, odd={1, 2})

    b.receiver.handler = fail
    with pytest.raises(NotFound, match="no such lease") as raised:
        await a.network.call("b", "keepalive", b"", PATIENCE_S)
    assert raised.value.extensions["lease"] == 5


async def test_a_defect_of_a_handler_is_logged_there_and_hidden_here(pair: tuple[Site, Site]) -> None:
    a, b = pair

    async def break_down(_method: str, _payload: bytes) -> bytes:
        raise ZeroDivisionError("inside")

    b.receiver.handler = break_down
    with capture_logs() as logs, pytest.raises(QuorateError, match="failed; the member's log says how") as raised:
        await a.network.call("b", "divide", b"", PATIENCE_S)
    assert type(raised.value) is QuorateError
    assert "inside" not in raised.value.detail
    assert [entry["event"] for entry in logs] == ["call_failed"]


async def test_a_call_to_who_cannot_be_reached_was_surely_not_delivered() -> None:
    async with town("ab") as built:
        a = await built.start("a")
        for to in ("b", "nobody"):
            with pytest.raises(NotProposed, match=f"{to} cannot be reached"):
                await a.network.call(to, "any", b"", PATIENCE_S)
        a.network.send(HeartbeatRequest("a", "b", 1, 1))
        a.network.send(HeartbeatRequest("a", "nobody", 1, 1))


async def test_a_call_without_an_answer_in_time_has_an_unknown_outcome(pair: tuple[Site, Site]) -> None:
    a, b = pair
    done = asyncio.Event()

    async def late(_method: str, _payload: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            done.set()
        return b""

    b.receiver.handler = late
    with pytest.raises(OutcomeUnknown, match="did not answer slow within"):
        await a.network.call("b", "slow", b"", SOON_S)
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
    b.receiver.handler = None
    assert await a.network.call("b", "next", b"!", PATIENCE_S) == b"next of a: !"


async def test_a_caller_with_all_the_time_of_the_world_is_served(pair: tuple[Site, Site]) -> None:
    a, _ = pair
    assert await a.network.call("b", "next", b"!", 1e9) == b"next of a: !"


async def test_a_call_whose_link_breaks_has_an_unknown_outcome() -> None:
    async with town("ab") as built:
        a, b = await built.start("a"), await built.start("b")
        await a.up("b")
        called = asyncio.Event()

        async def never(_method: str, _payload: bytes) -> bytes:
            called.set()
            await asyncio.Event().wait()
            return b""

        b.receiver.handler = never
        call = asyncio.gather(a.network.call("b", "any", b"", PATIENCE_S), return_exceptions=True)
        async with asyncio.timeout(PATIENCE_S):
            await called.wait()
        await built.stop("b")
        (outcome,) = await call
        assert isinstance(outcome, OutcomeUnknown)
        assert "broke before it answered" in outcome.detail


async def test_calls_that_one_member_serves_at_once_are_bounded(pair: tuple[Site, Site]) -> None:
    a, b = pair
    release = asyncio.Event()

    async def wait(_method: str, _payload: bytes) -> bytes:
        await release.wait()
        return b"done"

    b.receiver.handler = wait

    async def attempt() -> object:
        try:
            return await a.network.call("b", "hold", b"", PATIENCE_S)
        except QuorateError as error:
            release.set()
            return error

    outcomes = await asyncio.gather(*(attempt() for _ in range(CALLS_SERVED_MAX + 1)))
    assert outcomes.count(b"done") == CALLS_SERVED_MAX
    assert isinstance(outcomes[-1], TooManyRequests)


async def test_the_payloads_of_calls_that_one_peer_has_served_at_once_are_bounded(pair: tuple[Site, Site]) -> None:
    a, b = pair
    release, called = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(_method: str, _payload: bytes) -> bytes:
        called.release()
        await release.wait()
        return b"done"

    b.receiver.handler = wait
    payload = b"x" * (CALL_BYTES_SERVED_MAX // 5 * 2)
    tasks = [a.tasks.start(a.network.call("b", "hold", payload, PATIENCE_S), "hold") for _ in range(2)]
    for _ in tasks:
        async with asyncio.timeout(PATIENCE_S):
            await called.acquire()
    with pytest.raises(TooManyRequests, match="2 calls of a are under way"):
        await a.network.call("b", "hold", payload, PATIENCE_S)
    release.set()
    assert await asyncio.gather(*tasks) == [b"done", b"done"]
    assert await a.network.call("b", "hold", payload, PATIENCE_S) == b"done"


async def test_a_link_comes_back_with_its_peer() -> None:
    async with town("ab") as built:
        a = await built.start("a")
        for boot in range(1, 4):
            b = await built.start("b")
            await a.up("b")
            a.network.send(HeartbeatRequest("a", "b", boot, 1))
            assert (await b.receiver.next()).term == boot
            gone = a.link_to("b")
            await built.stop("b")
            async with asyncio.timeout(PATIENCE_S):
                await gone.closed
            assert a.network.connected() == []


async def test_a_peer_that_connects_anew_replaces_its_old_connection(pair: tuple[Site, Site]) -> None:
    _, b = pair
    async with raw_connection(b.address) as raw:
        await shake_hands(raw, "a", "b")
        await raw.tell(b"m", msgspec.msgpack.encode(HeartbeatRequest("a", "b", 9, 1)))
        assert (await b.receiver.next()).term == 9
        assert b.network._peers["a"].incoming[Purpose.MESSAGES].is_ready


async def test_who_does_not_hold_the_secret_is_told_so_and_let_go() -> None:
    reason = "the cluster secret of a is not the one of b"
    async with town("ab") as built:
        b = await built.start("b")
        with capture_logs() as logs:
            async with raw_connection(b.address) as raw:
                with pytest.raises(QuorateError, match=reason):
                    await shake_hands(raw, "a", "b", "guessed")
                assert await raw.hear() == b""
        assert any(entry["event"] == "peer_refused" and reason in entry["reason"] for entry in logs)


async def test_a_member_of_another_cluster_is_refused_and_both_ends_say_so() -> None:
    async with town("ab") as built:
        with capture_logs() as logs:
            a = await built.start("a", cluster_id="another")
            await built.start("b")
            refused_by_b = "b refuses: 'a' is of cluster 'another'"
            async with asyncio.timeout(PATIENCE_S):
                await until(lambda: any(refused_by_b in str(entry.get("reason")) for entry in logs))
        reasons = " ".join(str(entry.get("reason")) for entry in logs)
        assert "'a' is of cluster 'another', b of 'test-cluster'" in reasons
        assert a.network.connected() == []


async def test_who_says_nothing_is_let_go_after_a_while() -> None:
    async with town("ab") as built:
        b = await built.start("b", handshake_timeout_s=SOON_S)
        async with raw_connection(b.address) as raw:
            assert await raw.hear() == b""


async def test_connections_that_are_not_proven_are_bounded_and_keep_no_member_out() -> None:
    """The oldest of them has to go; a member proves itself long before it is that."""
    async with town("ab") as built:
        b = await built.start("b", handshake_timeout_s=PATIENCE_S)
        async with contextlib.AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(raw_connection(b.address)) for _ in range(STRANGERS_MAX)]
            # An answer to the last one says that all are accepted.
            await raws[-1].say(DialerHandshake(credentials("a"), "b", b"n" * NONCE_BYTES).opening())
            assert await raws[-1].hear()
            assert sum(link.is_stranger for link in b.links) == STRANGERS_MAX
            a = await built.start("a")
            await a.up("b")
            assert await raws[0].hear() == b""
            assert sum(link.is_stranger for link in b.links) < STRANGERS_MAX


def sealed(kind: bytes, value: object) -> bytes:
    return seal(kind, msgspec.msgpack.encode(value), FRAME_BYTES_MAX)


HEARTBEAT = sealed(b"m", HeartbeatRequest("a", "b", 1, 1))


@pytest.mark.parametrize(
    "said",
    [
        (2**31).to_bytes(4, "big"),
        sealed(b"m", HeartbeatRequest("c", "b", 1, 1)),
        sealed(b"m", HeartbeatRequest("a", "c", 1, 1)),
        sealed(b"m", InstallSnapshot("a", "b", 1, SnapshotMeta(5, 1, Membership.of_voters("abc")))),
        seal(b"m", b"\xc1", FRAME_BYTES_MAX),
        seal(b"c", b"\xc1", FRAME_BYTES_MAX),
        sealed(b"c", [1, "any", b"", float("nan")]),
        sealed(b"c", [1, "any", b"", -1]),
        sealed(b"c", [1, "any", b"", 1e308]),
        sealed(b"a", [1, b""]),
        sealed(b"?", 1),
        encode_frame(b""),
        encode_frame(b"m" + msgspec.msgpack.encode(HeartbeatRequest("a", "b", 1, 1))),
        HEARTBEAT[:-1] + bytes([HEARTBEAT[-1] ^ 1]),
    ],
    ids=[
        "oversized", "another sender", "another receiver", "snapshot without a file", "bad message", "bad call",
        "timeout that is no number", "negative timeout", "endless timeout", "answer", "unknown", "empty",
        "without a checksum", "a bit flipped",
    ],
)  # fmt: skip
async def test_a_peer_that_breaks_the_rules_is_let_go_and_the_others_stay(said: bytes) -> None:
    async with town("abc") as built:
        b, c = await built.start("b"), await built.start("c")
        await c.up("b")
        link = c.link_to("b")
        caught = watch_loop()
        async with proven_connection(b, "a", "b") as raw:
            raw.writer.write(said)
            assert await raw.hear() == b""
        assert caught == []
        c.network.send(HeartbeatRequest("c", "b", 7, 1))
        assert (await b.receiver.next()).sender == "c"
        assert c.link_to("b") is link
        assert b.receiver.messages.empty()


async def test_a_stranger_cannot_make_a_member_hold_more_than_a_handshake() -> None:
    async with town("ab") as built:
        b = await built.start("b")
        async with raw_connection(b.address) as raw:
            raw.writer.write((100_000).to_bytes(4, "big") + b"x" * 1000)
            assert await raw.hear() == b""


@pytest.mark.parametrize("early", [b"\0\0\0\x09half", HEARTBEAT], ids=["half a frame", "a whole one"])
async def test_frames_before_the_end_of_the_handshake_are_refused(early: bytes) -> None:
    async with town("ab") as built:
        b = await built.start("b")
        async with raw_connection(b.address) as raw:
            handshake = DialerHandshake(credentials("a"), "b", b"n" * NONCE_BYTES)
            await raw.say(handshake.opening())
            proof = handshake.receive(await raw.hear())
            raw.writer.write(encode_frame(proof) + early)
            assert await raw.hear()
            assert await raw.hear() == b""
        assert b.receiver.messages.empty()


async def test_what_a_peer_does_not_read_is_bounded_and_then_dropped() -> None:
    async with town("ab") as built:
        end = asyncio.Event()

        async def read_nothing(raw: Raw) -> None:
            await end.wait()

        async with fake_peer(built, read_nothing):
            a = await built.start("a", queue_bytes_max=1_000_000)
            await a.up("b")
            dropped = metrics.MESSAGES_DROPPED.labels("a", "b")
            before = dropped._value.get()
            message = AppendRequest("a", "b", 1, 0, 0, (Entry(1, 1, data=b"x" * 100_000),), 0)
            for _ in range(500):
                a.network.send(message)
            assert dropped._value.get() - before > 300
            link = a.link_to("b")
            assert link._transport is not None
            assert link._transport.get_write_buffer_size() <= 1_000_000
            with pytest.raises(NotProposed, match="queue of a for b is full"):
                await a.network.call("b", "any", b"y" * 1_000_000, PATIENCE_S)
            end.set()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"m", b""),
        (b"a", b"\xc1"),
        (b"?", b""),
        (b"e", msgspec.msgpack.encode([1, {"detail": "d", "self": 1}])),
        (b"e", msgspec.msgpack.encode([1, {"detail": "x" * 100_000}])),
        (b"e", b"\x92\x01\x81\xa1a" + b"\x91" * 50_000),
    ],
    ids=["message", "bad answer", "unknown", "error that is none", "huge error", "nesting without end"],
)
async def test_a_callee_that_breaks_the_rules_is_let_go(kind: bytes, body: bytes) -> None:
    async with town("ab") as built:

        async def answer_badly(raw: Raw) -> None:
            await raw.hear()
            await raw.tell(kind, body)
            await raw.hear()

        async with fake_peer(built, answer_badly):
            a = await built.start("a")
            await a.up("b")
            caught = watch_loop()
            with pytest.raises(OutcomeUnknown, match="broke before it answered"):
                await a.network.call("b", "any", b"", PATIENCE_S)
            assert caught == []


async def test_answers_that_nobody_waits_for_are_ignored(pair: tuple[Site, Site]) -> None:
    async with town("ab") as built:

        async def answer_twice(raw: Raw) -> None:
            await raw.hear()
            for call_id in (99, 1, 1):
                await raw.tell(b"a", msgspec.msgpack.encode([call_id, b"answer"]))
            await raw.hear()

        async with fake_peer(built, answer_twice):
            a = await built.start("a")
            await a.up("b")
            assert await a.network.call("b", "any", b"", PATIENCE_S) == b"answer"


async def test_what_is_larger_than_a_frame_is_refused_where_it_is_sent() -> None:
    async with town("ab") as built:
        a, b = await built.start("a", frame_bytes_max=1000), await built.start("b", frame_bytes_max=1000)
        await a.up("b")
        with pytest.raises(FrameTooLarge):
            await a.network.call("b", "any", b"x" * 2000, PATIENCE_S)
        with capture_logs() as logs:
            a.network.send(AppendRequest("a", "b", 1, 0, 0, (Entry(1, 1, data=b"x" * 2000),), 0))
        assert [entry["event"] for entry in logs] == ["message_not_sent"]

        async def answer_too_much(_method: str, _payload: bytes) -> bytes:
            return b"y" * 2000

        b.receiver.handler = answer_too_much
        with pytest.raises(QuorateError, match="over the limit of 1000"):
            await a.network.call("b", "any", b"", PATIENCE_S)


async def test_a_broken_invariant_of_the_receiver_is_its_own_affair(pair: tuple[Site, Site]) -> None:
    a, b = pair

    async def violate(_method: str, _payload: bytes) -> bytes:
        raise InvariantViolation("two leaders")

    b.receiver.handler = violate
    with pytest.raises(InvariantViolation, match="two leaders"):
        await a.network.call("b", "any", b"", PATIENCE_S)


async def test_a_network_without_a_secret_is_refused() -> None:
    listener = open_listener(LOOPBACK, "a")
    try:
        with pytest.raises(SettingsError):
            TcpNetwork(TcpConfig("a", "cluster", "", {}), listener, TaskOwner("a"))
    finally:
        listener.close()


@pytest.mark.parametrize("asked", ["before", "after"])
async def test_closing_ends_also_what_never_became_a_connection(asked: str) -> None:
    """Who connects just then: the loop has asked for a protocol, and gives it no connection since the server closes."""
    async with town("a") as built:
        a = await built.start("a")
        if asked == "before":
            a.network._accept()
        async with asyncio.timeout(PATIENCE_S):
            await built.stop("a")
        if asked == "after":
            a.network._accept()
        await turn()
        assert a.links == []


async def test_closing_ends_everything_even_a_dial_under_way() -> None:
    """A peer whose address swallows connections: the backlog of a socket that nobody accepts from."""
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        async with town("a") as built:
            built.addresses["b"] = bound_address(silent)
            a = await built.start("a")
            async with asyncio.timeout(PATIENCE_S):
                while not a.links:
                    await turn()
            await built.stop("a")
            assert a.links == []
            assert len(a.tasks) == 0
    finally:
        silent.close()

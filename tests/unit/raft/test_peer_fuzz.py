"""Whatever comes from a stranger, or from a member that has lost its mind, is refused: nothing fails, nothing hangs,
nothing grows, and the other peers notice nothing.

Pure parts are searched by hypothesis. What needs sockets is driven by seeds, and each test names the seed that it runs.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import InvalidRequest, QuorateError
from quorate_core.frames import FRAME_BYTES_MAX, encode_frame
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import (
    NUMBER_MAX,
    AppendRequest,
    AppendResponse,
    Entry,
    HeartbeatRequest,
    InstallSnapshot,
    Message,
    ReadIndexRequest,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
)
from quorate_raft.runtime import wire
from quorate_raft.runtime.handshake import (
    HANDSHAKE_BYTES_MAX,
    NONCE_BYTES,
    PROTOCOL_VERSION,
    AcceptorHandshake,
    Callers,
    DialerHandshake,
    HandshakeRefused,
    Purpose,
    ToldRemoved,
)
from quorate_raft.runtime.ports import SnapshotOffer
from quorate_raft.runtime.snapshot_streams import CHUNK_BYTES, RECEIVED_BYTES_MAX, StreamTimes
from quorate_raft.runtime.tcp import STRANGERS_MAX
from structlog.testing import capture_logs
from support.raft_members import CLUSTER_ID, PATIENCE_S
from support.raft_peers import (
    Raw,
    Site,
    Town,
    credentials,
    proven_connection,
    raw_connection,
    town,
    until,
    watch_loop,
)

SMALL_FRAME_BYTES_MAX = 64 * 1024
SEEDS = range(4)

pack = msgspec.msgpack.encode
meta = SnapshotMeta(9, 2, Membership.of_voters("abc"))
GOOD_MESSAGES: list[Message] = [
    VoteRequest("a", "b", 3, 7, 2),
    AppendRequest("a", "b", 3, 7, 2, (Entry(8, 3, data=b"data", request_id=5), Entry(9, 3)), 5),
    AppendResponse("a", "b", 3, 9, rejected=True, hint_index=4, hint_term=1),
    HeartbeatRequest("a", "b", 3, 5, 2**60),
    ReadIndexRequest("a", "b", 3, 77),
    TimeoutNow("a", "b", 3),
]
GOOD_BODIES = [
    *map(pack, GOOD_MESSAGES),
    pack(InstallSnapshot("a", "b", 3, meta)),
    pack(wire.Call(1, "raft.propose", b"payload", 1.5)),
    pack(wire.Answer(1, b"payload")),
    pack(wire.CallFailed(1, {"type": "urn:quorate:problem:conflict", "detail": "d", "nested": {"x": [1, None]}})),
    pack(SnapshotOffer(3, meta, 1000, 77)),
    pack({"type": "urn:quorate:problem:conflict", "detail": "d"}),
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40)
    | st.sampled_from(
        ["hello", "challenge", "proof", "welcome", "removed", "refusal", "append?", "snapshot", "a", "b"]
    ),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)
nesting = st.builds(
    lambda head, depth: head + b"\x91" * depth,
    st.sampled_from([b"", b"\x94\xa4vote\x01", b"\x92\x01\x81\xa1a", *(body[:-1] for body in GOOD_BODIES)]),
    st.integers(1, 3000),
)
huge_lengths = st.builds(
    lambda head, code, size: head + code + size.to_bytes(4, "big"),
    st.sampled_from([b"", b"\x92\x01", b"\x96\xa7append?\xa1a\xa1b\x01\x01\x01"]),
    st.sampled_from([b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"]),
    st.integers(2**20, 2**32 - 1),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Something that makes sense, and then is cut, flipped in places, or doubled."""
    body = bytearray(draw(st.sampled_from(GOOD_BODIES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(body) - 1))
        match draw(st.sampled_from(["flip", "cut", "insert", "double"])):
            case "flip":
                body[at] ^= draw(st.integers(1, 255))
            case "cut":
                del body[at + 1 :]
            case "insert":
                body[at:at] = draw(st.binary(min_size=1, max_size=5))
            case "double":
                body += bytes(body)
    return bytes(body)


garbage = st.binary(max_size=300) | values.map(pack) | nesting | huge_lengths | mutated()


@given(garbage)
@settings(max_examples=1500, deadline=None)
def test_a_body_makes_sense_or_is_an_invalid_request(body: bytes) -> None:
    view = memoryview(body)
    attempts: list[Callable[[], object]] = [
        lambda: wire.decode_message(view, "a", "b"),
        lambda: wire.decode_call(view),
        lambda: wire.decode_answer(wire.ANSWER, view),
        lambda: wire.decode_answer(wire.CALL_FAILED, view),
        lambda: wire.decode_offer(view),
        lambda: wire.decode_problem(view),
    ]
    for attempt in attempts:
        try:
            found = attempt()
        except InvalidRequest:
            continue
        assert not isinstance(found, InstallSnapshot)
        if isinstance(found, SnapshotOffer):
            assert found.size_bytes >= 0
        if isinstance(found, wire.Call):
            assert 0 <= found.timeout_s <= wire.CALL_TIMEOUT_MAX_S


@given(st.sampled_from(GOOD_BODIES), st.data())
@settings(max_examples=300, deadline=None)
def test_a_frame_that_was_damaged_on_its_way_is_noticed(body: bytes, data: st.DataObject) -> None:
    """Any burst of up to 32 bits, as CRC-32 promises, and any cut."""
    payload = bytearray(wire.seal(b"m", body, FRAME_BYTES_MAX)[4:])
    assert wire.open_sealed(bytes(payload)) == (b"m", body)
    at = data.draw(st.integers(0, len(payload) - 4))
    burst = data.draw(st.binary(min_size=4, max_size=4).filter(any))
    payload[at : at + 4] = bytes(old ^ new for old, new in zip(payload[at : at + 4], burst, strict=True))
    with pytest.raises(InvalidRequest, match="damaged on its way"):
        wire.open_sealed(bytes(payload))


@given(st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_a_payload_without_a_checksum_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidRequest):
        wire.open_sealed(payload)


hellos = st.builds(
    lambda *fields: pack(["hello", *fields]),
    st.sampled_from([PROTOCOL_VERSION, 1, -1, 2**64 - 1]),
    st.sampled_from([CLUSTER_ID, "", "x" * 3000]),
    st.sampled_from(["a", "gone", "b", "z", "", "a\n"]),
    st.sampled_from(["b", "a", ""]),
    st.sampled_from([b"n" * NONCE_BYTES, b"", b"n" * 2000]),
    st.sampled_from(["messages", "snapshot", "", "other"]),
)
steps = (
    hellos
    | st.builds(lambda nonce: pack(["challenge", nonce]), st.sampled_from([b"n" * NONCE_BYTES, b""]))
    | st.builds(
        lambda tag, mac: pack([tag, mac]),
        st.sampled_from(["proof", "welcome", "removed"]),
        st.binary(min_size=32, max_size=32) | st.binary(max_size=64),
    )
    | st.builds(lambda reason: pack(["refusal", reason]), st.text(max_size=50))
    | garbage
)


@given(st.lists(steps, min_size=1, max_size=6))
@settings(max_examples=1000, deadline=None)
def test_no_sequence_of_steps_is_a_handshake_without_the_secret(said: list[bytes]) -> None:
    """For either side: it answers or refuses, and is never convinced, of membership or of having been removed."""
    acceptor = AcceptorHandshake(credentials("b"), Callers({"a"}, {"gone"}), b"m" * NONCE_BYTES)
    dialer = DialerHandshake(credentials("a"), "b", b"n" * NONCE_BYTES)
    for handshake in (acceptor, dialer):
        refusal = first_refusal(handshake, said)
        assert not isinstance(refusal, ToldRemoved)
        assert refusal is None or len(refusal.answer) < HANDSHAKE_BYTES_MAX
        assert not handshake.is_complete


def first_refusal(handshake: AcceptorHandshake | DialerHandshake, said: list[bytes]) -> HandshakeRefused | None:
    try:
        for step in said:
            handshake.receive(step)
    except HandshakeRefused as refusal:
        return refusal
    return None


@given(st.permutations(range(2)), st.lists(st.integers(0, 1), max_size=3), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_steps_of_a_true_handshake_count_only_whole_once_and_in_order(
    order: list[int], again: list[int], cut_bytes: int
) -> None:
    dialer = DialerHandshake(credentials("a"), "b", b"n" * NONCE_BYTES)
    acceptor = AcceptorHandshake(credentials("b"), Callers({"a"}), b"m" * NONCE_BYTES)
    twin = AcceptorHandshake(credentials("b"), Callers({"a"}), b"m" * NONCE_BYTES)
    hello = dialer.opening()
    true_steps = [hello, dialer.receive(twin.receive(hello))]
    said = [true_steps[index] for index in (*order, *again)]
    if cut_bytes:
        said[0] = said[0][:-cut_bytes]
    heard = 0
    with contextlib.suppress(HandshakeRefused):
        for step in said:
            acceptor.receive(step)
            heard += 1
    assert acceptor.is_complete == (said[:2] == true_steps)
    assert heard <= 2


@dataclass
class Watch:
    """Fails the test when the loop had to catch an exception, or a task of a network ended with one."""

    caught: list[dict[str, Any]]
    failures: list[BaseException] = field(default_factory=list)

    def over(self, site: Site) -> Site:
        site.tasks._on_failure = self.failures.append
        return site


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    watching = Watch(watch_loop())
    yield watching
    assert watching.caught == []
    assert watching.failures == []


class Pulse:
    """Two honest members that go on talking; what `b` holds is measured at every beat."""

    def __init__(self, b: Site, c: Site) -> None:
        self._b, self._c = b, c
        self._link = c.link_to("b")
        self._term = 0
        self.held_bytes_max = 0

    async def beat(self) -> None:
        self._term += 1
        self._c.network.send(HeartbeatRequest("c", "b", self._term, 1))
        while True:
            message = await self._b.receiver.next()
            if message.sender == "c":
                break
        assert message.term == self._term
        self.held_bytes_max = max(self.held_bytes_max, self._b.held_bytes)

    def require_undisturbed(self) -> None:
        assert self._c.link_to("b") is self._link


@contextlib.asynccontextmanager
async def honest_pair(watch: Watch, **changes: Any) -> AsyncIterator[tuple[Town, Site, Pulse]]:
    """`b` and `c`, while `a` is played by the test."""
    async with town("abc") as built:
        b = watch.over(await built.start("b", frame_bytes_max=SMALL_FRAME_BYTES_MAX, **changes))
        c = watch.over(await built.start("c", frame_bytes_max=SMALL_FRAME_BYTES_MAX))
        await c.up("b")
        await b.up("c")
        yield built, b, Pulse(b, c)


def stranger_bytes(rng: random.Random) -> bytes:
    hello = pack(["hello", PROTOCOL_VERSION, CLUSTER_ID, "a", "b", rng.randbytes(NONCE_BYTES), "messages"])
    proof = pack(["proof", rng.randbytes(32)])
    choices: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randrange(1, 5000)),
        lambda: rng.choice([2**32 - 1, 2**31, HANDSHAKE_BYTES_MAX + 1]).to_bytes(4, "big") + rng.randbytes(100),
        lambda: HANDSHAKE_BYTES_MAX.to_bytes(4, "big") + rng.randbytes(HANDSHAKE_BYTES_MAX - 1),
        lambda: encode_frame(hello)[: rng.randrange(1, len(hello))],
        lambda: encode_frame(hello) * rng.randrange(2, 50),
        lambda: encode_frame(proof) + encode_frame(hello),
        lambda: encode_frame(hello) + encode_frame(proof) + encode_frame(rng.randbytes(50)),
        lambda: encode_frame(b"") * 1000,
        lambda: encode_frame(pack(["hello", PROTOCOL_VERSION, CLUSTER_ID, "a", "b", b""])[:-2] + b"\x91" * 4000),
        lambda: encode_frame(b"\x92\xa5hello\xa1\xff"),
        lambda: b"GET / HTTP/1.1\r\nHost: b\r\n\r\n" * 30,
        lambda: b"",
    ]
    return rng.choice(choices)()


@pytest.mark.parametrize("seed", SEEDS)
async def test_strangers_in_crowds_are_refused_and_the_members_notice_nothing(seed: int, watch: Watch) -> None:
    rng = random.Random(seed)
    async with honest_pair(watch, handshake_timeout_s=0.3) as (_, b, pulse):
        for _ in range(3):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(2 * STRANGERS_MAX):
                    with contextlib.suppress(ConnectionError):
                        raw = await stack.enter_async_context(raw_connection(b.address))
                        raw.writer.write(stranger_bytes(rng))
                await pulse.beat()
                assert sum(link.is_stranger for link in b.links) <= STRANGERS_MAX
        await until(lambda: all(link.peer == "c" for link in b.links if link.is_ready) and len(b.links) <= 3)
        await pulse.beat()
        pulse.require_undisturbed()
        assert pulse.held_bytes_max <= (STRANGERS_MAX + 1) * 2 * HANDSHAKE_BYTES_MAX + SMALL_FRAME_BYTES_MAX


async def test_strangers_that_dribble_are_let_go_when_the_time_of_a_handshake_is_over(watch: Watch) -> None:
    """Each byte comes in time; the handshake as a whole does not."""
    async with honest_pair(watch, handshake_timeout_s=0.3) as (_, b, pulse):
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(raw_connection(b.address)) for _ in range(STRANGERS_MAX)]
            hello = encode_frame(DialerHandshake(credentials("a"), "b", b"n" * NONCE_BYTES).opening())
            began_s, ended = loop.time(), asyncio.gather(*(raw.hear() for raw in raws))
            for at in range(len(hello) - 1):
                for raw in raws:
                    if not raw.writer.is_closing():
                        raw.writer.write(hello[at : at + 1])
                await pulse.beat()
            assert set(await ended) == {b""}
            assert loop.time() - began_s < PATIENCE_S / 2
        pulse.require_undisturbed()


def member_frames(rng: random.Random) -> bytes:
    """What a member with the secret might say on its link when it has lost its mind."""

    def sealed(kind: bytes, body: bytes) -> bytes:
        return wire.seal(kind, body, FRAME_BYTES_MAX)

    def broken(body: bytes) -> bytes:
        broken_body = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            broken_body[rng.randrange(len(broken_body))] = rng.randrange(256)
        return bytes(broken_body)

    kind = rng.choice([b"m", b"c", b"a", b"e", b"o", b"k", b"t", b"n", b"\0", b"\xff"])
    choices: list[Callable[[], bytes]] = [
        lambda: sealed(kind, broken(rng.choice(GOOD_BODIES))),
        lambda: sealed(kind, rng.choice(GOOD_BODIES)),
        lambda: sealed(kind, rng.randbytes(rng.randrange(200))),
        lambda: sealed(b"m", pack(HeartbeatRequest(rng.choice(["b", "c", "z", ""]), "b", 1, 1))),
        lambda: sealed(b"m", pack(HeartbeatRequest("a", rng.choice(["a", "c", ""]), 1, 1))),
        lambda: sealed(b"m", pack(HeartbeatRequest("a", "b", 2**64 - 1, 2**64 - 1, 2**64 - 1))),
        lambda: sealed(b"m", pack(InstallSnapshot("a", "b", 3, meta))),
        lambda: sealed(b"m", pack(["no-such-tag", "a", "b", 1])),
        lambda: sealed(b"m", b"\x96\xa7append?\xa1a\xa1b\x01\x01\x01\xdd\xff\xff\xff\xff"),
        lambda: sealed(b"m", pack(HeartbeatRequest("a", "b", 1, 1))[:-1] + b"\x91" * 30_000),
        lambda: sealed(b"e", b"\x92\x01\x81\xa1a" + b"\x91" * 30_000),
        lambda: sealed(b"c", pack([1, "m", b"", rng.choice([float("nan"), float("inf"), -1.0, 1e308])])),
        lambda: rng.randbytes(rng.randrange(1, 3000)),
        lambda: encode_frame(b"") * 100,
        lambda: SMALL_FRAME_BYTES_MAX.to_bytes(4, "big") + rng.randbytes(SMALL_FRAME_BYTES_MAX // 2),
        lambda: (SMALL_FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
    ]
    return b"".join(rng.choice(choices)() for _ in range(rng.randrange(1, 6)))


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_member_that_has_lost_its_mind_disturbs_nobody(seed: int, watch: Watch) -> None:
    rng = random.Random(seed)
    async with honest_pair(watch) as (_, b, pulse):
        heard: list[Message] = []
        b.receiver.on_each = heard.append
        with capture_logs():
            for _ in range(60):
                async with proven_connection(b, "a", "b") as raw:
                    raw.writer.write(member_frames(rng))
                    await pulse.beat()
        await until(lambda: all(link.peer == "c" for link in b.links if link.is_ready))
        await pulse.beat()
        pulse.require_undisturbed()
        assert {(message.sender, message.to) for message in heard} <= {("a", "b"), ("c", "b")}
        assert not any(isinstance(message, InstallSnapshot) for message in heard)
        # Its link, and the one that replaces it, hold at most a frame each; and so does that of c.
        assert pulse.held_bytes_max <= 4 * SMALL_FRAME_BYTES_MAX
        await until(lambda: len(b.tasks) == 2)  # calls of good form were served, and are over


async def test_frames_that_never_end_hold_no_more_than_one_frame_a_peer(watch: Watch) -> None:
    async with honest_pair(watch) as (_, b, pulse), contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            raw = await stack.enter_async_context(proven_connection(b, "a", "b"))
            raw.writer.write(SMALL_FRAME_BYTES_MAX.to_bytes(4, "big") + bytes(SMALL_FRAME_BYTES_MAX - 1))
            with contextlib.suppress(ConnectionError):
                await raw.writer.drain()
            await pulse.beat()
        assert 0 < pulse.held_bytes_max <= 3 * SMALL_FRAME_BYTES_MAX
        pulse.require_undisturbed()


def stream_lies(rng: random.Random) -> Iterator[tuple[bytes, bytes]]:
    """Offers and chunks whose sizes do not fit, mixed with what has no place in a stream."""
    size = rng.choice([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1, 2**40, 2**63, 2**64 - 1])
    if rng.random() < 0.9:
        yield b"o", pack(SnapshotOffer(rng.choice([0, 3, 2**64 - 1]), meta, size, rng.randrange(2**32)))
    for _ in range(rng.randrange(1, 12)):
        match rng.randrange(6):
            case 0:
                yield b"k", rng.randbytes(rng.choice([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES + 1]))
            case 1:
                yield rng.choice([b"m", b"c", b"a", b"o", b"t", b"n", b"b"]), rng.choice(GOOD_BODIES)
            case _:
                yield b"k", bytes(CHUNK_BYTES)


@pytest.mark.parametrize("seed", SEEDS)
async def test_snapshot_streams_that_lie_hold_nothing_and_block_nobody(seed: int, watch: Watch) -> None:
    rng = random.Random(seed)
    async with honest_pair(watch, snapshot_times=StreamTimes(silence_s=0.3, linger_s=0.1)) as (built, b, pulse):
        held_max = 0

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            nonlocal held_max
            async for _ in chunks:
                held_max = max(held_max, chunks.held_bytes)  # type: ignore[attr-defined]
                await asyncio.sleep(0)

        b.receiver.taker = take
        for _ in range(25):
            async with proven_connection(b, "a", "b", Purpose.SNAPSHOT) as raw:
                with contextlib.suppress(ConnectionError):
                    for kind, body in stream_lies(rng):
                        await tell_all(raw, kind, body)
                await pulse.beat()
        desk = b.network._desk
        assert desk is not None
        await until(lambda: not desk.is_busy)
        pulse.require_undisturbed()
        assert held_max <= RECEIVED_BYTES_MAX + 3 * CHUNK_BYTES
        b.receiver.taker = None
        c = built.sites["c"]
        await c.network.send_snapshot("b", SnapshotOffer(3, meta, 5, 0), honest_read)
        assert b.receiver.snapshots[-1][2] == b"12345"
        await until(lambda: all(link.purpose is Purpose.MESSAGES for link in b.links if link.is_ready))


async def tell_all(raw: Raw, kind: bytes, body: bytes) -> None:
    raw.writer.write(wire.seal(kind, body, FRAME_BYTES_MAX))
    async with asyncio.timeout(PATIENCE_S):
        await raw.writer.drain()


async def honest_read(offset: int, size_bytes: int) -> bytes:
    return b"12345"[offset : offset + size_bytes]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_callee_that_has_lost_its_mind_leaves_its_caller_with_an_error(seed: int, watch: Watch) -> None:
    """The other direction: this member dials, proves itself, calls, and what comes back is garbage."""
    rng = random.Random(seed)
    async with town("ab") as built:
        server = await asyncio.start_server(serve_garbage(rng), sock=built.listeners.pop("b"))
        a = watch.over(await built.start("a", frame_bytes_max=SMALL_FRAME_BYTES_MAX))
        for _ in range(6):
            await a.up("b")
            try:
                await a.network.call("b", "any", b"", 0.05)
            except QuorateError:
                pass
            with pytest.raises(QuorateError):
                await a.network.send_snapshot("b", SnapshotOffer(3, meta, 5, 0), honest_read)
            assert a.held_bytes <= 4 * SMALL_FRAME_BYTES_MAX
        server.close()


def serve_garbage(
    rng: random.Random,
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = Raw(reader, writer)
        handshake = AcceptorHandshake(credentials("b"), Callers({"a"}), b"m" * NONCE_BYTES)
        with contextlib.suppress(ConnectionError, HandshakeRefused):
            while not handshake.is_complete:
                await raw.say(handshake.receive(await raw.hear()))
            await raw.hear()
            raw.writer.write(member_frames(rng) if handshake.purpose is Purpose.MESSAGES else rng.randbytes(100))
            await raw.writer.drain()
        raw.close()

    return serve


@pytest.mark.parametrize("term", [-1, NUMBER_MAX + 1, 2**64 - 1])
def test_a_number_after_which_nothing_can_be_counted_is_refused(term: int) -> None:
    """Members would take such a term over, and could never stand for election in the next one."""
    body = msgspec.msgpack.encode(["beat?", "a", "b", term, 0, 0])
    with pytest.raises(InvalidRequest):
        wire.decode_message(memoryview(body), "a", "b")

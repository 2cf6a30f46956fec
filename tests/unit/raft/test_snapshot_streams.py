"""Snapshots on connections of their own: whole, bounded, one at a time, and both ends know how it ended."""

import asyncio
import contextlib
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from quorate_core.errors import Conflict, QuorateError, TooManyRequests, Unavailable
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import HeartbeatRequest, SnapshotMeta
from quorate_raft.runtime.handshake import Purpose
from quorate_raft.runtime.link import LinkLost
from quorate_raft.runtime.ports import ReadPart, SnapshotOffer
from quorate_raft.runtime.snapshot_streams import (
    CHUNK_BYTES,
    RECEIVED_BYTES_MAX,
    SENT_BYTES_MAX,
    StreamTimes,
)
from structlog.testing import capture_logs
from support.raft_members import PATIENCE_S
from support.raft_peers import Raw, Site, fake_peer, proven_connection, raw_connection, shake_hands, town, turn, until

CLOCK_STEP_S = 0.001
"""uvloop's clock goes in whole milliseconds."""
IMPATIENT = StreamTimes(silence_s=0.2)
META = SnapshotMeta(1_000, 7, Membership.of_voters({"a": "127.0.0.1:1", "b": "127.0.0.1:2"}))


def file_of(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def offer_of(data: bytes) -> SnapshotOffer:
    return SnapshotOffer(7, META, len(data), zlib.crc32(data))


def reader(data: bytes) -> ReadPart:
    async def read(offset: int, size_bytes: int) -> bytes:
        return data[offset : offset + size_bytes]

    return read


async def send(site: Site, data: bytes, to: str = "b") -> None:
    async with asyncio.timeout(PATIENCE_S):
        await site.network.send_snapshot(to, offer_of(data), reader(data))


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Site, Site]]:
    """Members that are not ended by any silence: what ends must be ended."""
    async with town("ab") as built:
        times = StreamTimes(silence_s=100 * PATIENCE_S)
        a, b = await built.start("a", snapshot_times=times), await built.start("b", snapshot_times=times)
        await a.up("b")
        await b.up("a")
        yield a, b


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 20 * CHUNK_BYTES + 7])
async def test_a_snapshot_arrives_whole(pair: tuple[Site, Site], size_bytes: int) -> None:
    a, b = pair
    data = file_of(size_bytes)
    await send(a, data)
    assert b.receiver.snapshots == [("a", offer_of(data), data)]
    await until(lambda: all(link.purpose is Purpose.MESSAGES for link in (*a.links, *b.links)))
    assert len(a.tasks) == len(b.tasks) == 1


async def test_it_returns_only_when_the_receiver_has_taken_it_over(pair: tuple[Site, Site]) -> None:
    a, b = pair
    release, have_all = asyncio.Event(), asyncio.Event()

    async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        assert [len(chunk) async for chunk in chunks] == [CHUNK_BYTES, 5]
        have_all.set()
        await release.wait()

    b.receiver.taker = take
    sending = a.tasks.start(send(a, file_of(CHUNK_BYTES + 5)), "send")
    await have_all.wait()
    a.network.send(HeartbeatRequest("a", "b", 1, 1))
    await b.receiver.next()
    assert not sending.done()
    release.set()
    await sending


async def test_messages_go_on_while_a_snapshot_waits(pair: tuple[Site, Site]) -> None:
    """A receiver that is stuck in the middle, with all buffers between the two full, hears every heartbeat."""
    a, b = pair
    release = asyncio.Event()

    async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        await release.wait()
        assert sum([len(chunk) async for chunk in chunks]) == 100 * CHUNK_BYTES

    b.receiver.taker = take
    sending = a.tasks.start(send(a, bytes(100 * CHUNK_BYTES)), "send")
    for term in range(1, 200):
        a.network.send(HeartbeatRequest("a", "b", term, 1))
        assert (await b.receiver.next()).term == term
    assert not sending.done()
    release.set()
    await sending


async def test_a_slow_receiver_makes_the_sender_wait_and_neither_holds_more_than_a_few_chunks(
    pair: tuple[Site, Site],
) -> None:
    a, b = pair
    total = 120 * CHUNK_BYTES
    read_bytes, taken_bytes, held_there, held_here = 0, 0, [0], [0]

    async def read(offset: int, size_bytes: int) -> bytes:
        nonlocal read_bytes
        read_bytes = offset + size_bytes
        held_here.append(max(link.held_bytes for link in a.links))
        return bytes(size_bytes)

    async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        nonlocal taken_bytes
        async for chunk in chunks:
            ahead = -1
            while ahead != read_bytes:  # until the sender gets no further
                ahead = read_bytes
                for _ in range(5):
                    await turn()
            taken_bytes += len(chunk)
            held_there.append(chunks.held_bytes)  # type: ignore[attr-defined]

    b.receiver.taker = take
    async with asyncio.timeout(PATIENCE_S):
        await a.network.send_snapshot("b", SnapshotOffer(7, META, total, 0), read)
    assert taken_bytes == total
    assert RECEIVED_BYTES_MAX // 2 < max(held_there) <= RECEIVED_BYTES_MAX + 3 * CHUNK_BYTES
    assert SENT_BYTES_MAX // 2 < max(held_here) <= SENT_BYTES_MAX + 2 * CHUNK_BYTES


@pytest.mark.parametrize("after_chunks", [0, 3])
async def test_the_receivers_error_is_raised_at_the_sender(pair: tuple[Site, Site], after_chunks: int) -> None:
    """Also when it comes at once, while the sender still writes: the answer must not be lost."""
    a, b = pair

    async def refuse(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        for _ in range(after_chunks):
            await anext(chunks)
        raise Conflict("entry 1000 is here already", index=1000)

    b.receiver.taker = refuse
    for _ in range(5):
        with pytest.raises(Conflict, match="entry 1000 is here already") as raised:
            await send(a, bytes(60 * CHUNK_BYTES))
        assert raised.value.extensions["index"] == 1000


async def test_a_defect_of_the_receiver_is_logged_there_and_hidden_here(pair: tuple[Site, Site]) -> None:
    a, b = pair

    async def break_down(_offer: SnapshotOffer, _chunks: AsyncIterator[bytes]) -> None:
        raise ZeroDivisionError("inside")

    b.receiver.taker = break_down
    with capture_logs() as logs, pytest.raises(QuorateError, match="its log says why") as raised:
        await send(a, b"data")
    assert "inside" not in raised.value.detail
    assert any(entry["event"] == "snapshot_failed" for entry in logs)


async def test_one_snapshot_comes_in_at_a_time_from_whoever() -> None:
    async with town("abc") as built:
        a, b, c = await built.start("a"), await built.start("b"), await built.start("c")
        for site in (a, c):
            await site.up("b")
        release, taking = asyncio.Event(), asyncio.Event()

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            taking.set()
            await release.wait()
            assert b"".join([chunk async for chunk in chunks]) == b"first"

        b.receiver.taker = take
        first = a.tasks.start(send(a, b"first"), "send")
        await taking.wait()
        with pytest.raises(TooManyRequests, match="b is taking another snapshot over"):
            await send(c, file_of(50 * CHUNK_BYTES))
        release.set()
        await first
        b.receiver.taker = None
        await send(c, b"second")
        assert [sender for sender, _, _ in b.receiver.snapshots] == ["c"]


async def test_a_sender_that_is_cancelled_hangs_up_and_the_receiver_hears_of_it(pair: tuple[Site, Site]) -> None:
    a, b = pair
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    begun = asyncio.Event()

    async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        try:
            async for _ in chunks:
                begun.set()
        except QuorateError as error:
            failed.set_result(error)
            raise

    async def read(offset: int, size_bytes: int) -> bytes:
        if offset > 5 * CHUNK_BYTES:
            await asyncio.Event().wait()
        return bytes(size_bytes)

    b.receiver.taker = take
    offer = SnapshotOffer(7, META, 100 * CHUNK_BYTES, 0)
    sending = a.tasks.start(a.network.send_snapshot("b", offer, read), "send")
    await begun.wait()
    sending.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert isinstance(await failed, LinkLost)
    b.receiver.taker = None
    await until(lambda: len(b.tasks) == 1)
    await send(a, b"next")
    assert b.receiver.snapshots[0][2] == b"next"


async def test_a_receiver_that_closes_in_the_middle_ends_both() -> None:
    async with town("ab") as built:
        a, b = await built.start("a"), await built.start("b")
        await a.up("b")
        begun, ended = asyncio.Event(), asyncio.Event()

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            try:
                await anext(chunks)
                begun.set()
                await asyncio.Event().wait()
            finally:
                ended.set()

        b.receiver.taker = take
        sending = a.tasks.start(send(a, bytes(100 * CHUNK_BYTES)), "send")
        await begun.wait()
        await built.stop("b")
        assert ended.is_set()
        with pytest.raises(LinkLost, match="the snapshot's connection to b ended"):
            await sending


async def test_a_sender_that_closes_in_the_middle_ends_both() -> None:
    async with town("ab") as built:
        a, b = await built.start("a"), await built.start("b")
        await a.up("b")
        begun = asyncio.Event()
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            await anext(chunks)
            begun.set()
            try:
                async for _ in chunks:
                    await turn()
            except QuorateError as error:
                failed.set_result(error)
                raise

        b.receiver.taker = take
        outcome = asyncio.gather(send(a, bytes(2000 * CHUNK_BYTES)), return_exceptions=True)
        await begun.wait()
        await built.stop("a")
        assert isinstance((await outcome)[0], LinkLost)
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await failed, LinkLost)


async def test_a_peer_that_is_gone_from_the_configuration_loses_its_snapshots_too(pair: tuple[Site, Site]) -> None:
    a, b = pair
    begun = asyncio.Event()

    async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        begun.set()
        await asyncio.Event().wait()

    b.receiver.taker = take
    sending = a.tasks.start(send(a, bytes(100 * CHUNK_BYTES)), "send")
    await begun.wait()
    a.network.set_members(Membership.of_voters({"a": ""}))
    with pytest.raises(LinkLost, match="gone from the configuration"):
        await sending
    with pytest.raises(Unavailable, match="a does not know where b is"):
        await send(a, b"more")


async def test_who_was_removed_sends_no_snapshot(pair: tuple[Site, Site]) -> None:
    a, b = pair
    b.network.set_members(Membership(Membership.of_voters({"b": ""}).members, ("a",)))
    with pytest.raises(QuorateError, match="b says that a was removed from the cluster"):
        await send(a, b"data")


async def test_nobody_at_the_address_is_an_error_of_ours() -> None:
    async with town("ab") as built:
        a = await built.start("a")
        built.listeners.pop("b").close()
        with pytest.raises(LinkLost, match=str(built.addresses["b"])):
            await send(a, b"data")


async def test_a_file_that_is_shorter_than_was_offered_is_not_sent_on(pair: tuple[Site, Site]) -> None:
    a, b = pair
    data = file_of(3 * CHUNK_BYTES)
    with pytest.raises(Unavailable, match="has 600000 bytes, and not the 786432 offered"):
        await a.network.send_snapshot("b", offer_of(data), reader(data[:600_000]))
    assert b.receiver.snapshots == []


async def test_what_reading_raises_is_raised_and_the_connection_ends(pair: tuple[Site, Site]) -> None:
    a, b = pair

    async def read(offset: int, _size_bytes: int) -> bytes:
        raise Unavailable(f"cannot read at {offset}")

    with pytest.raises(Unavailable, match="cannot read at 0"):
        await a.network.send_snapshot("b", SnapshotOffer(7, META, 10, 0), read)
    await until(lambda: all(link.purpose is Purpose.MESSAGES for link in (*a.links, *b.links)))


async def test_a_receiver_that_takes_nothing_is_given_up_on_after_a_silence() -> None:
    async with town("ab") as built:
        a, b = await built.start("a", snapshot_times=IMPATIENT), await built.start("b")

        async def take(_offer: SnapshotOffer, _chunks: AsyncIterator[bytes]) -> None:
            await asyncio.Event().wait()

        b.receiver.taker = take
        with pytest.raises(Unavailable, match=r"did not get on for 0\.2 s, after \d+ of 52428800 bytes"):
            await send(a, bytes(200 * CHUNK_BYTES))


async def test_a_sender_that_falls_silent_is_given_up_on() -> None:
    async with town("ab") as built:
        b = await built.start("b", snapshot_times=IMPATIENT)
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            try:
                await anext(chunks)
            except QuorateError as error:
                failed.set_result(error)
                raise

        b.receiver.taker = take
        async with proven_connection(b, "a", "b", Purpose.SNAPSHOT) as raw:
            await raw.tell(b"o", msgspec.msgpack.encode(offer_of(bytes(1000))))
            kind, body = await raw.hear_sealed()
            assert kind == b"n"
            assert "nothing of the snapshot came for 0.2 s" in msgspec.msgpack.decode(body)["detail"]
            assert isinstance(await failed, LinkLost)


async def test_a_connection_for_a_snapshot_without_an_offer_ends() -> None:
    async with town("ab") as built:
        b = await built.start("b", snapshot_times=IMPATIENT)
        async with proven_connection(b, "a", "b", Purpose.SNAPSHOT) as raw:
            assert await raw.hear() == b""


async def test_a_receiver_that_needs_long_to_finish_says_so_and_is_waited_for() -> None:
    """Longer than the silence that ends a connection: only its word keeps the sender waiting."""
    times = StreamTimes(silence_s=0.8, finish_s=PATIENCE_S)
    async with town("ab") as built:
        a, b = await built.start("a", snapshot_times=times), await built.start("b", snapshot_times=times)
        loop = asyncio.get_running_loop()

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            assert [len(chunk) async for chunk in chunks] == [4]
            finished = asyncio.Event()
            loop.call_later(2 * times.silence_s, finished.set)
            await finished.wait()

        b.receiver.taker = take
        await send(a, b"data")


async def test_a_receiver_that_never_finishes_is_given_up_on_though_it_says_that_it_is_busy() -> None:
    times = StreamTimes(silence_s=1.0, finish_s=1.2)
    async with town("ab") as built:
        a, b = [await built.start(name, snapshot_times=times) for name in "ab"]
        ended = asyncio.Event()

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            try:
                assert [len(chunk) async for chunk in chunks] == [4]
                await asyncio.Event().wait()
            finally:
                ended.set()

        b.receiver.taker = take
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="after all was sent"):
            await send(a, b"data")
        assert asyncio.get_running_loop().time() - began_s >= times.finish_s - 2 * CLOCK_STEP_S
        assert not ended.is_set()


LIES: dict[str, Callable[[Raw], Awaitable[None]]] = {}


def lie(work: Callable[[Raw], Awaitable[None]]) -> Callable[[Raw], Awaitable[None]]:
    LIES[work.__name__.replace("_", " ")] = work
    return work


async def offer_by_hand(raw: Raw, size_bytes: int) -> None:
    await raw.tell(b"o", msgspec.msgpack.encode(SnapshotOffer(7, META, size_bytes, 0)))


@lie
async def more_than_was_offered(raw: Raw) -> None:
    await offer_by_hand(raw, 10)
    await raw.tell(b"k", bytes(11))


@lie
async def another_chunk_after_the_last(raw: Raw) -> None:
    await offer_by_hand(raw, 10)
    await raw.tell(b"k", bytes(10))
    await raw.tell(b"k", b"x")


@lie
async def many_small_chunks(raw: Raw) -> None:
    await offer_by_hand(raw, 2 * CHUNK_BYTES)
    await raw.tell(b"k", b"x")


@lie
async def an_empty_chunk(raw: Raw) -> None:
    await offer_by_hand(raw, 10)
    await raw.tell(b"k", b"")


@lie
async def a_chunk_before_the_offer(raw: Raw) -> None:
    await raw.tell(b"k", b"x")


@lie
async def two_offers(raw: Raw) -> None:
    await offer_by_hand(raw, 10)
    await offer_by_hand(raw, 10)


@lie
async def a_negative_size(raw: Raw) -> None:
    await offer_by_hand(raw, -1)


@lie
async def an_offer_that_is_none(raw: Raw) -> None:
    await raw.tell(b"o", b"\xc1")


@lie
async def a_message(raw: Raw) -> None:
    await raw.tell(b"m", msgspec.msgpack.encode(HeartbeatRequest("a", "b", 1, 1)))


@lie
async def a_chunk_larger_than_any(raw: Raw) -> None:
    await offer_by_hand(raw, 10 * CHUNK_BYTES)
    raw.writer.write((2 * CHUNK_BYTES).to_bytes(4, "big"))


@pytest.mark.parametrize("name", LIES)
async def test_a_sender_that_lies_is_let_go_and_the_next_one_is_served(name: str) -> None:
    async with town("abc") as built:
        b, c = await built.start("b"), await built.start("c")
        outcomes: list[BaseException | None] = []

        async def take(_offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
            try:
                async for _ in chunks:
                    pass
                # What is whole is taken over; what comes then is no business of the receiver any more.
                await link_is_gone.wait()
                outcomes.append(None)
            except QuorateError as error:
                outcomes.append(error)
                raise

        link_is_gone = asyncio.Event()
        b.receiver.taker = take
        async with proven_connection(b, "a", "b", Purpose.SNAPSHOT) as raw:
            with contextlib.suppress(ConnectionError):
                await LIES[name](raw)
            assert await raw.hear() == b""
        link_is_gone.set()
        await until(lambda: not b.network._desk.is_busy)  # type: ignore[union-attr]
        assert all(outcome is None or isinstance(outcome, LinkLost) for outcome in outcomes)
        assert (outcomes == [None]) == (name == "another chunk after the last")
        b.receiver.taker = None
        await send(c, b"honest")
        assert b.receiver.snapshots[0][2] == b"honest"


async def test_a_peer_that_connects_anew_replaces_its_old_stream() -> None:
    async with town("ab") as built:
        b = await built.start("b")
        async with proven_connection(b, "a", "b", Purpose.SNAPSHOT) as old:
            await offer_by_hand(old, 10)
            async with proven_connection(b, "a", "b", Purpose.SNAPSHOT) as new:
                assert await old.hear() == b""
                await until(lambda: not b.network._desk.is_busy)  # type: ignore[union-attr]
                await offer_by_hand(new, 3)
                await new.tell(b"k", b"new")
                assert await new.hear_sealed() == (b"t", b"")
        assert b.receiver.snapshots[0][2] == b"new"


async def test_a_sender_that_does_not_hang_up_is_hung_up_on() -> None:
    async with town("ab") as built:
        b = await built.start("b", snapshot_times=StreamTimes(linger_s=0.1))
        async with proven_connection(b, "a", "b", Purpose.SNAPSHOT) as raw:
            await offer_by_hand(raw, 3)
            await raw.tell(b"k", b"abc")
            assert (await raw.hear_sealed())[0] == b"t"
            await raw.tell(b"k", b"what comes now is thrown away")
            assert await raw.hear() == b""


@pytest.mark.parametrize(
    ("kind", "body"), [(b"?", b""), (b"m", b""), (b"n", b"\xc1"), (b"n", b"\x81\xa1a" + b"\x91" * 50_000)]
)
async def test_a_receiver_that_breaks_the_rules_is_let_go(kind: bytes, body: bytes) -> None:
    async with town("ab") as built:

        async def answer(raw: Raw) -> None:
            await raw.hear()
            await raw.tell(kind, body)
            await raw.hear()

        async with fake_peer(built, answer, Purpose.SNAPSHOT):
            a = await built.start("a")
            with pytest.raises(LinkLost, match="the snapshot's connection to b ended"):
                await send(a, b"data")


async def test_a_stranger_offers_no_snapshot() -> None:
    async with town("ab") as built:
        b = await built.start("b")
        async with raw_connection(b.address) as raw:
            with pytest.raises(QuorateError, match="the cluster secret of z is not the one of b"):
                await shake_hands(raw, "z", "b", "guessed", purpose=Purpose.SNAPSHOT)
        assert b.receiver.snapshots == []

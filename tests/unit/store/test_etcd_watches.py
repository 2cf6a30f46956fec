"""Watches on a store elsewhere whose streams break, go silent, leave something out, or cut lines anywhere."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from quorate_core.clock import ManualClock
from quorate_core.errors import Compacted, Conflict, InvariantViolation, NotProposed, TooManyRequests, Unavailable
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_store.etcd import EtcdStore
from quorate_store.etcd import far_streams as far_streams_module
from quorate_store.etcd import watch_stream as watch_stream_module
from quorate_store.etcd.far_streams import QUIET_LOOKS_MAX
from quorate_store.etcd.feed import IDLE_S, PROBE_INTERVAL_S, STALE_S
from quorate_store.etcd.watches import EtcdWatch
from quorate_store.model import WatchBatch, prefix_end
from structlog.testing import capture_logs
from support.scripted_store import Request, scripted_store

PATIENCE_S = 10.0
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
PREFIX, END = b"p/", prefix_end(b"p/")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def event(revision: int, key: bytes = b"p/k") -> dict[str, Any]:
    return {"kv": {"key": b64(key), "create_revision": "1", "mod_revision": str(revision), "version": "1"}}


@dataclass
class Script:
    """A store at `revision` whose watch streams a test writes by hand."""

    revision: int = 100
    compact_revision: int = 0
    cluster_id: str = "1"
    refused_reads: int = 0
    """Of revisions that are compacted."""
    streams: asyncio.Queue[tuple[dict[str, Any], Request]] = field(default_factory=asyncio.Queue)
    """Each that was asked for, with what was asked."""

    async def answer(self, request: Request) -> None:
        body = msgspec.json.decode(request.body)
        if request.path == "/v3/kv/range":
            self._answer_range(request, int(body.get("revision", "0")))
        else:
            request.begin_stream()
            await self.streams.put((body["create_request"], request))
            await asyncio.Event().wait()  # until the connection's end

    def _answer_range(self, request: Request, revision: int) -> None:
        if 0 < revision < self.compact_revision:
            self.refused_reads += 1
            request.answer({"error": COMPACTED, "message": COMPACTED, "code": 11}, 400)
        elif revision > self.revision:
            text = "etcdserver: mvcc: required revision is a future revision"
            request.answer({"error": text, "message": text, "code": 11}, 400)
        else:
            request.answer({"header": self.header()})

    def header(self, term: int = 3) -> dict[str, str]:
        return {
            "cluster_id": self.cluster_id,
            "member_id": "2",
            "revision": str(self.revision),
            "raft_term": str(term),
        }

    async def stream(self, start_revision: int, *, is_of_all: bool = True) -> Request:
        """The next stream, which must begin there, and be of all keys, or of those under PREFIX."""
        async with asyncio.timeout(PATIENCE_S):
            create, request = await self.streams.get()
        assert create["start_revision"] == str(start_revision)
        wanted = (b"\0", b"\0") if is_of_all else (PREFIX, END)
        assert (create["key"], create["range_end"]) == tuple(map(b64, wanted))
        request.send_result({"header": self.header(), "created": True})
        return request

    def tell(self, stream: Request, *events: dict[str, Any], **fields: object) -> None:
        stream.send_result({"header": self.header(), "events": list(events), **fields})


@dataclass
class Turns:
    """`wait` for what runs by the clock: each returns when the test says so."""

    clock: ManualClock
    waiting: asyncio.Queue[tuple[float, asyncio.Future[None]]] = field(default_factory=asyncio.Queue)

    async def wait(self, seconds: float) -> None:
        passed = asyncio.get_running_loop().create_future()
        await self.waiting.put((seconds, passed))
        await passed

    async def let_pass(self, seconds: float) -> None:
        """The next who waits, and it must be for so long."""
        async with asyncio.timeout(PATIENCE_S):
            found, passed = await self.waiting.get()
        assert found == seconds
        self.clock.advance(seconds)
        passed.set_result(None)


@dataclass
class World:
    script: Script
    store: EtcdStore
    turns: Turns
    failures: list[BaseException]

    async def present(self, stream: Request, first: int) -> None:
        """Tell of all from `first` to the present, elsewhere."""
        self.script.tell(stream, *(event(revision, b"other") for revision in range(first, self.script.revision + 1)))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened(Script()) as made:
        yield made
    assert made.failures == []


@asynccontextmanager
async def opened(script: Script, recent: int = 10) -> AsyncIterator[World]:
    failures: list[BaseException] = []
    async with scripted_store(script.answer) as server, TaskOwner("test", failures.append) as tasks:
        turns = Turns(ManualClock())
        endpoint = HostPort.parse(server.endpoint)
        store = EtcdStore([endpoint], tasks, turns.clock, recent_revisions_max=recent, wait=turns.wait)
        yield World(script, store, turns, failures)
        await store.close()
        assert len(tasks) == 0


async def following(batches: AsyncIterator[WatchBatch]) -> tuple[int, list[int]]:
    async with asyncio.timeout(PATIENCE_S):
        batch = await anext(batches)
    return batch.revision, [event.kv.mod_revision for event in batch.events]


async def until(is_so: Callable[[], bool]) -> None:
    """For what nobody is told of."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def heard(world: World, stream: Request, term: int, *events: dict[str, Any], **fields: object) -> None:
    """Tell, and wait until it was read, which is seen by the term in its header."""
    world.script.tell(stream, *events, header=world.script.header(term), **fields)
    await until(lambda: world.store.head().term == term)


async def test_one_stream_of_all_keys_serves_all_watches(world: World) -> None:
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(world.store.watch(PREFIX, END).__aenter__())
        stream = await world.script.stream(91)
        await world.present(stream, 91)
    async with world.store.watch(b"other") as other:
        first, second = aiter(opening.result()), aiter(other)
        assert await following(first) == await following(second) == (100, [])
        world.script.tell(stream, event(101), event(102, b"other"))
        assert await following(first) == (102, [101])
        assert await following(second) == (102, [102])
    assert world.script.streams.empty()


async def left_by_client(stream: Request) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await stream.until_client_has_gone()


async def opened_watch(world: World, start: int = 0) -> tuple[Request, AsyncIterator[WatchBatch]]:
    """A near watch, and the feed's stream."""
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(world.store.watch(PREFIX, END, start_revision=start).__aenter__())
        stream = await world.script.stream(91)
        await world.present(stream, 91)
    batches = aiter(opening.result())
    if not start:
        assert await following(batches) == (100, [])
    return stream, batches


async def test_lines_may_be_cut_anywhere(world: World) -> None:
    stream, batches = await opened_watch(world)
    line = msgspec.json.encode({"result": {"header": {}, "events": [event(101)]}}) + b"\n"
    line += msgspec.json.encode({"result": {"header": {}, "events": [event(102)]}}) + b"\n"
    for byte in line:
        stream.send(bytes([byte]))
        await stream.writer.drain()
    assert await following(batches) == (101, [101])
    assert await following(batches) == (102, [102])


async def test_a_revision_in_fragments_is_told_when_it_is_whole(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.tell(stream, event(101, b"p/a"), event(102, b"p/a"), fragment=True)
    assert await following(batches) == (101, [101])
    world.script.tell(stream, event(102, b"p/b"), fragment=True)
    world.script.tell(stream, event(102, b"p/c"), event(103))
    assert await following(batches) == (103, [102, 102, 102, 103])


async def test_a_stream_that_breaks_goes_on_where_it_was_and_forgets_half_a_revision(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.tell(stream, event(101), event(102), fragment=True)
    assert await following(batches) == (101, [101])
    stream.hang_up()
    again = await resumed(world, 102)
    world.script.tell(again, event(101), event(102), event(103))
    assert await following(batches) == (103, [102, 103]), "what was told is not told again"


async def resumed(world: World, start: int, *, is_of_all: bool = True) -> Request:
    """The next stream, after its pause."""
    async with asyncio.timeout(PATIENCE_S):
        while world.script.streams.empty():
            seconds, passed = await world.turns.waiting.get()
            if seconds < PROBE_INTERVAL_S:
                passed.set_result(None)
                break
            await world.turns.waiting.put((seconds, passed))
            await asyncio.sleep(0)
    return await world.script.stream(start, is_of_all=is_of_all)


async def test_a_revision_that_is_left_out_is_asked_for_again(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.tell(stream, event(101), event(103))
    assert await following(batches) == (101, [101])
    again = await resumed(world, 102)
    world.script.tell(again, event(102), event(103))
    assert await following(batches) == (103, [102, 103])


async def test_a_revision_that_is_left_out_again_has_no_events_and_disturbs_nobody(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.tell(stream, event(103))
    again = await resumed(world, 101)
    world.script.tell(again, event(103))
    assert await following(batches) == (103, [103])
    world.script.tell(again, event(104))
    assert await following(batches) == (104, [104])


async def test_very_many_revisions_that_are_left_out_are_history_that_was_lost(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.tell(stream, event(1_000_000))
    again = await resumed(world, 101)
    world.script.tell(again, event(1_000_000))

    async def tell() -> None:
        own = await world.script.stream(101, is_of_all=False)
        own.send_result({"header": {}, "canceled": True, "compact_revision": "999999"})

    with pytest.raises(Compacted):
        await asyncio.gather(following(batches), tell())


async def test_a_stream_that_is_silent_while_the_store_goes_on_is_broken_off(world: World) -> None:
    _, batches = await opened_watch(world)
    await world.turns.let_pass(PROBE_INTERVAL_S)
    world.script.revision = 101
    await world.turns.let_pass(PROBE_INTERVAL_S)
    await world.turns.let_pass(1.0)
    again = await resumed(world, 101)
    world.script.tell(again, event(101))
    assert await following(batches) == (101, [101])


async def test_a_revision_that_is_long_in_coming_is_waited_for(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.revision = 101
    for term in range(4, 8):
        await world.turns.let_pass(PROBE_INTERVAL_S)
        await until(lambda: not world.turns.waiting.empty())
        await heard(world, stream, term, event(101, b"p/%d" % term), fragment=True)
        await world.turns.let_pass(STALE_S)
    world.script.tell(stream, event(101, b"p/last"))
    assert await following(batches) == (101, [101] * 5)
    assert world.script.streams.empty()


async def test_a_stream_is_not_broken_off_for_the_silence_of_another_before_it(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.revision = 101
    await world.turns.let_pass(PROBE_INTERVAL_S)
    await until(lambda: not world.turns.waiting.empty())
    stream.hang_up()
    again = await resumed(world, 101)
    await heard(world, again, 4)
    await world.turns.let_pass(STALE_S)
    await world.turns.let_pass(PROBE_INTERVAL_S)
    world.script.tell(again, event(101))
    assert await following(batches) == (101, [101])
    assert world.script.streams.empty()


async def test_a_revision_that_is_too_large_is_history_that_was_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream_module, "HELD_BYTES_MAX", 5_000)
    stream, batches = await opened_watch(world)
    too_many = [event(101, b"p/%d" % number) for number in range(20)]
    world.script.tell(stream, *too_many[:10], fragment=True)
    world.script.tell(stream, *too_many[10:], fragment=True)
    await resumed(world, 102)

    async def tell() -> None:
        world.script.tell(await world.script.stream(101, is_of_all=False), *too_many, fragment=True)

    with pytest.raises(Compacted) as caught:
        await asyncio.gather(following(batches), tell())
    assert caught.value.extensions["compact_revision"] == 102


async def test_a_stream_of_many_small_revisions_is_not_one_that_is_too_large(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream_module, "HELD_BYTES_MAX", 5_000)
    stream, batches = await opened_watch(world)
    world.script.tell(stream, *(event(revision) for revision in range(101, 601)), fragment=True)
    world.script.tell(stream, *(event(revision) for revision in range(601, 1_201)), fragment=True)
    world.script.tell(stream, event(1_201))
    found: list[int] = []
    while len(found) < 1_101:
        found += (await following(batches))[1]
    assert found == list(range(101, 1_202))


async def test_a_refusal_that_does_not_say_where_history_begins_is_tried_again(world: World) -> None:
    stream, batches = await opened_watch(world)
    stream.send(msgspec.json.encode({"error": {"grpc_code": 11, "message": COMPACTED}}) + b"\n")
    again = await resumed(world, 101)
    world.script.tell(again, event(101))
    assert await following(batches) == (101, [101])


async def test_the_reason_of_a_store_is_cut(world: World) -> None:
    stream, _ = await opened_watch(world)
    with capture_logs() as logs:
        stream.send_result({"header": {}, "canceled": True, "cancel_reason": "x" * 100_000})
        await resumed(world, 101)
    assert [len(entry["reason"]) < 500 for entry in logs] == [True]


async def test_a_store_that_is_away_for_long_is_told_of_ever_more_seldom(world: World) -> None:
    stream, _ = await opened_watch(world)
    with capture_logs() as logs:
        for _ in range(4):
            stream.hang_up()
            stream = await resumed(world, 101)
    assert [entry["failures"] for entry in logs if entry["event"] == "store_watch_broke"] == [1, 2, 4]


async def test_a_stream_that_is_silent_while_nothing_happens_goes_on(world: World) -> None:
    stream, batches = await opened_watch(world)
    for _ in range(5):
        await world.turns.let_pass(PROBE_INTERVAL_S)
    world.script.tell(stream, event(101))
    assert await following(batches) == (101, [101])
    assert world.script.streams.empty()


async def test_a_feed_without_watches_ends_and_the_next_watch_begins_another(world: World) -> None:
    stream, batches = await opened_watch(world)
    assert isinstance(batches, EtcdWatch)
    await batches.__aexit__(None, None, None)
    for _ in range(int(IDLE_S / PROBE_INTERVAL_S)):
        await world.turns.let_pass(PROBE_INTERVAL_S)
    await left_by_client(stream)
    await until(lambda: not world.store._feeds)
    await opened_watch(world)


async def test_a_store_that_has_gone_back_stops_the_process() -> None:
    async with opened(Script()) as world:
        await opened_watch(world)
        world.script.revision = 50
        await world.turns.let_pass(PROBE_INTERVAL_S)
        await until(lambda: bool(world.failures))
    assert isinstance(world.failures[0], InvariantViolation)


async def test_another_cluster_at_the_same_endpoint_stops_the_process_however_far_it_is() -> None:
    async with opened(Script()) as world:
        await opened_watch(world)
        world.script.revision, world.script.cluster_id = 200, "9"
        await world.turns.let_pass(PROBE_INTERVAL_S)
        await until(lambda: bool(world.failures))
    assert isinstance(world.failures[0], InvariantViolation)


async def test_history_that_was_compacted_while_the_feed_was_away_is_lost_and_said_so(world: World) -> None:
    stream, batches = await opened_watch(world)
    world.script.compact_revision = world.script.revision = 150
    stream.hang_up()
    again = await resumed(world, 101)
    again.send_result({"header": {}, "canceled": True, "compact_revision": "150"})
    await resumed(world, 150)

    async def tell() -> None:
        own = await world.script.stream(101, is_of_all=False)
        own.send_result({"header": {}, "canceled": True, "compact_revision": "150"})

    with pytest.raises(Compacted) as caught:
        await asyncio.gather(following(batches), tell())
    assert caught.value.extensions["compact_revision"] == 150


async def far_watch(world: World, start: int) -> tuple[Request, Request, AsyncIterator[WatchBatch]]:
    """The feed's stream, and the watch's own, which has told of revision `start`."""

    async def tell() -> Request:
        own = await world.script.stream(start, is_of_all=False)
        world.script.tell(own, event(start))
        return own

    stream, batches = await opened_watch(world, start)
    found, own = await asyncio.gather(following(batches), tell())
    assert found == (start, [start])
    return stream, own, batches


async def test_a_watch_from_far_back_has_a_stream_of_its_own_until_it_meets_the_feed(world: World) -> None:
    stream, own, batches = await far_watch(world, 20)
    world.script.tell(own, event(95))
    assert await following(batches) == (95, [95])
    world.script.tell(stream, event(101))
    assert await following(batches) == (101, [101])
    await left_by_client(own)


async def test_progress_of_a_watch_from_far_back_is_told_by_a_stream_of_all_keys(world: World) -> None:
    _, own, batches = await far_watch(world, 20)
    await progress_of(batches)
    await left_by_client(own)
    again = await resumed(world, 21)
    world.script.tell(again, *(event(revision, b"other") for revision in range(21, 60)))
    world.script.tell(again, event(60), *(event(revision, b"other") for revision in range(61, 101)))
    assert await following(batches) == (100, [60])
    assert await following(batches) == (100, [])


async def test_progress_that_is_asked_for_as_a_watch_becomes_far_is_told_too(world: World) -> None:
    _, batches = await opened_watch(world, 20)
    await progress_of(batches)

    async def tell() -> None:
        world.script.tell(await world.script.stream(20), *(event(revision, b"other") for revision in range(20, 101)))

    found, _ = await asyncio.gather(following(batches), tell())
    assert found == (100, [])


async def progress_of(batches: AsyncIterator[WatchBatch]) -> None:
    assert isinstance(batches, EtcdWatch)
    await batches.request_progress()


async def test_a_stream_of_history_that_breaks_goes_on_where_it_was(world: World) -> None:
    _, own, batches = await far_watch(world, 20)
    own.hang_up()
    again = await resumed(world, 21, is_of_all=False)
    world.script.tell(again, event(21), event(22))
    assert await following(batches) == (22, [21, 22])


async def test_a_stream_of_history_that_is_silent_while_the_feed_goes_on_is_broken_off(world: World) -> None:
    stream, own, batches = await far_watch(world, 20)
    world.script.revision = 101
    world.script.tell(stream, event(101))
    await world.turns.let_pass(PROBE_INTERVAL_S)
    await world.turns.let_pass(PROBE_INTERVAL_S)
    await left_by_client(own)
    again = await resumed(world, 21, is_of_all=False)
    world.script.tell(again, event(101))
    assert await following(batches) == (101, [101])


async def test_a_silent_stream_is_found_though_others_keys_change_far_more_often(world: World) -> None:
    stream, own, batches = await far_watch(world, 20)
    world.script.revision = 102
    world.script.tell(stream, *(event(101, b"other/%d" % number) for number in range(2_500)))
    await heard(world, stream, 4, event(102))
    for _ in range(3):
        await world.turns.let_pass(PROBE_INTERVAL_S)
    await left_by_client(own)
    again = await resumed(world, 21, is_of_all=False)
    world.script.tell(again, event(102))
    assert await following(batches) == (102, [102])


async def test_a_change_that_the_feed_does_not_keep_any_more_was_missed_all_the_same(world: World) -> None:
    stream, own, batches = await far_watch(world, 20)
    world.script.revision = 101
    await heard(world, stream, 4, event(101))
    await world.turns.let_pass(PROBE_INTERVAL_S)
    await until(lambda: not world.turns.waiting.empty())
    world.script.revision = 130
    await heard(world, stream, 5, *(event(revision, b"other") for revision in range(102, 131)))
    await world.turns.let_pass(PROBE_INTERVAL_S)
    await left_by_client(own)
    again = await resumed(world, 21, is_of_all=False)
    world.script.tell(again, event(101))
    assert await following(batches) == (101, [101])


async def test_a_stream_of_history_in_which_a_revision_is_long_in_coming_is_waited_for(world: World) -> None:
    stream, own, batches = await far_watch(world, 20)
    world.script.revision = 101
    await heard(world, stream, 4, event(101))
    for term in range(5, 9):
        await heard(world, own, term, event(90, b"p/%d" % term), fragment=True)
        await world.turns.let_pass(PROBE_INTERVAL_S)
    world.script.tell(own, event(90, b"p/last"))
    assert await following(batches) == (90, [90] * 5)
    assert world.script.streams.empty()


async def test_a_quiet_stream_of_history_meets_the_feed_after_a_while(world: World) -> None:
    stream, own, batches = await far_watch(world, 20)
    reading = asyncio.gather(following(batches))
    for _ in range(QUIET_LOOKS_MAX):
        assert world.script.streams.empty()
        await world.turns.let_pass(PROBE_INTERVAL_S)
    await left_by_client(own)
    wide = await resumed(world, 21)
    world.script.tell(wide, *(event(revision, b"other") for revision in range(21, 101)))
    await left_by_client(wide)
    world.script.tell(stream, event(101))
    assert await reading == [(101, [101])]


async def test_a_quiet_stream_goes_on_when_another_could_not_begin_where_it_is(world: World) -> None:
    _, own, batches = await far_watch(world, 20)
    world.script.compact_revision = 50
    for _ in range(QUIET_LOOKS_MAX):
        await world.turns.let_pass(PROBE_INTERVAL_S)
    await until(lambda: world.script.refused_reads > 0)
    await world.turns.let_pass(PROBE_INTERVAL_S)
    world.script.tell(own, event(60))
    assert await following(batches) == (60, [60])
    assert world.script.streams.empty()


async def test_no_more_is_read_of_history_than_its_reader_takes(world: World) -> None:
    _, own, _ = await far_watch(world, 20)
    await heard(world, own, 4, event(21))
    await heard(world, own, 5, event(22))
    for term in range(6, 20):
        world.script.tell(own, event(17 + term), header=world.script.header(term))
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert world.store.head().term == 5, "one waits to be taken, and one to be handed over"


async def test_a_reader_that_gives_up_waiting_misses_nothing(world: World) -> None:
    _, own, batches = await far_watch(world, 20)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(batches)
    world.script.tell(own, event(21))
    assert await following(batches) == (21, [21])
    world.script.tell(own, event(91))
    assert await following(batches) == (91, [91])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(batches)
    await progress_of(batches)
    assert await following(batches) == (100, [])


async def test_streams_of_history_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_streams_module, "FAR_MAX", 0)
    _, batches = await opened_watch(world, 20)
    with pytest.raises(TooManyRequests):
        await following(batches)


async def test_a_watch_has_one_reader(world: World) -> None:
    stream, batches = await opened_watch(world)
    second = asyncio.gather(following(batches), following(batches), return_exceptions=True)
    await asyncio.sleep(0)
    world.script.tell(stream, event(101))
    assert [type(found) for found in await second] == [tuple, Conflict]


async def test_to_close_the_store_ends_all_watches_and_whatever_runs(world: World) -> None:
    _, far = await opened_watch(world, 20)
    reading = asyncio.gather(following(far), return_exceptions=True)
    await world.script.stream(20, is_of_all=False)
    await world.store.close()
    assert [type(error) for error in await reading] == [Unavailable]


async def test_without_an_endpoint_a_watch_does_not_open() -> None:
    async with TaskOwner("test") as tasks:
        store = EtcdStore([HostPort.parse("127.0.0.1:1")], tasks, ManualClock())
        with pytest.raises(NotProposed):
            async with store.watch(PREFIX, END):
                pass
        await store.close()
        assert len(tasks) == 0

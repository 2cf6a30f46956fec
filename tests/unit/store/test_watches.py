"""The watch feed: who is told, who is left alone, and how a slow reader is kept without loss."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import Compacted, Conflict, TooManyRequests, Unavailable
from quorate_store import watches
from quorate_store.commands import Compact
from quorate_store.model import RANGE_ALL, DeleteOp, PutOp, TxnOp, WatchBatch, prefix_end
from quorate_store.state import StateMachine
from quorate_store.watches import BUFFER_BYTES_MAX, BUFFER_EVENTS_MAX, GroupIndex, Watcher, WatchFeed
from support.store_model import apply_one, entries_of

PATIENCE_S = 20.0


class Scene:
    def __init__(self, machine: StateMachine) -> None:
        self.machine = machine
        self.feed = WatchFeed(machine)
        machine.add_applied_listener(self.feed.on_applied)

    def put(self, *keys: bytes, value: bytes = b"") -> int:
        """One revision each, all in one batch."""
        entries = entries_of([PutOp(key, value) for key in keys], self.machine.applied_index + 1)
        self.machine.apply(entries)
        return self.machine.revision


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    machine = StateMachine(tmp_path / "state", map_bytes=256 * 1024 * 1024)
    yield Scene(machine)
    machine.close()


async def following(watcher: Watcher) -> WatchBatch:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(aiter(watcher))


async def revisions_until(watcher: Watcher, revision: int) -> list[int]:
    found: list[int] = []
    while not found or found[-1] < revision:
        found += [event.kv.mod_revision for event in (await following(watcher)).events]
    return found


def buffered(watcher: Watcher) -> int:
    return sum(len(batch.events) for batch, _ in watcher._buffer)


async def test_a_batch_of_many_revisions_is_told_at_once(scene: Scene) -> None:
    async with scene.feed.watch(b"a", b"b", start_revision=0, previous=False) as watcher:
        assert await following(watcher) == WatchBatch(1)
        last = scene.put(b"a1", b"z", b"a2", b"z")
        batch = await following(watcher)
        assert batch.revision == last
        assert [event.kv.key for event in batch.events] == [b"a1", b"a2"]


async def test_unrelated_writes_wake_nobody(scene: Scene) -> None:
    """A thousand watchers, and one of them is concerned."""
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        opened: list[Watcher] = []
        for number in range(1_000):
            context = scene.feed.watch(b"svc/%03d/" % number, b"svc/%03d0" % number, start_revision=0, previous=False)
            opened.append(await context.__aenter__())
            await following(opened[-1])
        waiting = [group.create_task(following(watcher)) for watcher in opened]
        await asyncio.sleep(0)
        wakeups = [watcher._wakeup for watcher in opened]
        scene.put(b"svc/500/instance", b"elsewhere", b"svc/")
        assert [number for number, wakeup in enumerate(wakeups) if wakeup is not None and wakeup.done()] == [500]
        await waiting[500]
        for watcher in opened:
            watcher.close()
        for task in waiting:
            task.cancel()
    assert len(scene.feed) == 0
    assert len(scene.feed._index) == 0


async def test_a_reader_that_falls_behind_loses_nothing_and_holds_little(scene: Scene) -> None:
    async with scene.feed.watch(b"k", b"l", start_revision=0, previous=False) as watcher:
        await following(watcher)
        first = scene.machine.revision + 1
        for _ in range(5):
            last = scene.put(*[b"k%d" % number for number in range(BUFFER_EVENTS_MAX // 2)])
            assert buffered(watcher) <= BUFFER_EVENTS_MAX
        assert await revisions_until(watcher, last) == list(range(first, last + 1))
        assert await revisions_until(watcher, scene.put(b"k")) == [last + 1]


async def test_a_reader_that_falls_behind_again_and_again_loses_nothing(scene: Scene) -> None:
    async with scene.feed.watch(b"k", b"l", start_revision=0, previous=True) as watcher:
        await following(watcher)
        found: list[int] = []
        first = scene.machine.revision + 1
        for _ in range(12):
            scene.put(*[b"k%d" % number for number in range(700)])
            last = scene.put(*[b"k%d" % number for number in range(700)])
            found += [event.kv.mod_revision for event in (await following(watcher)).events]
        found += await revisions_until(watcher, last)
        assert found == list(range(first, last + 1))


async def test_the_buffer_is_bounded_in_bytes_too(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        first, megabyte = scene.machine.revision + 1, b"x" * 1024 * 1024
        for _ in range(12):
            last = scene.put(b"k", value=megabyte)
            assert watcher._buffer_bytes <= BUFFER_BYTES_MAX
        assert await revisions_until(watcher, last) == list(range(first, last + 1))


async def test_a_revision_larger_than_the_buffer_is_told_whole(scene: Scene) -> None:
    keys = [b"k%05d" % number for number in range(BUFFER_EVENTS_MAX * 2)]
    scene.put(*keys)
    async with scene.feed.watch(b"k", b"l", start_revision=0, previous=False) as watcher:
        await following(watcher)
        apply_one(scene.machine, DeleteOp(b"k", b"l"))
        batch = await following(watcher)
        assert [event.kv.key for event in batch.events] == keys


async def test_a_slow_reader_is_told_when_its_history_was_compacted(scene: Scene) -> None:
    async with scene.feed.watch(b"k", b"l", start_revision=0, previous=False) as watcher:
        await following(watcher)
        scene.put(*[b"k"] * BUFFER_EVENTS_MAX)
        scene.put(b"k")
        apply_one(scene.machine, Compact(scene.machine.revision))
        with pytest.raises(Compacted):
            await following(watcher)


async def test_a_quiet_watcher_that_falls_behind_after_compaction_loses_nothing(scene: Scene) -> None:
    """It is behind from the first event that it could not hold, not from when it last heard something."""
    async with scene.feed.watch(b"quiet", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        scene.put(*[b"elsewhere"] * 10)
        apply_one(scene.machine, Compact(scene.machine.revision))
        first = scene.machine.revision + 1
        scene.put(*[b"quiet"] * BUFFER_EVENTS_MAX)
        last = scene.put(b"quiet")
        assert await revisions_until(watcher, last) == list(range(first, last + 1))


async def test_the_opening_bookmark_is_never_dropped(scene: Scene) -> None:
    present = scene.put(b"k")
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        scene.put(*[b"k"] * BUFFER_EVENTS_MAX)
        last = scene.put(b"k")
        assert await following(watcher) == WatchBatch(present)
        assert await revisions_until(watcher, last) == list(range(present + 1, last + 1))


async def test_progress_asked_of_a_watcher_that_is_behind_comes_when_it_has_caught_up(scene: Scene) -> None:
    last = scene.put(*[b"k"] * (watches.HISTORY_SLICE_ROWS * 2 + 5))
    async with scene.feed.watch(b"k", start_revision=1, previous=False, range_end=b"") as watcher:
        await watcher.request_progress()
        found = 0
        while (batch := await following(watcher)).events:
            found += len(batch.events)
        assert (found, batch) == (last - 1, WatchBatch(last))


async def test_progress_survives_falling_behind(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        scene.put(b"k")
        await watcher.request_progress()
        scene.put(*[b"k"] * BUFFER_EVENTS_MAX)
        scene.put(b"k")
        while (batch := await following(watcher)).events:
            pass
        assert batch == WatchBatch(scene.machine.revision)


async def test_asking_for_progress_without_reading_does_not_fill_memory(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        for _ in range(10_000):
            await watcher.request_progress()
        assert len(watcher._buffer) == 1


async def test_history_is_read_in_slices_between_which_others_run(scene: Scene) -> None:
    scene.put(*[b"elsewhere"] * (watches.HISTORY_SLICE_ROWS * 10), b"k")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with scene.feed.watch(b"k", start_revision=2, previous=False, range_end=b"") as watcher:
        counting = asyncio.ensure_future(count_turns())  # noqa: TID251 - cancelled below
        assert [event.kv.key for event in (await following(watcher)).events] == [b"k"]
        counting.cancel()
    assert turns >= 10


async def test_a_watch_has_one_reader(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        reader = asyncio.ensure_future(anext(aiter(watcher)))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        with pytest.raises(Conflict):
            await anext(aiter(watcher))
        scene.put(b"k")
        assert (await reader).events[0].kv.key == b"k"


async def test_a_cancelled_reader_loses_nothing(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        reader = asyncio.ensure_future(anext(aiter(watcher)))  # noqa: TID251 - cancelled here
        await asyncio.sleep(0)
        reader.cancel()
        last = scene.put(b"k")
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await revisions_until(watcher, last) == [last]


async def test_closing_the_feed_ends_watches_after_what_they_still_hold(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        last = scene.put(b"k")
        scene.feed.close()
        assert (await following(watcher)).revision == last
        with pytest.raises(Unavailable):
            await following(watcher)
    with pytest.raises(Unavailable):
        async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b""):
            pass


async def test_closing_the_feed_wakes_a_reader_that_waits(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
        reader = asyncio.ensure_future(anext(aiter(watcher)))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        scene.feed.close()
        with pytest.raises(Unavailable):
            await reader


async def test_a_closed_watch_ends(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=0, previous=False, range_end=b"") as watcher:
        await following(watcher)
    assert [batch async for batch in watcher] == []


async def test_watches_are_limited(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "WATCHERS_MAX", 2)
    async with (
        scene.feed.watch(b"a", start_revision=0, previous=False, range_end=b""),
        scene.feed.watch(b"b", start_revision=5, previous=False, range_end=b""),
    ):
        with pytest.raises(TooManyRequests):
            async with scene.feed.watch(b"c", start_revision=0, previous=False, range_end=b""):
                pass
    async with scene.feed.watch(b"c", start_revision=0, previous=False, range_end=b""):
        assert len(scene.feed) == 1


async def test_a_future_watch_in_the_middle_of_a_batch_begins_where_it_said(scene: Scene) -> None:
    async with scene.feed.watch(b"k", start_revision=4, previous=False, range_end=b"") as watcher:
        reader = asyncio.ensure_future(anext(aiter(watcher)))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        scene.put(b"k", b"k", b"k", b"k")
        assert [event.kv.mod_revision for event in (await reader).events] == [4, 5]


bounds = st.sampled_from([b"a", b"a/", b"a/b", b"b", b"\xff", b"\xff\xff", b"a\xff"])
spans = st.tuples(bounds, bounds | st.sampled_from([b"", RANGE_ALL]), st.booleans()) | bounds.map(
    lambda prefix: (prefix, prefix_end(prefix), False)
)


@settings(deadline=None)
@given(st.lists(spans, max_size=12), st.lists(st.integers(0, 11), max_size=8), bounds)
def test_exactly_the_groups_whose_range_holds_the_key_are_found(
    wanted: list[tuple[bytes, bytes, bool]], dropped: list[int], key: bytes
) -> None:
    index = GroupIndex()
    for first, range_end, previous in wanted:
        index.obtain(first, range_end, previous=previous)
    kept = dict.fromkeys(wanted)
    for number in dropped:
        if number < len(wanted) and wanted[number] in kept:
            list(index.watching(key))  # the table of ranges is in use when it changes
            first, range_end, previous = wanted[number]
            index.drop(index.obtain(first, range_end, previous=previous))
            del kept[wanted[number]]
    found = [(group.key, group.range_end, group.previous) for group in index.watching(key)]
    expected = [
        (first, end, previous)
        for first, end, previous in kept
        if (key == first if not end else key >= first and (end == RANGE_ALL or key < end))
    ]
    assert sorted(found) == sorted(expected)
    assert len(index) == len(kept)


async def test_a_transaction_reaches_watchers_of_each_kind_once(scene: Scene) -> None:
    spans = [(b"k", b""), (b"k", b"l"), (b"j", b"k\0"), (b"\0", RANGE_ALL)]
    opened = []
    for key, end in spans:
        context = scene.feed.watch(key, start_revision=0, previous=False, range_end=end)
        opened.append(await context.__aenter__())
        await following(opened[-1])
    apply_one(scene.machine, TxnOp((), (PutOp(b"k", b"1"), PutOp(b"other", b"2"))))
    for watcher, keys in zip(opened, [[b"k"], [b"k"], [b"k"], [b"k", b"other"]], strict=True):
        assert [event.kv.key for event in (await following(watcher)).events] == keys
        watcher.close()

"""Watches while snapshots take the place of the state: nothing is lost or told twice, and what history does not reach
back to is said to be gone. Pitfall (etcd 17780, 18089, 19179): compaction against watchers."""

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import Compacted
from quorate_store import watches
from quorate_store.commands import Compact
from quorate_store.key_index import is_in_range
from quorate_store.model import RANGE_ALL, Event, PutOp, WatchBatch
from quorate_store.state import Applied, StateMachine
from quorate_store.watches import Watcher, WatchFeed
from support.store_local import local_store_and_machine
from support.store_model import apply_one, entries_of

PATIENCE_S = 20.0
MIB = 1024 * 1024
MEMORY = Path("/dev/shm")
"""Where there is one, short-lived states need no disk to sync to."""
EVERYTHING = (b"\0", RANGE_ALL)


class Pair:
    """Two members: `leader` has applied everything, `follower` may be behind, and takes snapshots over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self.leader = StateMachine(folder / "leader", map_bytes=64 * MIB)
        self.follower = StateMachine(folder / "follower", map_bytes=64 * MIB)
        self.feed = WatchFeed(self.follower)
        self.follower.add_applied_listener(self.feed.on_applied)
        self.follower.add_replaced_listener(self.feed.on_replaced)
        self.leader.add_applied_listener(self._on_applied)
        self.events: list[Event] = []
        """All that ever happened."""

    def _on_applied(self, applied: Applied) -> None:
        self.events += [event for _, events in applied.changes for event in events]

    def put(self, keys: list[bytes], *, missed: bool = False) -> None:
        puts = [PutOp(key, b"%d" % next(self._numbers)) for key in keys]
        for machine in [self.leader] if missed else [self.leader, self.follower]:
            machine.apply(entries_of(puts, machine.applied_index + 1))

    def compact(self, kept: int, *, missed: bool = False) -> None:
        revision = max(1, self.leader.revision - kept)
        for machine in [self.leader] if missed else [self.leader, self.follower]:
            apply_one(machine, Compact(revision))

    def replace(self) -> None:
        path = self._folder / f"snapshot-{next(self._numbers)}"
        self.leader.save_snapshot(path)
        self.follower.restore_snapshot(path)()

    def close(self) -> None:
        self.leader.close()
        self.follower.close()


@contextlib.contextmanager
def pair_in_memory() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        pair = Pair(Path(folder))
        try:
            yield pair
        finally:
            pair.close()


@dataclass
class Reader:
    span: tuple[bytes, bytes]
    start: int
    """The first revision that it has to be told."""
    previous: bool
    watcher: Watcher
    batches: list[WatchBatch] = field(default_factory=list)
    was_compacted: bool = False

    async def read(self) -> None:
        """Until cancelled, or told that history is gone."""
        with contextlib.suppress(StopAsyncIteration):
            try:
                while True:
                    self.batches.append(await anext(self.watcher))
            except Compacted:
                self.was_compacted = True

    def has_all(self, revision: int) -> bool:
        return self.was_compacted or bool(self.batches and self.batches[-1].revision >= revision)


keys = st.lists(st.sampled_from([b"a", b"b", b"d"]), min_size=1, max_size=6)
spans = st.sampled_from([(b"a", b""), (b"a", b"c"), EVERYTHING])
Step = tuple[Any, ...]
steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("put"), keys),
    st.tuples(st.just("jump"), keys, st.none() | st.integers(0, 8)),
    st.tuples(st.just("compact"), st.integers(0, 12)),
    st.tuples(st.just("watch"), spans, st.booleans(), st.integers(0, 6), st.booleans()),
    st.tuples(st.just("let run"), st.integers(1, 6)),
    st.tuples(st.just("ask for progress")),
)


class Play:
    """Plays a script to a pair with readers, of which some read all the time, and some only at the end."""

    def __init__(self, pair: Pair, opened: contextlib.AsyncExitStack, group: asyncio.TaskGroup) -> None:
        self._pair = pair
        self._opened = opened
        self._group = group
        self._reading = [group.create_task(pair.feed.run())]
        self._lazy: list[Reader] = []
        self.readers: list[Reader] = []

    async def step(self, step: Step) -> None:
        pair = self._pair
        match step:
            case ("put", put_keys):
                pair.put(put_keys)
            case ("jump", put_keys, kept):
                pair.put(put_keys, missed=True)
                if kept is not None:
                    pair.compact(kept, missed=True)
                pair.replace()
            case ("compact", kept):
                pair.compact(kept)
            case ("watch", span, previous, back, is_eager):
                await self._watch(span, previous, back, is_eager)
            case ("let run", turns):
                for _ in range(turns):
                    await asyncio.sleep(0)
            case _:
                for reader in self.readers:
                    await reader.watcher.request_progress()

    async def _watch(self, span: tuple[bytes, bytes], previous: bool, back: int, is_eager: bool) -> None:
        present = self._pair.follower.revision
        start = max(1, present - back) if back else 0
        watch = self._pair.feed.watch(*span, start_revision=start, previous=previous)
        reader = Reader(span, start or present + 1, previous, await self._opened.enter_async_context(watch))
        self.readers.append(reader)
        if is_eager:
            self._reading.append(self._group.create_task(reader.read()))
        else:
            self._lazy.append(reader)

    async def end(self) -> None:
        """A last change concerns everybody; returns when everybody has heard of it."""
        self._pair.put([b"a"])
        self._reading += [self._group.create_task(reader.read()) for reader in self._lazy]
        async with asyncio.timeout(PATIENCE_S):
            while not all(reader.has_all(self._pair.follower.revision) for reader in self.readers):  # noqa: ASYNC110
                await asyncio.sleep(0)
        for task in self._reading:
            task.cancel()


async def play(pair: Pair, script: list[Step]) -> list[Reader]:
    async with contextlib.AsyncExitStack() as opened, asyncio.TaskGroup() as group:
        playing = Play(pair, opened, group)
        for step in [("watch", EVERYTHING, True, 0, True), ("watch", EVERYTHING, False, 0, False), *script]:
            await playing.step(step)
        await playing.end()
    return playing.readers


def check(pair: Pair, reader: Reader) -> None:
    expected = [
        event
        for event in pair.events
        if event.kv.mod_revision >= reader.start and is_in_range(event.kv.key, *reader.span)
    ]
    seen: list[Event] = []
    reached = 0
    for batch in reader.batches:
        assert batch.revision >= reached
        assert all(reached < event.kv.mod_revision <= batch.revision for event in batch.events)
        seen += batch.events
        reached = batch.revision
    assert [(event.kind, event.kv) for event in seen] == [(event.kind, event.kv) for event in expected[: len(seen)]]
    for told, happened in zip(seen, expected, strict=False):
        # What was before may be compacted when an event is read from history.
        assert told.previous is None or (reader.previous and told.previous == happened.previous)
    if reader.was_compacted:
        assert max(reader.start, reached + 1) < pair.follower.compact_revision
    else:
        assert len(seen) == len(expected)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25), st.integers(1, 6), st.integers(2, 12))
def test_every_watcher_is_told_everything_once_or_that_it_is_gone(
    script: list[Step], slice_rows: int, buffer_events: int
) -> None:
    with pytest.MonkeyPatch.context() as limits, pair_in_memory() as pair:
        limits.setattr(watches, "HISTORY_SLICE_ROWS", slice_rows)
        limits.setattr(watches, "BUFFER_EVENTS_MAX", buffer_events)
        for reader in asyncio.run(play(pair, script)):
            check(pair, reader)


async def following(watcher: Watcher) -> WatchBatch:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(watcher)


async def test_what_was_jumped_over_is_read_once_for_all_watchers(tmp_path: Path) -> None:
    """A thousand watchers of their own keys would otherwise read all of history each."""
    pair = Pair(tmp_path)
    reads = 0
    read_events = pair.follower.events

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return read_events(*arguments, **options)

    pair.follower.events = counting  # type: ignore[method-assign]
    async with contextlib.AsyncExitStack() as opened:
        watchers = [
            await opened.enter_async_context(pair.feed.watch(b"%04d" % number, b"", start_revision=0, previous=False))
            for number in range(1_000)
        ]
        for watcher in watchers:
            assert not (await following(watcher)).events
        pair.put([b"%04d" % number for number in range(1_000)], missed=True)
        pair.replace()
        slices = 0
        while pair.feed.is_behind:
            pair.feed.catch_up()
            slices += 1
        for number, watcher in enumerate(watchers):
            assert [event.kv.mod_revision for event in (await following(watcher)).events] == [number + 2]
    assert reads == slices == -(-1_000 // watches.HISTORY_SLICE_ROWS)
    pair.close()


async def test_progress_asked_while_the_feed_is_behind_comes_after_what_was_jumped_over(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair.feed.watch(b"a", b"", start_revision=0, previous=False) as watcher:
        await following(watcher)
        pair.put([b"a", b"b"], missed=True)
        pair.replace()
        await watcher.request_progress()
        while pair.feed.is_behind:
            pair.feed.catch_up()
        assert [event.kv.mod_revision for event in (await following(watcher)).events] == [2]
        assert await following(watcher) == WatchBatch(3)
    pair.close()


async def test_progress_asked_while_the_feed_is_behind_comes_to_a_slow_reader_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "BUFFER_EVENTS_MAX", 4)
    monkeypatch.setattr(watches, "HISTORY_SLICE_ROWS", 3)
    pair = Pair(tmp_path)
    async with pair.feed.watch(b"a", b"", start_revision=0, previous=False) as watcher:
        await following(watcher)
        pair.put([b"a"] * 20, missed=True)
        pair.replace()
        await watcher.request_progress()
        while pair.feed.is_behind:
            pair.feed.catch_up()
        found: list[int] = []
        while (batch := await following(watcher)).events:
            found += [event.kv.mod_revision for event in batch.events]
        assert (found, batch) == (list(range(2, 22)), WatchBatch(21))
    pair.close()


async def test_only_who_has_missed_something_is_told_that_history_is_gone(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with (
        pair.feed.watch(b"a", b"", start_revision=0, previous=False) as missing,
        pair.feed.watch(b"a", b"", start_revision=14, previous=False) as future,
    ):
        await following(missing)
        pair.put([b"a"] * 5)
        assert len((await following(missing)).events) == 5
        waiting = asyncio.ensure_future(anext(future))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        pair.put([b"b"] * 6, missed=True)
        pair.compact(0, missed=True)
        pair.replace()
        async with pair.feed.watch(b"a", b"", start_revision=0, previous=False) as since:
            assert await following(since) == WatchBatch(12)
            pair.feed.catch_up()
            pair.put([b"a", b"a"])
            with pytest.raises(Compacted, match="revision 7 is compacted"):
                await following(missing)
            assert [event.kv.mod_revision for event in (await following(since)).events] == [13, 14]
            assert [event.kv.mod_revision for event in (await waiting).events] == [14]
    pair.close()


async def test_what_is_applied_while_the_feed_catches_up_is_told_in_its_place(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair.feed.watch(b"a", b"", start_revision=0, previous=False) as watcher:
        await following(watcher)
        pair.put([b"a"] * (watches.HISTORY_SLICE_ROWS + 10), missed=True)
        pair.replace()
        pair.feed.catch_up()
        assert pair.feed.is_behind
        pair.put([b"a"])
        pair.feed.catch_up()
        assert not pair.feed.is_behind
        pair.put([b"a"])
        found: list[int] = []
        while not found or found[-1] < pair.follower.revision:
            found += [event.kv.mod_revision for event in (await following(watcher)).events]
    assert found == list(range(2, pair.follower.revision + 1))
    pair.close()


async def test_a_store_tells_its_watchers_by_itself(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path / "store") as (store, machine):
        await store.put(b"k", b"1")
        ahead = StateMachine(tmp_path / "ahead", map_bytes=64 * MIB)
        machine.save_snapshot(tmp_path / "present")
        ahead.restore_snapshot(tmp_path / "present")()
        apply_one(ahead, PutOp(b"k", b"2"))
        ahead.save_snapshot(tmp_path / "later")
        ahead.close()
        async with store.watch(b"k") as watch, asyncio.timeout(PATIENCE_S):
            batches = aiter(watch)
            await anext(batches)
            machine.restore_snapshot(tmp_path / "later")()
            assert [event.kv.value for event in (await anext(batches)).events] == [b"2"]
            await store.put(b"k", b"3")
            assert [event.kv.value for event in (await anext(batches)).events] == [b"3"]

"""The watch feed: events from the state machine to whoever watches their keys, in order, without gap or repeat.

Theory of operation. A watcher is in one of two states.

- *Current*: it has been handed everything up to the feed's revision. A new event is appended to its buffer in the same
  turn of the event loop in which it is applied.
- *Behind*: it starts in the past, or its reader was so slow that its buffer was full. Nothing is added to its buffer
  then; it knows the revision it wants next, and its reader is served from LMDB's history in slices. The slice that
  reaches the present makes it current again, in the same turn, so nothing can fall between.

The feed's revision is the store's, but for when a snapshot takes the place of the state: what changed in between was
applied nowhere here. The feed is behind then, reads that from history once, in slices, and hands it to all current
watchers as if it were just applied; a watcher that has read history further by itself skips what it knows. Where
history does not reach back, all current watchers fall behind, and their readers are told.

Watchers of the same range share one group, and its batches are built once. Events find their groups by the key
itself, by each of the prefix lengths in use, and by a table of the other ranges; nobody else is woken. Watchers are
told in the order in which they came, so that equal runs are equal.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Protocol

from quorate_core.errors import Compacted, Conflict, TooManyRequests, Unavailable

from quorate_store.model import RANGE_ALL, Event, WatchBatch, prefix_end
from quorate_store.state import Applied

WATCHERS_MAX = 20_000
"""Of one member."""
BUFFER_EVENTS_MAX = 1_024
"""Of one watcher; a batch that alone is larger is taken when nothing else waits."""
BUFFER_BYTES_MAX = 8 * 1024 * 1024
"""Of one watcher: keys and values. Batches are shared between watchers, but one alone may keep them alive."""
HISTORY_SLICE_ROWS = 512
"""Changes looked at at once for a watcher that is behind: about a millisecond."""
HISTORY_SLICES_A_TURN = 4
"""Of all such watchers together, in one turn of the event loop."""

_FIRST_KEY = b"\0"


class History(Protocol):
    """What the feed needs of the state machine."""

    @property
    def revision(self) -> int: ...
    def events(
        self, start: int, key: bytes, range_end: bytes, *, previous: bool, rows_max: int
    ) -> tuple[list[Event], int]: ...


class WatchGroup:
    """All current watchers of one range with one wish about previous values."""

    def __init__(self, key: bytes, range_end: bytes, *, previous: bool) -> None:
        self.key = key
        self.range_end = range_end
        self.previous = previous
        self.watchers: dict[Watcher, None] = {}

    def publish(self, revision: int, events: list[Event]) -> None:
        if not self.previous:
            events = [Event(event.kind, event.kv) for event in events]
        batch = WatchBatch(revision, tuple(events))
        size_bytes = sum(event.size_bytes for event in events)
        for watcher in tuple(self.watchers):  # one that falls behind leaves
            watcher.offer(batch, size_bytes)


class RangeTable:
    """Which groups cover a key, for ranges that are neither one key nor a prefix: between two neighbouring bounds
    the answer is the same, so it is worked out once for each such segment, after the groups have changed."""

    def __init__(self) -> None:
        self._groups: dict[WatchGroup, None] = {}
        self._bounds: list[bytes] | None = []
        self._covers: list[list[WatchGroup]] = [[]]

    def add(self, group: WatchGroup) -> None:
        self._groups[group] = None
        self._bounds = None

    def discard(self, group: WatchGroup) -> None:
        self._groups.pop(group, None)
        self._bounds = None

    def covering(self, key: bytes) -> list[WatchGroup]:
        bounds = self._bounds if self._bounds is not None else self._rebuild()
        return self._covers[bisect_right(bounds, key)]

    def _rebuild(self) -> list[bytes]:
        begin: dict[bytes, list[WatchGroup]] = {}
        end: dict[bytes, list[WatchGroup]] = {}
        for group in self._groups:
            if group.range_end == RANGE_ALL or group.key < group.range_end:
                begin.setdefault(group.key, []).append(group)
                if group.range_end != RANGE_ALL:
                    end.setdefault(group.range_end, []).append(group)
        bounds = sorted(begin.keys() | end.keys())
        covers: list[list[WatchGroup]] = []
        open_groups: dict[WatchGroup, None] = {}
        for bound in bounds:
            for group in end.get(bound, ()):
                del open_groups[group]
            open_groups.update(dict.fromkeys(begin.get(bound, ())))
            covers.append(list(open_groups))
        self._bounds, self._covers = bounds, [[], *covers]
        return bounds


class GroupIndex:
    """Finds the groups that watch a key, without looking at those that do not."""

    def __init__(self) -> None:
        self._all: dict[tuple[bytes, bytes, bool], WatchGroup] = {}
        self._exact: dict[bytes, list[WatchGroup]] = {}
        self._prefixes: dict[int, dict[bytes, list[WatchGroup]]] = {}
        self._ranges = RangeTable()

    def __len__(self) -> int:
        return len(self._all)

    def obtain(self, key: bytes, range_end: bytes, *, previous: bool) -> WatchGroup:
        group = self._all.get((key, range_end, previous))
        if group is None:
            group = self._all[key, range_end, previous] = WatchGroup(key, range_end, previous=previous)
            if not range_end:
                self._exact.setdefault(key, []).append(group)
            elif _is_prefix(key, range_end):
                self._prefixes.setdefault(len(key), {}).setdefault(key, []).append(group)
            else:
                self._ranges.add(group)
        return group

    def drop(self, group: WatchGroup) -> None:
        del self._all[group.key, group.range_end, group.previous]
        if not group.range_end:
            _drop_from(self._exact, group)
        elif _is_prefix(group.key, group.range_end):
            length = len(group.key)
            _drop_from(self._prefixes[length], group)
            if not self._prefixes[length]:
                del self._prefixes[length]
        else:
            self._ranges.discard(group)

    def __iter__(self) -> Iterator[WatchGroup]:
        return iter(self._all.values())

    def watching(self, key: bytes) -> Iterator[WatchGroup]:
        yield from self._exact.get(key, ())
        for length, prefixes in self._prefixes.items():
            yield from prefixes.get(key[:length], ())
        yield from self._ranges.covering(key)


def _is_prefix(key: bytes, range_end: bytes) -> bool:
    return range_end != RANGE_ALL and range_end == prefix_end(key)


def _drop_from(groups: dict[bytes, list[WatchGroup]], group: WatchGroup) -> None:
    groups[group.key].remove(group)
    if not groups[group.key]:
        del groups[group.key]


class WatchFeed:
    """Hands what was applied to the watchers of one member."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._index = GroupIndex()
        self._watchers: dict[Watcher, None] = {}
        """In the order in which they were opened."""
        self._behind = asyncio.Event()
        """Set while the feed is behind."""
        self.revision = history.revision
        """Up to here, all current watchers have been handed everything."""
        self.closed = False
        self.history_turns = asyncio.Semaphore(HISTORY_SLICES_A_TURN)

    def __len__(self) -> int:
        return len(self._watchers)

    @property
    def is_behind(self) -> bool:
        return self._behind.is_set()

    def on_applied(self, applied: Applied) -> None:
        """To be called in the same turn of the event loop in which the batch was applied."""
        if self.is_behind:
            return  # it is in history by now
        self.revision = applied.revision
        if len(self._index) and applied.changes:
            self._publish(applied.revision, [event for _, events in applied.changes for event in events])

    def on_replaced(self) -> None:
        """To be called in the same turn of the event loop in which a snapshot became the state."""
        if self._history.revision > self.revision:
            self._behind.set()

    async def run(self) -> None:
        """Catch up whenever the feed is behind, until cancelled."""
        while True:
            await self._behind.wait()
            self.catch_up()
            await asyncio.sleep(0)  # other work goes on between two slices of history

    def catch_up(self) -> None:
        """Hand out one slice of history. When it reaches the present, the feed is not behind any more."""
        present = self._history.revision
        if not len(self._index):
            self.revision = present
        else:
            self._hand_out_history()
        if self.revision >= present:
            self._behind.clear()
            for watcher in self._watchers:
                watcher.feed_caught_up()

    def _hand_out_history(self) -> None:
        try:
            events, reached = self._history.events(
                self.revision + 1, _FIRST_KEY, RANGE_ALL, previous=True, rows_max=HISTORY_SLICE_ROWS
            )
        except Compacted:
            for watcher in [watcher for group in self._index for watcher in group.watchers]:
                watcher.feed_lost_history(self.revision + 1)
            self.revision = self._history.revision
        else:
            self._publish(reached, events)
            self.revision = reached

    def _publish(self, revision: int, events: list[Event]) -> None:
        found: dict[WatchGroup, list[Event]] = {}
        for event in events:
            for group in self._index.watching(event.kv.key):
                found.setdefault(group, []).append(event)
        for group, group_events in found.items():
            group.publish(revision, group_events)

    def watch(self, key: bytes, range_end: bytes, *, start_revision: int, previous: bool) -> "OpenWatch":
        """Use as `async with`. See `port.Store.watch`."""
        return OpenWatch(self, self._history, key, range_end, start_revision, previous)

    def admit(self, watcher: "Watcher") -> None:
        """Raises Unavailable when closing, TooManyRequests over WATCHERS_MAX."""
        if self.closed:
            raise Unavailable("the store is closing; watch at another member")
        if len(self._watchers) >= WATCHERS_MAX:
            raise TooManyRequests(f"{WATCHERS_MAX} watches are open at this member; that is its limit")
        self._watchers[watcher] = None

    def join(self, watcher: "Watcher", key: bytes, range_end: bytes, *, previous: bool) -> WatchGroup:
        """From here on `watcher` is current: it is offered every event of its range."""
        group = self._index.obtain(key, range_end, previous=previous)
        group.watchers[watcher] = None
        return group

    def leave(self, watcher: "Watcher", group: WatchGroup) -> None:
        group.watchers.pop(watcher, None)
        if not group.watchers:
            self._index.drop(group)

    def dismiss(self, watcher: "Watcher") -> None:
        self._watchers.pop(watcher, None)

    def close(self) -> None:
        """End every watch: its reader gets what is in its buffer, then Unavailable."""
        self.closed = True
        for watcher in self._watchers:
            watcher.wake()


class OpenWatch:
    """The context manager around a watcher."""

    def __init__(
        self, feed: WatchFeed, history: History, key: bytes, range_end: bytes, start_revision: int, previous: bool
    ) -> None:
        self._watcher = Watcher(feed, history, key, range_end, start_revision, previous)

    async def __aenter__(self) -> "Watcher":
        self._watcher.open()
        return self._watcher

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.close()


class Watcher:
    """One open watch, with one reader. `port.Watch`."""

    def __init__(
        self, feed: WatchFeed, history: History, key: bytes, range_end: bytes, start_revision: int, previous: bool
    ) -> None:
        self._feed = feed
        self._history = history
        self._key = key
        self._range_end = range_end
        self._previous = previous
        self._next_revision = start_revision
        """While behind: the first revision that has not been read yet. While current: events below it are not for
        this watcher (it starts in the future)."""
        self._group: WatchGroup | None = None
        """The group while current, None while behind."""
        self._opening: WatchBatch | None = None
        """The bookmark that a watch from now on begins with. Never dropped, unlike the buffer."""
        self._buffer: deque[tuple[WatchBatch, int]] = deque()
        self._buffer_events = 0
        self._buffer_bytes = 0
        self._is_progress_wanted = False
        self._wakeup: asyncio.Future[None] | None = None
        self._closed = False

    def open(self) -> None:
        self._feed.admit(self)
        if self._next_revision == 0:
            present = self._history.revision
            self._opening = WatchBatch(present)
            self._next_revision = present + 1
            self._become_current()

    def close(self) -> None:
        self._closed = True
        self._become_behind(self._next_revision)
        self._feed.dismiss(self)
        self.wake()

    def offer(self, batch: WatchBatch, size_bytes: int) -> None:
        """Take the events of a batch that was just applied."""
        if batch.events[0].kv.mod_revision < self._next_revision:
            events = tuple(event for event in batch.events if event.kv.mod_revision >= self._next_revision)
            if not events:
                return
            batch = WatchBatch(batch.revision, events)
        if self._buffer_events and (
            self._buffer_events + len(batch.events) > BUFFER_EVENTS_MAX
            or self._buffer_bytes + size_bytes > BUFFER_BYTES_MAX
        ):
            self._fall_behind()
            return
        self._buffer.append((batch, size_bytes))
        self._buffer_events += len(batch.events)
        self._buffer_bytes += size_bytes
        self.wake()

    def feed_caught_up(self) -> None:
        """Nothing is on its way to current watchers any more."""
        if self._group is not None:
            self._append_wanted_bookmark()

    def feed_lost_history(self, first_missing: int) -> None:
        """Events from revision `first_missing` on cannot be handed out. What is in the buffer still holds."""
        self._become_behind(max(self._next_revision, first_missing))
        self.wake()

    async def request_progress(self) -> None:
        if self._group is None or self._feed.is_behind:
            self._is_progress_wanted = True
        else:
            self._append_bookmark()

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        return self

    async def __anext__(self) -> WatchBatch:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            return opening
        while not self._closed:
            batch = await self._read_history_in_turn() if self._is_behind else self._take()
            if batch is not None:
                return batch
            if self._feed.closed:
                raise Unavailable("the store is closing; resume the watch at another member")
            if self._group is not None:
                await self._wait()
        raise StopAsyncIteration

    def wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _wait(self) -> None:
        if self._wakeup is not None:
            raise Conflict("a watch has one reader; open another watch for another reader")
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    @property
    def _is_behind(self) -> bool:
        """Whether history comes next."""
        return self._group is None and not self._buffer

    async def _read_history_in_turn(self) -> WatchBatch | None:
        """Other work goes on between two slices of history, however fast the reader is and however many there are."""
        async with self._feed.history_turns:
            await asyncio.sleep(0)  # before reading: whoever is cancelled here has missed nothing
            return self._take()

    def _take(self) -> WatchBatch | None:
        if self._is_behind:
            batch = self._read_history()
            if batch is not None:
                return batch
        if not self._buffer:
            return None
        batch, size_bytes = self._buffer.popleft()
        self._buffer_events -= len(batch.events)
        self._buffer_bytes -= size_bytes
        return batch

    def _read_history(self) -> WatchBatch | None:
        present = self._history.revision
        events: list[Event] = []
        if self._next_revision <= present:
            events, reached = self._history.events(
                self._next_revision, self._key, self._range_end, previous=self._previous, rows_max=HISTORY_SLICE_ROWS
            )
            self._next_revision = reached + 1
        if self._next_revision > present:
            self._become_current()
        return WatchBatch(self._next_revision - 1, tuple(events)) if events else None

    def _become_current(self) -> None:
        self._group = self._feed.join(self, self._key, self._range_end, previous=self._previous)
        self._append_wanted_bookmark()

    def _fall_behind(self) -> None:
        """The buffer is full: forget it and begin again, from history, with the first event that was in it."""
        first = next(batch for batch, _ in self._buffer if batch.events)
        self._is_progress_wanted |= any(not batch.events for batch, _ in self._buffer)
        self._buffer.clear()
        self._buffer_events = self._buffer_bytes = 0
        self._become_behind(first.events[0].kv.mod_revision)

    def _become_behind(self, next_revision: int) -> None:
        self._next_revision = next_revision
        if self._group is not None:
            self._feed.leave(self, self._group)
            self._group = None

    def _append_wanted_bookmark(self) -> None:
        if self._is_progress_wanted:
            self._is_progress_wanted = False
            self._append_bookmark()

    def _append_bookmark(self) -> None:
        """Two bookmarks in a row say no more than the second, so the buffer cannot grow by asking."""
        if self._buffer and not self._buffer[-1][0].events:
            self._buffer.pop()
        self._buffer.append((WatchBatch(self._history.revision), 0))
        self.wake()

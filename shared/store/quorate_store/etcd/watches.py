"""A watch on a store elsewhere: from the feed, or from the store's own history until that meets the feed.

Theory of operation. A watch is in one of two states.

- *Near*: served by the feed: from its newest changes, and then as they come. A watch from now on begins here.
- *Far*: it begins, or goes on, before what the feed has kept. A stream of its own reads the store's history of its
  range. It becomes near when that has told of a change that the feed has kept, or any after it. In a range that
  nothing happens in, that may never be; which is no harm, but for progress: how far a stream of some keys is cannot be
  told (see `feed`). Who asks for it then gets a stream of all keys instead, from where it was, for as long as it takes
  to become near. That is costly when it is very far; no other way is sure.

Whether history reaches back is the store's to say: each watch from the past begins by a read at that revision. So the
feed does not serve what the store has compacted.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType

import structlog
from quorate_core.errors import (
    Compacted,
    Conflict,
    FutureRevision,
    NotProposed,
    QuorateError,
    TooManyRequests,
    Unavailable,
)
from quorate_core.tasks import TaskOwner

from quorate_store.etcd.client import StoreClient
from quorate_store.etcd.feed import BACKOFF_S_MAX, BACKOFF_S_MIN, FIRST_KEY, Feed, Wait
from quorate_store.etcd.recent import NotKept
from quorate_store.etcd.watch_stream import Revisions, watch_stream
from quorate_store.key_index import is_in_range
from quorate_store.model import RANGE_ALL, Event, RangeResult, WatchBatch
from quorate_store.watches import OpenWatch, Watcher

FAR_MAX = 200
"""Streams of their own, of one process."""
FAR_BATCHES_MAX = 16
"""Read ahead of who reads them."""
RECENT_LOOKED_AT_MAX = 500
"""Changes, to see whether a far stream is silent for a reason."""

log = structlog.get_logger(__name__)

ReadAt = Callable[[bytes, int], Awaitable[RangeResult]]
"""A linearizable read of how many keys there are of this name, at this revision (0: the newest)."""
ObtainFeed = Callable[[int], Feed]
"""A feed that runs; given the store's revision as it was read just now."""


class FarStream:
    """Reads the store's history of a range from `start_revision` on, by a task of its own, until it is closed."""

    def __init__(
        self, client: StoreClient, feed: Feed, key: bytes, range_end: bytes, start_revision: int, *, previous: bool,
        wait: Wait,
    ) -> None:  # fmt: skip
        self._client = client
        self._feed = feed
        self._key = key
        self._range_end = range_end
        self._next_revision = start_revision
        self._previous = previous
        self._wait = wait
        self._is_wide = False
        """All keys are asked for, to know how far it is."""
        self._batches: asyncio.Queue[WatchBatch | QuorateError] = asyncio.Queue(FAR_BATCHES_MAX)
        self._patience: asyncio.Timeout | None = None
        self._silent_before: int | None = None
        """The revision at which it was when it was found silent."""
        self._is_waiting = False
        """For the store, and not for its reader."""
        self._has_ended = False

    async def next_batch(self) -> WatchBatch:
        """May have no events, when it has become wide. Raises Compacted, refusals, and Unavailable at the end."""
        if self._has_ended and self._batches.empty():
            raise _closing()
        batch = await self._batches.get()
        if isinstance(batch, QuorateError):
            raise batch
        return batch

    def widen(self) -> None:
        """Begin anew where it is, with all keys."""
        if not self._is_wide:
            self._is_wide = True
            self._break_off()

    def look_after(self) -> None:
        """Break off a stream that has not told of a change which the feed has told of, twice in a row."""
        if not self._is_waiting or not self._has_missed():
            self._silent_before = None
        elif self._silent_before == self._next_revision:
            self._break_off()
        else:
            self._silent_before = self._next_revision

    async def run(self) -> None:
        """Until cancelled, or the store refuses it."""
        try:
            await self._read()
        except QuorateError as error:
            await self._batches.put(error)
        finally:
            self._has_ended = True
            if self._batches.empty():
                self._batches.put_nowait(_closing())

    async def _read(self) -> None:
        backoff_s = BACKOFF_S_MIN
        while True:
            before = self._next_revision
            try:
                await self._read_stream()
            except (NotProposed, Unavailable) as error:
                log.info("store_history_broke", revision=self._next_revision, reason=error.detail)
            backoff_s = BACKOFF_S_MIN if self._next_revision > before else min(2 * backoff_s, BACKOFF_S_MAX)
            await self._wait(backoff_s)

    async def _read_stream(self) -> None:
        key, range_end = (FIRST_KEY, RANGE_ALL) if self._is_wide else (self._key, self._range_end)
        is_wide = self._is_wide
        async with watch_stream(
            self._client, key, range_end, self._next_revision, previous=self._previous
        ) as stream:  # fmt: skip
            try:
                async with asyncio.timeout(None) as self._patience:
                    if is_wide != self._is_wide:
                        return
                    self._is_waiting = True
                    async for revisions in stream:
                        self._is_waiting = False
                        await self._hand_over(revisions)
                        self._is_waiting = True
            except TimeoutError:
                if is_wide == self._is_wide:
                    stream.source.failed()
            except Unavailable:
                stream.source.failed()
                raise
            finally:
                self._patience = None
                self._is_waiting = False

    async def _hand_over(self, revisions: Revisions) -> None:
        events: list[Event] = []
        for revision, changed in revisions:
            if revision >= self._next_revision:
                events += [event for event in changed if is_in_range(event.kv.key, self._key, self._range_end)]
        reached = revisions[-1][0]
        if reached >= self._next_revision:
            await self._batches.put(WatchBatch(reached, tuple(events)))
            # NB: only now, as to wait for room may be cut short, and then it is read again.
            self._next_revision = reached + 1

    def _has_missed(self) -> bool:
        recent = self._feed.recent
        start = max(self._next_revision, recent.first)
        if start > recent.revision:
            return False
        events, _ = recent.events(
            start, self._key, self._range_end, previous=False, rows_max=RECENT_LOOKED_AT_MAX
        )  # fmt: skip
        return bool(events)

    def _break_off(self) -> None:
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())


def _closing() -> Unavailable:
    return Unavailable("the store is closing; resume the watch at another node")


class FarStreams:
    """Makes them, and bounds how many there are."""

    def __init__(self, client: StoreClient, tasks: TaskOwner, wait: Wait) -> None:
        self._client = client
        self._tasks = tasks
        self._wait = wait
        self._running: set[asyncio.Task[None]] = set()

    def begin(
        self, feed: Feed, key: bytes, range_end: bytes, start_revision: int, *, previous: bool
    ) -> tuple[FarStream, asyncio.Task[None]]:
        """Raises TooManyRequests."""
        if len(self._running) >= FAR_MAX:
            raise TooManyRequests(f"{FAR_MAX} watches read the store's history here; that is the limit")
        stream = FarStream(self._client, feed, key, range_end, start_revision, previous=previous, wait=self._wait)
        task = self._tasks.start(stream.run(), "watch of history")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return stream, task

    async def close(self) -> None:
        """End them; their readers get what was read, and then Unavailable."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class EtcdWatch:
    """`port.Watch`, and the context manager around it."""

    def __init__(
        self, read_at: ReadAt, obtain_feed: ObtainFeed, far_streams: FarStreams, key: bytes, range_end: bytes,
        start_revision: int, *, previous: bool,
    ) -> None:  # fmt: skip
        self._read_at = read_at
        self._obtain_feed = obtain_feed
        self._far_streams = far_streams
        self._key = key
        self._range_end = range_end
        self._next_revision = start_revision
        """The first that its reader has not been told of; 0 until a watch from now on knows."""
        self._previous = previous
        self._feed: Feed
        self._near: tuple[OpenWatch, Watcher] | None = None
        self._far: tuple[FarStream, asyncio.Task[None]] | None = None
        """Neither of them: it was near, and the feed does not reach back."""
        self._refusal: QuorateError | None = None
        """What the first reading raises."""
        self._progress_wanted = 0
        """The revision that a bookmark is wanted of; 0 when none is."""
        self._is_reading = False

    async def __aenter__(self) -> "EtcdWatch":
        present = await self._find_present()
        self._feed = self._obtain_feed(present)
        if self._next_revision == 0:
            await self._feed.reach(present)
        if self._refusal is None:
            await self._become_near()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave_near()
        await self._leave_far()

    async def request_progress(self) -> None:
        """See `port.Watch`. Raises NotProposed and DeadlineExceeded when the store does not say how far it is."""
        found = await self._read_at(self._key, 0)
        await self._feed.reach(found.revision)
        self._progress_wanted = found.revision
        if self._near is not None:
            await self._near[1].request_progress()
        elif self._far is not None:
            self._far[0].widen()

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        return self

    async def __anext__(self) -> WatchBatch:
        if self._is_reading:
            raise Conflict("a watch has one reader; open another watch for another reader")
        self._is_reading = True
        try:
            return await self._next_batch()
        finally:
            self._is_reading = False

    async def _next_batch(self) -> WatchBatch:
        if self._refusal is not None:
            raise self._refusal
        while True:
            if self._near is None:
                await self._come_nearer()
            batch = await (self._next_near(self._near[1]) if self._near is not None else self._next_far())
            if batch is not None:
                return batch

    async def _find_present(self) -> int:
        """The store's revision, after the watch's own has been tried."""
        try:
            return (await self._read_at(self._key, self._next_revision)).revision
        except FutureRevision:
            pass
        except Compacted as error:
            self._refusal = error
        return (await self._read_at(self._key, 0)).revision

    async def _next_near(self, watcher: Watcher) -> WatchBatch | None:
        try:
            batch = await anext(watcher)
        except NotKept:
            await self._leave_near()
            return None
        self._next_revision = batch.revision + 1
        if not batch.events and batch.revision >= self._progress_wanted:
            self._progress_wanted = 0
        return batch

    async def _next_far(self) -> WatchBatch | None:
        if self._far is None:
            return None
        # NB: after this nothing is awaited, so that a reader that is cancelled misses nothing.
        batch = await self._far[0].next_batch()
        self._next_revision = batch.revision + 1
        return batch if batch.events else None

    async def _come_nearer(self) -> None:
        """Become near if the feed reaches back to where the watch goes on, and else far if it is not."""
        if self._next_revision >= self._feed.recent.first or self._is_empty:
            await self._leave_far()
            await self._become_near()
        elif self._far is None:
            self._far = self._far_streams.begin(
                self._feed, self._key, self._range_end, self._next_revision, previous=self._previous
            )
            self._feed.add_follower(self._far[0])
            if self._progress_wanted:
                self._far[0].widen()

    @property
    def _is_empty(self) -> bool:
        """No key can be in the range, which etcd does not watch."""
        return self._range_end not in (b"", RANGE_ALL) and self._range_end <= self._key

    async def _become_near(self) -> None:
        start = max(self._next_revision, self._feed.recent.first) if self._is_empty else self._next_revision
        opened = self._feed.watch(self._key, self._range_end, start)
        self._near = opened, await opened.__aenter__()
        if self._progress_wanted:
            await self._near[1].request_progress()

    async def _leave_near(self) -> None:
        if self._near is not None:
            opened, self._near = self._near[0], None
            await opened.__aexit__(None, None, None)

    async def _leave_far(self) -> None:
        if self._far is not None:
            (stream, task), self._far = self._far, None
            self._feed.discard_follower(stream)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

"""A watch on a store elsewhere: from the feed, or from the store's own history until that meets the feed.

Theory of operation. A watch is in one of two states.

- *Near*: served by the feed: from its newest changes, and then as they come. A watch from now on begins here.
- *Far*: it begins, or goes on, before what the feed has kept. A stream of its own reads the store's history of its
  range (`far_streams`). It becomes near when that has told of a change that the feed has kept, or any after it. In a
  range that nothing happens in, that may take for ever, as how far a stream of some keys is cannot be told (see
  `feed`). Who asks for progress then gets a stream of all keys instead, from where it was, for as long as it takes to
  become near; and so does, after a while, a range that stays quiet. That is costly when it is very far; no other way is
  sure.

Whether history reaches back is the store's to say: each watch from the past begins by a read at that revision. So the
feed does not serve what the store has compacted.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType

from quorate_core.errors import Compacted, Conflict, FutureRevision, QuorateError

from quorate_store.etcd.far_streams import FarStream, FarStreams
from quorate_store.etcd.feed import Feed
from quorate_store.etcd.recent import NotKept
from quorate_store.model import RANGE_ALL, RangeResult, WatchBatch
from quorate_store.watches import OpenWatch, Watcher

ReadAt = Callable[[bytes, int], Awaitable[RangeResult]]
"""A linearizable read of how many keys there are of this name, at this revision (0: the newest)."""
ObtainFeed = Callable[[int], Feed]
"""A feed that runs; given the store's revision as it was read just now."""


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

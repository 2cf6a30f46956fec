"""Streams of the store's history of a range, for watches that are behind what the feed has kept.

Theory of operation. A stream reads on from where its watch is, and hands batches to one reader, one at a time: what its
reader has not taken waits at the store. It begins again where it was when it breaks. Every PROBE_INTERVAL_S the feed
looks after it (`look_after`), and finds it in one of these states.

- *Moving*: bytes have come since the last look, or its reader has something to take. All is well.
- *Silent*: nothing has come, though the feed has told of a change in the range that it has not told of. After two such
  looks it is broken off, and begins again at the next endpoint; after twice as many the next time, as a store may have
  to search long history before it finds anything to tell.
- *Quiet*: nothing has come, and nothing has happened in the range as far as the feed knows. After QUIET_LOOKS_MAX looks
  it becomes *wide*: it begins anew where it is, with all keys, which tell how far it is, and so it meets the feed. By
  that alone nothing is missed. But the new stream is refused where its beginning is compacted by now, which a stream
  that has begun does not mind; so that is asked first, and the stream left as it is then. WIDENED_MAX of them read all
  history at a time.
"""

import asyncio

import structlog
from quorate_core.clock import Clock
from quorate_core.errors import NotProposed, QuorateError, TooManyRequests, Unavailable
from quorate_core.tasks import TaskOwner

from quorate_store.etcd.client import StoreClient
from quorate_store.etcd.feed import FIRST_KEY, Feed, Wait
from quorate_store.etcd.ranges import read_range
from quorate_store.etcd.retries import WORKED_S_MIN, Retries
from quorate_store.etcd.watch_stream import Revisions, WatchStream, watch_stream
from quorate_store.key_index import is_in_range
from quorate_store.model import RANGE_ALL, Event, RangeOp, WatchBatch

FAR_MAX = 200
"""Of one process."""
FAR_BATCHES_MAX = 1
"""Read ahead of who reads them: some 2 MiB each, of as many streams as there may be."""
RECENT_LOOKED_AT_MAX = 2_000
"""Changes that the feed has told of, at one look: well under a millisecond."""
SILENT_LOOKS_MIN = 2
SILENT_LOOKS_MAX = 64
QUIET_LOOKS_MAX = 60
WIDENED_MAX = 4
"""Because they were quiet, at a time."""

log = structlog.get_logger(__name__)


class FarStream:
    """Reads the store's history of a range from `start_revision` on, by a task of its own, until it is closed."""

    def __init__(
        self, client: StoreClient, feed: Feed, key: bytes, range_end: bytes, start_revision: int, *, previous: bool,
        clock: Clock, wait: Wait, widened: asyncio.Semaphore,
    ) -> None:  # fmt: skip
        self._client = client
        self._feed = feed
        self._key = key
        self._range_end = range_end
        self._next_revision = start_revision
        self._previous = previous
        self._clock = clock
        self._wait = wait
        self._widened = widened
        self._is_wide = False
        """All keys are asked for, to know how far it is."""
        self._batches: asyncio.Queue[WatchBatch | QuorateError] = asyncio.Queue(FAR_BATCHES_MAX)
        self._reading: tuple[WatchStream, asyncio.Timeout] | None = None
        """The stream, and what ends to break it off."""
        self._stood_at: tuple[WatchStream, int] | None = None
        """What was found at the last look: which stream, and how much of it had come; None when it was moving."""
        self._silent_looks = 0
        self._silent_looks_allowed = SILENT_LOOKS_MIN
        self._quiet_looks = 0
        self._is_quiet = asyncio.Event()
        self._looked_to = 0
        """Of the changes that the feed has told of, those up to this revision were looked at."""
        self._told_at = 0
        """The last revision with a change in the range that the feed has told of, as far as was looked."""
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
        """Break off a silent stream, and find out whether it is quiet. Called every PROBE_INTERVAL_S."""
        self._look_at_recent()
        standing = self._standing()
        if standing is None or standing != self._stood_at:
            self._stood_at, self._silent_looks, self._quiet_looks = standing, 0, 0
        if standing is None:
            return
        if self._next_revision <= self._told_at:
            self._silent_looks += 1
            if self._silent_looks >= self._silent_looks_allowed:
                self._silent_looks_allowed = min(2 * self._silent_looks_allowed, SILENT_LOOKS_MAX)
                self._break_off()
            return
        self._quiet_looks += 1
        if self._quiet_looks >= QUIET_LOOKS_MAX and not self._is_wide:
            self._quiet_looks = 0
            self._is_quiet.set()

    def _standing(self) -> tuple[WatchStream, int] | None:
        """Equal ones have nothing in between. None when it waits for its reader, or for an endpoint."""
        if self._reading is None or not self._is_waiting:
            return None
        return self._reading[0], self._reading[0].heard_bytes

    def _look_at_recent(self) -> None:
        recent = self._feed.recent
        start = max(self._looked_to + 1, self._next_revision, recent.first)
        if start > recent.revision:
            return
        events, self._looked_to = recent.events(
            start, self._key, self._range_end, previous=False, rows_max=RECENT_LOOKED_AT_MAX
        )  # fmt: skip
        if self._is_wide:
            self._told_at = recent.revision
        elif events:
            self._told_at = events[-1].kv.mod_revision

    async def run(self) -> None:
        """Until cancelled, or the store refuses it."""
        async with asyncio.TaskGroup() as group:
            widening = group.create_task(self._widen_when_quiet())
            try:
                await self._read()
            except QuorateError as error:
                await self._batches.put(error)
            finally:
                widening.cancel()
                self._has_ended = True
                if self._batches.empty():
                    self._batches.put_nowait(_closing())

    async def _widen_when_quiet(self) -> None:
        while not self._is_wide:
            await self._is_quiet.wait()
            self._is_quiet.clear()
            async with self._widened:
                before = self._next_revision
                if await self._reaches_back() and self._next_revision == before:
                    self.widen()
                    await asyncio.Event().wait()  # until it has met the feed, and is ended

    async def _reaches_back(self) -> bool:
        """Whether the store's history does, to where a new stream would begin."""
        op = RangeOp(self._key, revision=self._next_revision, count_only=True)
        try:
            await read_range(self._client, op, serializable=False)
        except QuorateError:
            return False
        return True

    async def _read(self) -> None:
        retries = Retries()
        while True:
            before, began_s = self._next_revision, self._clock.monotonic_s()
            broke: QuorateError | None = None
            try:
                await self._read_stream()
            except (NotProposed, Unavailable) as error:
                broke = error
            lasted_s = self._clock.monotonic_s() - began_s
            has_worked = self._next_revision > before or lasted_s >= WORKED_S_MIN
            pause_s, is_told = retries.ended(has_worked=has_worked)
            if broke is not None and is_told:
                log.info(
                    "store_history_broke", revision=self._next_revision, failures=retries.failures, reason=broke.detail
                )  # fmt: skip
            await self._wait(pause_s)

    async def _read_stream(self) -> None:
        key, range_end = (FIRST_KEY, RANGE_ALL) if self._is_wide else (self._key, self._range_end)
        is_wide = self._is_wide
        async with watch_stream(
            self._client, key, range_end, self._next_revision, previous=self._previous
        ) as stream:  # fmt: skip
            try:
                async with asyncio.timeout(None) as patience:
                    if is_wide != self._is_wide:
                        return
                    self._reading = stream, patience
                    self._is_waiting = True
                    async for revisions in stream:
                        self._is_waiting = False
                        await self._hand_over(revisions)
                        self._is_waiting = True
            except TimeoutError:
                if is_wide == self._is_wide:
                    stream.source.failed()
                    raise Unavailable("the endpoint has not told of changes that there are") from None
            except Unavailable:
                stream.source.failed()
                raise
            finally:
                self._reading = None
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
            self._silent_looks_allowed = SILENT_LOOKS_MIN

    def _break_off(self) -> None:
        if self._reading is not None and not self._reading[1].expired():
            self._reading[1].reschedule(asyncio.get_running_loop().time())


def _closing() -> Unavailable:
    return Unavailable("the store is closing; resume the watch at another node")


class FarStreams:
    """Makes them, and bounds how many there are."""

    def __init__(self, client: StoreClient, tasks: TaskOwner, clock: Clock, wait: Wait) -> None:
        self._client = client
        self._tasks = tasks
        self._clock = clock
        self._wait = wait
        self._widened = asyncio.Semaphore(WIDENED_MAX)
        self._running: set[asyncio.Task[None]] = set()

    def begin(
        self, feed: Feed, key: bytes, range_end: bytes, start_revision: int, *, previous: bool
    ) -> tuple[FarStream, asyncio.Task[None]]:
        """Raises TooManyRequests."""
        if len(self._running) >= FAR_MAX:
            raise TooManyRequests(f"{FAR_MAX} watches read the store's history here; that is the limit")
        stream = FarStream(
            self._client, feed, key, range_end, start_revision, previous=previous,
            clock=self._clock, wait=self._wait, widened=self._widened,
        )  # fmt: skip
        task = self._tasks.start(stream.run(), "watch of history")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return stream, task

    async def close(self) -> None:
        """End them; their readers get what was read, and then Unavailable."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

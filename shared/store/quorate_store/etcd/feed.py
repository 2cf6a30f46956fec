"""The feed: one watch of the whole store, from which all watches of this process are served.

Theory of operation. The feed watches every key there is. So it sees every revision, each of them has at least one
event, and to know whether it has seen everything up to one it needs no more than to have got there: that is what
bookmarks are made of, and why no revision can be missed unseen. (Of a watch of some keys, etcd's JSON API cannot tell
how far it is: over HTTP/1.1 progress cannot be asked for once a watch has begun, and etcd before 3.4.25 answers before
it has sent what is older.) Local watches are served by `watches.WatchFeed`, as a member's are, with the newest changes
(`recent`) for a history. Thousands of them cost the store one watch; a store that others write to as well costs this
process their changes too.

The stream breaks, or goes silent: an endpoint dies, or is cut off from its majority, or paused. The first is seen at
once. For the second, a linearizable read asks every PROBE_INTERVAL_S how far the store is. When the feed is not there
and not a byte comes for STALE_S, the stream is broken off (bytes, as one revision alone may be long in coming). In both
cases the feed goes on from the next revision at the next endpoint. When that is compacted by then, local watches are
told that the feed has lost history; each begins anew from the store's, if it can.

A revision that is left out is asked for again, at the next endpoint: a lost event must not pass for none. When that
leaves it out as well, the store has no event of it (etcd's compaction takes a deletion at the very revision that it
leaves history from), and the feed goes on behind the gap.

A feed lives while somebody has use for it, and for IDLE_S more. There are two, with and without previous values.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Protocol

import structlog
from quorate_core.clock import Clock
from quorate_core.errors import Compacted, DeadlineExceeded, InvariantViolation, QuorateError, Unavailable

from quorate_store.etcd.client import StoreClient
from quorate_store.etcd.recent import RecentChanges
from quorate_store.etcd.retries import WORKED_S_MIN, Retries
from quorate_store.etcd.watch_stream import Revisions, WatchStream, watch_stream
from quorate_store.model import RANGE_ALL, Event
from quorate_store.state import Applied
from quorate_store.watches import OpenWatch, WatchFeed

FIRST_KEY = b"\0"
REACH_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 1.0
STALE_S = 1.0
GAP_REVISIONS_MAX = 1_000
"""Left out by the store, and taken to have no events; more of them are history that was lost."""
IDLE_S = 60.0

Wait = Callable[[float], Awaitable[None]]

log = structlog.get_logger(__name__)


class Follower(Protocol):
    """Somebody who reads history of the store by a stream of its own, and can be looked after."""

    def look_after(self) -> None:
        """Called every PROBE_INTERVAL_S."""
        ...


class Feed:
    """`present` is a linearizable read of the store's revision. `recent` is filled by the feed, from where it is on."""

    def __init__(
        self,
        client: StoreClient,
        clock: Clock,
        present: Callable[[], Awaitable[int]],
        recent: RecentChanges,
        *,
        previous: bool,
        wait: Wait = asyncio.sleep,
    ) -> None:
        self._client = client
        self._clock = clock
        self._present = present
        self._previous = previous
        self._wait = wait
        self._recent = recent
        self._watches = WatchFeed(self._recent)
        self._followers: dict[Follower, None] = {}
        self._awaiting: list[tuple[int, int, asyncio.Future[None]]] = []
        """Who waits for which revision: a heap. The second makes them comparable."""
        self._tickets = count()
        self._reading: tuple[WatchStream, asyncio.Timeout] | None = None
        """The stream that is being read, and what ends to break it off."""
        self._gap_at = 0
        """The revision that was asked for again."""
        self._has_ended = False

    @property
    def recent(self) -> RecentChanges:
        return self._recent

    @property
    def has_ended(self) -> bool:
        """It serves nobody any more; who wants to watch makes another one."""
        return self._has_ended

    def watch(self, key: bytes, range_end: bytes, start_revision: int) -> OpenWatch:
        """From 0: from what the feed has reached. Iterating it raises NotKept when the newest changes do not reach
        back."""
        return self._watches.watch(key, range_end, start_revision=start_revision, previous=self._previous)

    def add_follower(self, follower: Follower) -> None:
        self._followers[follower] = None

    def discard_follower(self, follower: Follower) -> None:
        self._followers.pop(follower, None)

    async def reach(self, revision: int) -> None:
        """Returns when all up to `revision` has been handed out. Raises DeadlineExceeded."""
        if self._recent.revision >= revision:
            return
        reached = asyncio.get_running_loop().create_future()
        heapq.heappush(self._awaiting, (revision, next(self._tickets), reached))
        try:
            async with asyncio.timeout(REACH_TIMEOUT_S):
                await reached
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the watch of the store has come to revision {self._recent.revision}, and not to {revision} in time"
            ) from error
        finally:
            reached.cancel()

    def close(self) -> None:
        """End all watches: their readers get what is in their buffers, and then Unavailable."""
        self._has_ended = True
        self._watches.close()

    async def run(self) -> None:
        """Until nobody has had use for it for IDLE_S, or it is cancelled. Raises InvariantViolation when the store has
        lost changes that it had told of."""
        try:
            async with asyncio.TaskGroup() as both:
                reading = both.create_task(self._read())
                both.create_task(self._look_after(reading))
        except* InvariantViolation as violations:
            raise violations.exceptions[0] from None
        finally:
            self.close()

    async def _read(self) -> None:
        """Until cancelled."""
        retries = Retries()
        while True:
            before, began_s = self._recent.revision, self._clock.monotonic_s()
            broke: QuorateError | None = None
            try:
                await self._read_stream()
            except Compacted as error:
                first = int(error.extensions.get("compact_revision", 0))
                if first:
                    log.warning("store_watch_lost_history", revision=self._recent.revision, reason=error.detail)
                    self._lose(first)
                else:
                    broke = error  # the next endpoint may say from where on there is history
            except InvariantViolation:
                raise
            except QuorateError as error:
                broke = error
            lasted_s = self._clock.monotonic_s() - began_s
            has_worked = self._recent.revision > before or lasted_s >= WORKED_S_MIN
            pause_s, is_told = retries.ended(has_worked=has_worked)
            if broke is not None and is_told:
                log.info(
                    "store_watch_broke", revision=self._recent.revision, failures=retries.failures, reason=broke.detail
                )  # fmt: skip
            await self._wait(pause_s)

    async def _read_stream(self) -> None:
        start = self._recent.revision + 1
        async with watch_stream(self._client, FIRST_KEY, RANGE_ALL, start, previous=self._previous) as stream:
            try:
                async with asyncio.timeout(None) as patience:
                    self._reading = stream, patience
                    async for revisions in stream:
                        self._take(revisions)
            except TimeoutError:
                stream.source.failed()
                raise Unavailable("the endpoint has not told of changes that there are") from None
            except Unavailable:
                stream.source.failed()
                raise
            finally:
                self._reading = None

    def _take(self, revisions: Revisions) -> None:
        """Hand out what is new. Raises Unavailable when a revision is missing."""
        changes: list[tuple[int, list[Event]]] = []
        for revision, events in revisions:
            if revision <= self._recent.revision:
                continue  # told already
            missing = range(self._recent.revision + 1, revision)
            if missing:
                self._publish(changes)
                changes = []
                self._pass_gap(missing)
            self._recent.append(revision, events)
            changes.append((revision, events))
        self._publish(changes)

    def _pass_gap(self, missing: range) -> None:
        if self._gap_at != missing.start:
            self._gap_at = missing.start
            raise Unavailable(f"after revision {missing.start - 1} came {missing.stop}")
        log.warning("store_left_out_revisions", first=missing.start, next=missing.stop)
        if len(missing) > GAP_REVISIONS_MAX:
            self._lose(missing.stop)
        for revision in range(self._recent.revision + 1, missing.stop):
            self._recent.append(revision, [])

    def _publish(self, changes: Revisions) -> None:
        if not changes:
            return
        self._watches.on_applied(Applied(self._recent.revision, changes))
        self._tell_who_awaits()

    def _tell_who_awaits(self) -> None:
        while self._awaiting and self._awaiting[0][0] <= self._recent.revision:
            _, _, reached = heapq.heappop(self._awaiting)
            if not reached.done():
                reached.set_result(None)

    def _lose(self, first: int) -> None:
        """Nothing before revision `first` can be had from the store any more."""
        if first <= self._recent.revision:
            return  # it is not, for us
        self._recent.begin_anew(first)
        self._watches.on_replaced()
        while self._watches.is_behind:
            self._watches.catch_up()
        self._tell_who_awaits()

    async def _look_after(self, reading: asyncio.Task[None]) -> None:
        """Break off a stream that is silent though it has something to tell. Ends `reading` when nobody has use for
        the feed any more."""
        used_at_s = self._clock.monotonic_s()
        while True:
            await self._wait(PROBE_INTERVAL_S)
            if len(self._watches) or self._followers or self._is_awaited():
                used_at_s = self._clock.monotonic_s()
            elif self._clock.monotonic_s() - used_at_s >= IDLE_S:
                self._has_ended = True
                reading.cancel()
                return
            await self._probe()
            for follower in tuple(self._followers):
                follower.look_after()
                await asyncio.sleep(0)  # each may look at thousands of changes

    def _is_awaited(self) -> bool:
        """Forgets those who have given up."""
        self._awaiting = [waiting for waiting in self._awaiting if not waiting[2].done()]
        heapq.heapify(self._awaiting)
        return bool(self._awaiting)

    async def _probe(self) -> None:
        wanted = await self._find_present()
        if self._recent.revision >= wanted or self._reading is None:
            return
        stream, patience = self._reading
        before = self._recent.revision, stream.heard_bytes
        await self._wait(STALE_S)
        is_read_still = self._reading is not None and self._reading[0] is stream
        if is_read_still and (self._recent.revision, stream.heard_bytes) == before and not patience.expired():
            patience.reschedule(asyncio.get_running_loop().time())

    async def _find_present(self) -> int:
        """How far the store is, as far as anybody has heard. Raises InvariantViolation when it has gone back, or is
        another one."""
        reached = self._recent.revision
        try:
            present = await self._present()
        except InvariantViolation:
            raise
        except QuorateError:
            return self._client.newest.revision
        if present < reached:
            raise InvariantViolation(
                f"the store is at revision {present}, and told of changes up to {reached} before: another one, or "
                "restored from an older backup. What was read from it is void: start again"
            )
        return present

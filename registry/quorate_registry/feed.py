"""The store's changes into the catalog, and on to the watchers: one store watch a node.

When the watch fails it is opened again from the catalog's revision; the catalog keeps what it has meanwhile. When the
history does not reach back so far, everything is loaded anew, and only what differs is told.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence

import structlog
from quorate_core.errors import Compacted, DeadlineExceeded, FutureRevision, QuorateError, Unavailable
from quorate_core.tasks import TaskOwner
from quorate_store.model import WatchBatch
from quorate_store.port import Store, Watch

from quorate_registry.catalog import Catalog, Loading
from quorate_registry.model import REGISTRY_PREFIX, REGISTRY_PREFIX_END, InstanceName
from quorate_registry.watch import Subscriptions

LOAD_PAGE_KEYS = 1_000
TOLD_AT_ONCE_MAX = 2_000
"""Instances that listeners are told of in one turn of the event loop after a load: a few milliseconds."""
BACKOFF_FIRST_S = 0.05
BACKOFF_S_MAX = 2.0
BARRIER_S_MAX = 5.0
BARRIER_OVERLAP_S = 0.25
"""A barrier that takes longer does not hold back the next one."""
BOOKMARK_INTERVAL_S = 3.0

log = structlog.get_logger(__name__)


class CatalogFeed:
    """Start it with `start`; `barrier` waits until the catalog has what the store has."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        subscriptions: Subscriptions,
        tasks: TaskOwner,
        chance: random.Random | None = None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._subscriptions = subscriptions
        self._tasks = tasks
        self._chance = chance or random.Random()
        self._watch: Watch | None = None
        self._must_load = True
        self._failures = 0
        self._progress = asyncio.Event()
        # Set, and replaced, whenever the catalog's revision moves or a watch is opened.
        self._running_barrier: asyncio.Task[QuorateError | None] | None = None
        self._queued_barrier: asyncio.Task[QuorateError | None] | None = None
        self.loaded = asyncio.Event()
        self.listeners: list[Callable[[Sequence[InstanceName]], None]] = []
        """Told after each load and each batch of which instances another state is shown, none of them if so; of many
        that a load has changed, in portions. They must not block."""
        self.observers: list[Callable[[WatchBatch], None]] = []
        """Given each batch as it came, after it was taken."""

    def start(self) -> None:
        self._tasks.start(self._run(), "registry-feed")
        self._tasks.start(self._send_bookmarks(), "registry-bookmarks")

    async def barrier(self) -> None:
        """Wait until everything that was committed before this call is in the catalog. Calls at the same time share
        one read of the store.

        Raises the store's error when it cannot be read, DeadlineExceeded when the catalog lags behind it.
        """
        if self._queued_barrier is None:
            self._queued_barrier = self._tasks.start(self._run_barrier(self._running_barrier), "registry-barrier")
        barrier = self._queued_barrier
        await asyncio.wait({barrier})  # waits without cancelling it for the others when this caller is cancelled
        if barrier.cancelled():
            raise Unavailable("this node is stopping")
        if (error := barrier.result()) is not None:
            raise error

    def require_loaded(self) -> None:
        """Raises Unavailable until the catalog was loaded once."""
        if not self._catalog.loaded:
            raise Unavailable("this node is still loading the registry")

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
                reason = "the store ended the watch"
            except (Compacted, FutureRevision) as error:
                self._must_load = True
                reason = error.detail
            except QuorateError as error:
                reason = error.detail
            self._watch = None
            self._failures += 1
            if self._failures == 1:
                log.warning("registry_feed_interrupted", reason=reason, revision=self._catalog.revision)
            whole_s = min(BACKOFF_S_MAX, BACKOFF_FIRST_S * 2 ** min(self._failures - 1, 16))
            await asyncio.sleep(whole_s * (0.5 + 0.5 * self._chance.random()))

    async def _follow(self) -> None:
        start_revision = 0 if self._must_load else self._catalog.revision + 1
        async with self._store.watch(REGISTRY_PREFIX, REGISTRY_PREFIX_END, start_revision=start_revision) as watch:
            batches = aiter(watch)
            if self._must_load:
                await self._load(batches)
            self._watch = watch
            self._notify()
            async for batch in batches:
                self._failures = 0
                self._take(batch)

    async def _load(self, batches: AsyncIterator[WatchBatch]) -> None:
        """Everything as of the revision from which the watch is gap-free."""
        first = await anext(batches, None)
        if first is None:
            raise Unavailable("the store ended the watch before it began")
        revision = first.revision
        loading, key = Loading(), REGISTRY_PREFIX
        while True:
            # This member's own state has that revision, so no leader is needed.
            page = await self._store.range(
                key, REGISTRY_PREFIX_END, limit=LOAD_PAGE_KEYS, revision=revision, serializable=True, counted=False
            )
            loading.add(page.kvs, _log_unreadable)
            if not page.more:
                break
            key = page.kvs[-1].key + b"\0"
            await asyncio.sleep(0)
        changed: list[InstanceName] = []
        for name in self._catalog.differences(loading):
            if name is None:
                await asyncio.sleep(0)
            else:
                changed.append(name)
        self._catalog.load(revision, loading, changed)
        self._must_load = False
        self._failures = 0
        self.loaded.set()
        log.info("registry_loaded", revision=revision, instances=loading.instances, changed=len(changed))
        self._publish(changed)
        for at in range(0, max(len(changed), 1), TOLD_AT_ONCE_MAX):
            self._tell(changed[at : at + TOLD_AT_ONCE_MAX])
            await asyncio.sleep(0)

    def _take(self, batch: WatchBatch) -> None:
        changed = self._catalog.apply(batch, _log_unreadable)
        self._publish(changed)
        self._tell(changed)
        for observe in self.observers:
            observe(batch)

    def _publish(self, changed: Sequence[InstanceName]) -> None:
        """NB: all of them in one turn. A watcher is woken with the catalog's revision, and has everything up to it."""
        if changed:
            self._subscriptions.publish(changed)
        self._notify()

    def _tell(self, changed: Sequence[InstanceName]) -> None:
        for listen in self.listeners:
            listen(changed)

    def _notify(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    async def _run_barrier(self, former: "asyncio.Task[QuorateError | None] | None") -> QuorateError | None:
        """Returns the error, which belongs to those who wait and not to the owner of tasks."""
        if former is not None:
            await asyncio.wait({former}, timeout=BARRIER_OVERLAP_S)
        # From here on the store is being read: who comes now joins the next barrier.
        self._running_barrier, self._queued_barrier = self._queued_barrier, None
        try:
            async with asyncio.timeout(BARRIER_S_MAX):
                # One key suffices: what is wanted is the revision of a linearizable read.
                await self._reach((await self._store.range(REGISTRY_PREFIX, count_only=True)).revision)
        except TimeoutError:
            return DeadlineExceeded(f"the registry's copy on this node is behind its store for {BARRIER_S_MAX} s")
        except QuorateError as error:
            return error
        return None

    async def _reach(self, revision: int) -> None:
        asked: Watch | None = None
        while self._catalog.revision < revision:
            progress = self._progress
            if self._watch is not None and self._watch is not asked:
                asked = self._watch
                await asked.request_progress()
            await progress.wait()

    async def _send_bookmarks(self) -> None:
        """Bookmarks only after a barrier: a node that is cut off falls silent, and its watchers go elsewhere."""
        while True:
            await asyncio.sleep(BOOKMARK_INTERVAL_S)
            if not len(self._subscriptions):
                continue
            try:
                await self.barrier()
            except QuorateError:
                continue  # the feed and the watchers' own watchdogs say so
            self._subscriptions.publish_bookmark()


def _log_unreadable(key: bytes, error: ValueError) -> None:
    log.error("registry_record_unreadable", key=key.decode(errors="replace"), error=str(error))

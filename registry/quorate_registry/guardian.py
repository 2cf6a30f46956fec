"""Puts the guard keys of protected services, and takes them away, on the one node that owns each. What is to be done
follows from the catalog, by `guard.guard_move`.

Edge- and level-triggered, as the reaper: services that the feed tells of are looked at as they come, and all that have
a guard key or somebody lapsed when nodes come or go, and each RESYNC_INTERVAL_S. So a key whose service is gone, or
that an owner has left behind, is found. Kept here is only since when enough of a service are alive again.

A put compares that there is no key, and a removal its revision. Two owners at once, or one with an old copy, may at
most put a key that is needed no more, which the owner takes away; or take away one of a service of which nothing was
lapsed at a revision after the key's, which is what the next owner would have done.
"""

import asyncio
from collections.abc import Sequence

import structlog
from prometheus_client import Gauge
from quorate_core.clock import Clock
from quorate_core.errors import QuorateError
from quorate_core.tasks import TaskOwner
from quorate_store.model import WatchBatch

from quorate_registry.catalog import Catalog
from quorate_registry.checks.schedule import Schedule
from quorate_registry.feed import CatalogFeed
from quorate_registry.guard import GuardMove, guard_move
from quorate_registry.model import InstanceName, KeyKind, ServiceName, parse_key
from quorate_registry.ownership import Ownership
from quorate_registry.registrar import Registrar

RESYNC_INTERVAL_S = 10.0
RESYNC_PORTION = 500
"""Looked at between two turns of the loop."""
WRITES_RUNNING_MAX = 32
REPEAT_AFTER_S = 1.0
"""After a write that the store has not taken."""

GUARDED = Gauge("quorate_registry_guarded_services", "Services with a guard key that this node owns")

log = structlog.get_logger(__name__)


class Guardian:
    """Start it with `start`, once the feed is started."""

    def __init__(
        self,
        node_name: str,
        catalog: Catalog,
        feed: CatalogFeed,
        registrar: Registrar,
        ownership: Ownership,
        tasks: TaskOwner,
        clock: Clock,
    ) -> None:
        self._by = f"node {node_name}"
        self._catalog = catalog
        self._feed = feed
        self._registrar = registrar
        self._ownership = ownership
        self._tasks = tasks
        self._clock = clock
        self._recovered_s: dict[ServiceName, float] = {}
        # Guarded services that this node owns: since when it has seen enough of them alive; while too few are, now.
        self._schedule: Schedule[ServiceName] = Schedule()
        self._writing: set[ServiceName] = set()
        self._woken = asyncio.Event()
        self._resync_due = asyncio.Event()
        self._has_trouble = False

    def start(self) -> None:
        self._feed.listeners.append(self._consider)
        self._feed.observers.append(self._see)
        self._ownership.listeners.append(self._resync_due.set)
        self._tasks.start(self._run(), "registry-guardian")
        self._tasks.start(self._resync_often(), "registry-guardian-resync")

    def _consider(self, names: Sequence[InstanceName]) -> None:
        """These have changed, or may have."""
        for service in {name.of for name in names}:
            self._look_at(service)

    def _see(self, batch: WatchBatch) -> None:
        """A guard key that comes or goes may change nothing that is shown."""
        for event in batch.events:
            try:
                kind, name = parse_key(event.kv.key)
            except ValueError:
                continue  # the feed has said so
            if kind is KeyKind.GUARD and isinstance(name, ServiceName):
                self._look_at(name)

    async def _resync_often(self) -> None:
        await self._feed.loaded.wait()
        while True:
            self._resync_due.clear()
            lapsed = {entry.name.of: None for entry in self._catalog.lapsed()}
            guarded = dict.fromkeys(self._catalog.guarded())
            for count, service in enumerate(lapsed | guarded | dict.fromkeys(self._recovered_s), 1):
                self._look_at(service)
                if count % RESYNC_PORTION == 0:
                    await asyncio.sleep(0)
            try:
                async with asyncio.timeout(RESYNC_INTERVAL_S):
                    await self._resync_due.wait()
            except TimeoutError:
                pass

    def _look_at(self, service: ServiceName) -> None:
        """Have it judged at once, if there is anything to judge."""
        now_s = self._clock.monotonic_s()
        is_guarded = self._catalog.guard_revision(*service) > 0
        if is_guarded and self._ownership.owns(*service):
            if self._catalog.is_short(*service) or service not in self._recovered_s:
                self._recovered_s[service] = now_s
        else:
            self._recovered_s.pop(service, None)
        GUARDED.set(len(self._recovered_s))
        if service in self._writing:
            return
        if self._move(service) is not GuardMove.LEAVE:
            self._set_due(service, now_s)
        elif service in self._recovered_s:
            self._set_due(service, self._recovered_s[service] + self._catalog.settings(*service).hold_s)
        else:
            self._schedule.discard(service)

    def _move(self, service: ServiceName) -> GuardMove:
        if not self._ownership.owns(*service):
            return GuardMove.LEAVE
        now_s = self._clock.monotonic_s()
        return guard_move(
            is_guarded=self._catalog.guard_revision(*service) > 0,
            is_protected=self._catalog.is_protected(*service),
            is_short=self._catalog.is_short(*service),
            recovered_s=now_s - self._recovered_s.get(service, now_s),
            hold_s=self._catalog.settings(*service).hold_s,
        )

    def _set_due(self, service: ServiceName, due_s: float) -> None:
        self._schedule.set(service, due_s)
        self._woken.set()

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            while len(self._writing) < WRITES_RUNNING_MAX:
                service = self._schedule.pop_due(self._clock.monotonic_s())
                if service is None:
                    break
                self._writing.add(service)
                self._tasks.start(self._settle(service), "registry-guard-write")
            due_s = self._schedule.next_due_s() if len(self._writing) < WRITES_RUNNING_MAX else None
            try:
                async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._clock.monotonic_s())):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _settle(self, service: ServiceName) -> None:
        """Do what is to be done now; what has changed meanwhile is looked at after it."""
        move = self._move(service)
        try:
            if move is not GuardMove.LEAVE:
                await self._write(service, move)
        finally:
            self._writing.discard(service)
            self._woken.set()
        if move is not GuardMove.LEAVE and self._move(service) is move:
            # The store has not taken it, or the feed has not told of it yet.
            self._set_due(service, self._clock.monotonic_s() + REPEAT_AFTER_S)
        else:
            self._look_at(service)

    async def _write(self, service: ServiceName, move: GuardMove) -> None:
        try:
            if move is GuardMove.PUT:
                is_done = await self._registrar.put_guard(service, self._by)
            else:
                is_done = await self._registrar.take_guard_away(service, self._catalog.guard_revision(*service))
        except QuorateError as error:
            if not self._has_trouble:
                self._has_trouble = True
                log.warning("registry_guard_not_written", service=str(service), reason=error.detail)
            return
        self._has_trouble = False
        if is_done:
            log.info("registry_guard_changed", service=str(service), move=str(move))

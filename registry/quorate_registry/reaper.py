"""Takes lapsed instances away, on the one node that owns their service. What is decided of each is in `lapse`.

Edge- and level-triggered: names that the feed tells are looked at as they come, and everything that has lapsed again
when nodes come or go, and each RESYNC_INTERVAL_S. What is lapsed, protected, or owned is asked of the catalog and the
ownership at each step, never remembered; only when the lapse was seen, and what its probes have found, is kept here.

A removal compares the record's revision and that nothing is alive. So it does not matter that two owners may be at work
for a moment, or that this one has an old copy.

However many have lapsed, STEPS_PER_TURN_MAX steps are begun each TURN_S and STEPS_RUNNING_MAX run at once: the node
serves on while a whole data center is gone. Each has its turn in the order of due times.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Gauge
from quorate_core.clock import Clock
from quorate_core.errors import QuorateError
from quorate_core.tasks import TaskOwner

from quorate_registry.catalog import Catalog
from quorate_registry.checks.resolver import Resolver
from quorate_registry.checks.schedule import Schedule
from quorate_registry.feed import CatalogFeed
from quorate_registry.lapse import Circumstances, Lapse, Step
from quorate_registry.model import Entry, InstanceName, ServiceName
from quorate_registry.ownership import Ownership
from quorate_registry.probes import Finding, probe
from quorate_registry.registrar import Registrar

RESYNC_INTERVAL_S = 10.0
RESYNC_PORTION = 500
"""Looked at between two turns of the loop."""
TURN_S = 0.05
STEPS_PER_TURN_MAX = 50
"""So at most 1,000 probes and removals a second."""
STEPS_RUNNING_MAX = 128
REPEAT_AFTER_S = 1.0
"""After a removal that the store has not taken."""

Prober = Callable[[str, int], Awaitable[Finding]]
"""Asks a host and port."""

LAPSED = Gauge("quorate_registry_lapsed_instances", "Instances without heartbeats that this node is to take away")
REAPED = Counter("quorate_registry_reaped_total", "Lapsed instances that this node has taken away", ["reason"])
PROBES = Counter("quorate_registry_probes_total", "Connections tried to lapsed instances", ["finding"])

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _LapsedOf:
    """Of one service. `standing`: as it was when all of them were scheduled last."""

    names: set[InstanceName]
    standing: tuple[bool, bool]
    """Whether it is protected, and whether too few are alive."""


class Reaper:
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
        prober: Prober | None = None,
    ) -> None:
        self._by = f"node {node_name}"
        self._catalog = catalog
        self._feed = feed
        self._registrar = registrar
        self._ownership = ownership
        self._tasks = tasks
        self._clock = clock
        self._probe = prober or _network_prober()
        self._lapses: dict[InstanceName, Lapse] = {}
        self._schedule: Schedule[InstanceName] = Schedule()
        # Those in `_lapses` that no step runs for.
        self._services: dict[ServiceName, _LapsedOf] = {}
        # Those with lapsed instances.
        self._flipped: dict[ServiceName, None] = {}
        # The standing of these is another one, and what has lapsed is due at another time than it was.
        self._running = 0
        self._woken = asyncio.Event()
        self._resync_due = asyncio.Event()
        self._must_resync = True
        self._has_trouble = False

    def start(self) -> None:
        self._feed.listeners.append(self._consider)
        self._ownership.listeners.append(self._expect_resync)
        self._tasks.start(self._run(), "registry-reaper")
        self._tasks.start(self._resync_often(), "registry-reaper-resync")

    def _consider(self, names: Sequence[InstanceName]) -> None:
        """These have changed, or may have."""
        touched = {name.of for name in names} if self._services else set()
        for service in touched & self._services.keys():
            standing = self._standing(service)
            if self._services[service].standing != standing:
                self._services[service].standing = standing
                self._flipped[service] = None
                self._resync_due.set()
        for name in names:
            self._look_at(name)

    def _expect_resync(self) -> None:
        self._must_resync = True
        self._resync_due.set()

    async def _resync_often(self) -> None:
        await self._feed.loaded.wait()
        while True:
            self._resync_due.clear()
            if self._must_resync:
                self._must_resync = False
                await self._look_at_all(entry.name for entry in self._catalog.lapsed())
                await self._look_at_all(tuple(self._lapses))
            while self._flipped:
                service = next(iter(self._flipped))
                del self._flipped[service]
                await self._look_at_all(tuple(self._services[service].names) if service in self._services else ())
            try:
                async with asyncio.timeout(RESYNC_INTERVAL_S):
                    await self._resync_due.wait()
            except TimeoutError:
                self._must_resync = True

    async def _look_at_all(self, names: Iterable[InstanceName]) -> None:
        for count, name in enumerate(names, 1):
            self._look_at(name)
            if count % RESYNC_PORTION == 0:
                await asyncio.sleep(0)

    def _look_at(self, name: InstanceName) -> None:
        entry = self._lapsed(name)
        if entry is None:
            self._forget(name)
            return
        if name not in self._lapses:
            self._lapses[name] = Lapse(self._clock.monotonic_s())
            if name.of not in self._services:
                self._services[name.of] = _LapsedOf(set(), self._standing(name.of))
            self._services[name.of].names.add(name)
            LAPSED.set(len(self._lapses))
            self._set_due(entry)
        elif name in self._schedule:
            self._set_due(entry)

    def _lapsed(self, name: InstanceName) -> Entry | None:
        """The entry, if it has lapsed and is this node's to take away."""
        entry = self._catalog.entry(name)
        if entry is None or not entry.has_lapsed:
            return None
        return entry if self._ownership.owns(name.namespace, name.service) else None

    def _forget(self, name: InstanceName) -> None:
        if self._lapses.pop(name, None) is None:
            return
        self._schedule.discard(name)
        LAPSED.set(len(self._lapses))
        of_service = self._services[name.of].names
        of_service.remove(name)
        if not of_service:
            del self._services[name.of]

    def _set_due(self, entry: Entry, not_before_s: float = 0.0) -> None:
        now = self._circumstances(entry)
        self._schedule.set(entry.name, max(not_before_s, self._lapses[entry.name].due_s(now)))
        self._woken.set()

    def _circumstances(self, entry: Entry) -> Circumstances:
        is_protected, is_short = self._standing(entry.name.of)
        hold_s = self._catalog.settings(*entry.name.of).hold_s
        return Circumstances(is_protected, is_short, entry.record.ttl_s, hold_s)

    def _standing(self, service: ServiceName) -> tuple[bool, bool]:
        return self._catalog.is_protected(*service), self._catalog.is_short(*service)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            self._begin_due_steps()
            await self._until_due()

    def _begin_due_steps(self) -> None:
        for _ in range(min(STEPS_PER_TURN_MAX, STEPS_RUNNING_MAX - self._running)):
            name = self._schedule.pop_due(self._clock.monotonic_s())
            if name is None:
                break
            self._running += 1
            self._tasks.start(self._take_step(name, self._lapses[name]), "registry-reaper-step")

    async def _until_due(self) -> None:
        """At least a turn, so that what comes together is begun in portions."""
        await asyncio.sleep(TURN_S)
        due_s = self._schedule.next_due_s()
        now_s = self._clock.monotonic_s()
        if due_s is not None and due_s <= now_s:
            return
        try:
            async with asyncio.timeout(None if due_s is None else due_s - now_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _take_step(self, name: InstanceName, lapse: Lapse) -> None:
        repeat_s = 0.0
        try:
            entry = self._lapsed(name)
            if entry is not None and self._step(entry, lapse) is Step.PROBE:
                began_s = self._clock.monotonic_s()
                finding = await self._probe(entry.record.host, entry.record.port)
                PROBES.labels(finding).inc()
                lapse.take(finding, began_s)
                entry = self._lapsed(name)  # much may have changed meanwhile
            if entry is not None and (step := self._step(entry, lapse)).reaps:
                await self._reap(entry, step)
                # Gone, the feed will say so; else something has changed, or the store has not taken it.
                repeat_s = self._clock.monotonic_s() + REPEAT_AFTER_S
        finally:
            self._running -= 1
            self._schedule_again(name, lapse, repeat_s)

    def _step(self, entry: Entry, lapse: Lapse) -> Step:
        return lapse.step(self._clock.monotonic_s(), self._circumstances(entry))

    async def _reap(self, entry: Entry, step: Step) -> None:
        try:
            is_gone = await self._registrar.reap(entry.name, entry.record_revision, str(step), self._by)
        except QuorateError as error:
            if not self._has_trouble:
                self._has_trouble = True
                log.warning("registry_reaping_failed", instance=str(entry.name), reason=error.detail)
            return
        self._has_trouble = False
        if is_gone:
            REAPED.labels(str(step)).inc()
            log.info("registry_instance_reaped", instance=str(entry.name), reason=str(step))

    def _schedule_again(self, name: InstanceName, lapse: Lapse, not_before_s: float) -> None:
        if self._lapses.get(name) is not lapse:  # it came back meanwhile, or is another's now
            return
        entry = self._lapsed(name)
        if entry is None:
            self._forget(name)
        else:
            self._set_due(entry, not_before_s)


def _network_prober() -> Prober:
    resolver = Resolver()

    async def ask(host: str, port: int) -> Finding:
        return await probe(resolver, host, port)

    return ask

"""Runs the checks of the instances whose service this node owns, and writes what they decide.

Edge- and level-triggered, as the reaper: names that the feed tells are looked at as they come, and everything that is
checked again when nodes come or go, when a service's settings change, and each RESYNC_INTERVAL_S. A check that goes on
being the same one at the same target keeps its row of results while other fields of the record change.

A bad result without a word of the other side may be of the network between, and not of the instance; what becomes of
such is decided for all of a service together (`doubts`). Every other is written here.

What is decided is compared with what the store has after each result, and written where it differs; so a write that was
lost is made up for, and nothing is written while nothing changes. A write compares the record's revision: a result of
an instance that has been registered anew meanwhile is dropped.

At most CHECKS_RUNNING_MAX run at once; what is due while they do is late, which CHECKS_LATE_S shows.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Gauge
from quorate_core.clock import Clock
from quorate_core.tasks import TaskOwner
from quorate_sdk.wire import HealthCheck
from quorate_store.model import WatchBatch

from quorate_registry.catalog import Catalog
from quorate_registry.checks.asking import ask
from quorate_registry.checks.doubt import Doubt, Verdict, without_mark
from quorate_registry.checks.doubts import Doubts
from quorate_registry.checks.judgement import Judgement
from quorate_registry.checks.outcome import Outcome, Target, Undecided
from quorate_registry.checks.reports import Reports
from quorate_registry.checks.resolver import Resolver
from quorate_registry.checks.schedule import Chance, Schedule, first_due_s, next_due_s
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import Entry, InstanceName, KeyKind
from quorate_registry.ownership import Ownership
from quorate_registry.registrar import Registrar

CHECKS_RUNNING_MAX = 512
RESYNC_INTERVAL_S = 60.0
RESYNC_PORTION = 200
"""Looked at between two turns of the loop."""
TURN_S = 0.02
"""What falls due within a turn is begun together: fewer wake-ups of the loop."""
AGAIN_AFTER_S = 2.0
"""When a check has found out nothing, or the store has not taken its result, the instance is checked again so soon."""

SETTINGS_PREFIX = b"quorate/" + KeyKind.SETTINGS.value.encode() + b"/"

Asker = Callable[[HealthCheck, Target], Awaitable[Outcome]]
"""May raise Undecided."""

CHECKED = Gauge("quorate_registry_checked_instances", "Instances that this node checks")
CHECKS = Counter("quorate_registry_checks_total", "Checks made by this node", ["type", "result"])
CHECKS_LATE_S = Gauge("quorate_registry_checks_late_seconds", "How long after its time the last check was begun")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Watched:
    """One instance that this node checks. Another check, or another target, makes another of these."""

    check: HealthCheck
    target: Target
    judgement: Judgement
    doubt: Doubt | None = None

    def take(self, outcome: Outcome, now_ms: int) -> None:
        """What was decided before by a word of the other side is no doubt by silence; and nobody is in doubt who was
        never well."""
        was_passing = self.judgement.is_passing
        if outcome.is_good and self.doubt is not None and self.doubt.is_held:
            self.judgement.reinstate()
        has_decided = self.judgement.take(outcome.is_good)
        if self.judgement.is_passing:
            self.doubt = None
        elif has_decided and was_passing and outcome.is_doubtful:
            self.doubt = Doubt(now_ms)
        elif not outcome.is_good and not outcome.is_doubtful:
            self.doubt = None

    def verdict(self, output: str) -> Verdict | None:
        """None before the first result."""
        if self.judgement.is_passing is None:
            return None
        return Verdict(self.judgement.is_passing, output, self.doubt, self._agreement_ms())

    def _agreement_ms(self) -> int:
        """How long after the network has gone its checks may take to decide so."""
        check = self.check
        return round(1_000 * (check.interval_s * (check.unhealthy_after + 1) + check.timeout_s))


class Checks:
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
        asker: Asker | None = None,
        chance: Chance = random.random,
    ) -> None:
        self._catalog = catalog
        self._feed = feed
        self._ownership = ownership
        self._tasks = tasks
        self._clock = clock
        self._reports = Reports(node_name, registrar, clock)
        self._doubts = Doubts(catalog, self._reports, tasks, clock)
        self._ask = asker or _network_asker()
        self._chance = chance
        self._watched: dict[InstanceName, _Watched] = {}
        self._schedule: Schedule[InstanceName] = Schedule()
        # Those in `_watched` that no check runs for.
        self._running = 0
        self._woken = asyncio.Event()
        self._resync_due = asyncio.Event()
        self._is_short = False
        # Of something that checks need; it is said once.

    def start(self) -> None:
        self._feed.listeners.append(self._consider)
        self._feed.observers.append(self._see)
        self._ownership.listeners.append(self._resync_due.set)
        self._doubts.start()
        self._tasks.start(self._run(), "registry-checks")
        self._tasks.start(self._resync_often(), "registry-checks-resync")

    def _consider(self, names: Sequence[InstanceName]) -> None:
        """These have changed, or may have."""
        for service in {name.of for name in names}:
            self._doubts.look_at(service)
        for name in names:
            entry = self._catalog.entry(name)
            self._look_at(name, entry, None if entry is None else self._catalog.check_of(entry))

    def _see(self, batch: WatchBatch) -> None:
        """Settings change how instances are checked whose own keys do not change."""
        if any(event.kv.key.startswith(SETTINGS_PREFIX) for event in batch.events):
            self._resync_due.set()
            self._doubts.look_at_all()

    async def _resync(self) -> None:
        checked = set()
        for count, (entry, check) in enumerate(self._catalog.checked(), 1):
            checked.add(entry.name)
            self._look_at(entry.name, entry, check)
            if count % RESYNC_PORTION == 0:
                await asyncio.sleep(0)
        self._consider(list(self._watched.keys() - checked))

    async def _resync_often(self) -> None:
        await self._feed.loaded.wait()
        while True:
            self._resync_due.clear()
            await self._resync()
            try:
                async with asyncio.timeout(RESYNC_INTERVAL_S):
                    await self._resync_due.wait()
            except TimeoutError:
                pass

    def _look_at(self, name: InstanceName, entry: Entry | None, check: HealthCheck | None) -> None:
        if entry is None or check is None or not self._ownership.owns(name.namespace, name.service):
            self._forget(name)
            return
        target = Target(entry.record.scheme, entry.record.host, check.port or entry.record.port)
        watched = self._watched.get(name)
        if watched is not None and watched.target == target and watched.check == check:
            return
        # What was decided of another target holds until the first result, and no longer.
        is_passing = None if watched is not None or entry.health is None else entry.health.passing
        health = entry.health if is_passing is not None else None
        if health is not None and health.is_held:
            is_passing = False
        doubt = None if health is None else Doubt.of(health, self._now_ms())
        self._watched[name] = watched = _Watched(check, target, Judgement(check, is_passing), doubt)
        self._doubts.take(name, watched.verdict("" if health is None else without_mark(health.output)))
        CHECKED.set(len(self._watched))
        was_checked = is_passing is not None
        self._set_due(name, first_due_s(self._clock.monotonic_s(), check.interval_s, was_checked, self._chance))

    def _forget(self, name: InstanceName) -> None:
        if self._watched.pop(name, None) is not None:
            self._doubts.take(name, None)
            self._schedule.discard(name)
            CHECKED.set(len(self._watched))

    def _set_due(self, name: InstanceName, due_s: float) -> None:
        next_s = self._schedule.next_due_s()
        self._schedule.set(name, due_s)
        if next_s is None or due_s < next_s:
            self._woken.set()

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            self._begin_due_checks()
            await self._until_due()

    def _begin_due_checks(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._running < CHECKS_RUNNING_MAX:
            due_s = self._schedule.next_due_s()
            name = self._schedule.pop_due(now_s)
            if name is None or due_s is None:
                return
            CHECKS_LATE_S.set(now_s - due_s)
            self._running += 1
            self._tasks.start(self._check(name, self._watched[name]), "registry-check")

    async def _until_due(self) -> None:
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

    async def _check(self, name: InstanceName, watched: _Watched) -> None:
        began_s = self._clock.monotonic_s()
        is_done = False
        try:
            outcome = await self._ask(watched.check, watched.target)
            self._is_short = False
            result = "good" if outcome.is_good else "doubtful" if outcome.is_doubtful else "bad"
            CHECKS.labels(watched.check.type, result).inc()
            if self._watched.get(name) is watched:
                watched.doubt = self._doubts.of(name)
                watched.take(outcome, self._now_ms())
                self._doubts.take(name, watched.verdict(outcome.output))
                is_done = watched.doubt is not None or await self._write_if_new(name, watched.judgement, outcome)
        except Undecided as error:
            CHECKS.labels(watched.check.type, "undecided").inc()
            if not self._is_short:
                self._is_short = True
                log.warning("registry_check_undecided", instance=str(name), reason=str(error))
        finally:
            self._running -= 1
            if self._watched.get(name) is watched:
                interval_s = watched.check.interval_s if is_done else min(watched.check.interval_s, AGAIN_AFTER_S)
                self._set_due(name, next_due_s(began_s, interval_s, self._chance))

    async def _write_if_new(self, name: InstanceName, judgement: Judgement, outcome: Outcome) -> bool:
        """False when what is decided is not in the store, and is to be tried again."""
        entry = self._catalog.entry(name)
        if entry is None or outcome.is_good != judgement.is_passing:
            return True
        former = entry.health
        if former is not None and former.passing == judgement.is_passing and not former.doubt_since_ms:
            return True
        return await self._reports.write(entry, outcome.is_good, outcome.output)

    def _now_ms(self) -> int:
        return round(1_000 * self._clock.wall_s())


def _network_asker() -> Asker:
    resolver = Resolver()

    async def asker(check: HealthCheck, target: Target) -> Outcome:
        return await ask(check, target, resolver)

    return asker

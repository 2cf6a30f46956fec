"""Decides, for each service that this node owns, what becomes of its instances in doubt (`doubt`), and writes it.

Each result of a service somebody of which is in doubt has it judged, once a turn, however many results there are; and
without any result when a hold ends. A write compares the record's and the former result's revision, and what was not
taken, or has changed meanwhile, is judged again.
"""

import asyncio

from prometheus_client import Gauge
from quorate_core.clock import Clock
from quorate_core.tasks import TaskOwner

from quorate_registry.catalog import Catalog
from quorate_registry.checks.doubt import Doubt, Ruling, Terms, Verdict, marked, rule
from quorate_registry.checks.outcome import Outcome
from quorate_registry.checks.reports import Reports
from quorate_registry.checks.schedule import Schedule
from quorate_registry.model import Entry, InstanceName, ServiceName

TURN_S = 0.1
WRITES_RUNNING_MAX = 32
"""Of one service."""
REPEAT_AFTER_S = 1.0
"""After a write that the store has not taken."""

HELD = Gauge("quorate_registry_held_instances", "Instances whose checks fail in doubt and that this node holds passing")


class Doubts:
    """Start it with `start`."""

    def __init__(self, catalog: Catalog, reports: Reports, tasks: TaskOwner, clock: Clock) -> None:
        self._catalog = catalog
        self._reports = reports
        self._tasks = tasks
        self._clock = clock
        self._verdicts: dict[ServiceName, dict[InstanceName, Verdict]] = {}
        self._doubtful: dict[ServiceName, set[InstanceName]] = {}
        self._short_ms: dict[ServiceName, int] = {}
        # Of those in `_doubtful`: when too few were seen to pass.
        self._held: set[InstanceName] = set()
        self._schedule: Schedule[ServiceName] = Schedule()
        self._settling: set[ServiceName] = set()
        self._touched: set[ServiceName] = set()
        # While they were settled.
        self._woken = asyncio.Event()

    def start(self) -> None:
        self._tasks.start(self._run(), "registry-doubts")

    def of(self, name: InstanceName) -> Doubt | None:
        """As it was judged last."""
        verdict = self._verdicts.get(name.of, {}).get(name)
        return None if verdict is None else verdict.doubt

    def take(self, name: InstanceName, verdict: Verdict | None) -> None:
        """What its own results say; None: nothing, or it is checked here no more."""
        service = name.of
        if verdict is None:
            self._verdicts.get(service, {}).pop(name, None)
        else:
            self._verdicts.setdefault(service, {})[name] = verdict
        if not self._verdicts.get(service):
            self._verdicts.pop(service, None)
        had_doubts = service in self._doubtful
        if verdict is not None and verdict.doubt is not None:
            # One that takes over gives what is held as long as if too few had passed until now.
            self._short_ms.setdefault(service, self._now_ms())
            self._doubtful.setdefault(service, set()).add(name)
        elif had_doubts:
            self._doubtful[service].discard(name)
        self._mark(name, verdict.doubt if verdict is not None else None)
        if had_doubts and not self._doubtful[service]:
            del self._doubtful[service], self._short_ms[service]
            self._schedule.discard(service)
        else:
            self.look_at(service)

    def look_at(self, service: ServiceName) -> None:
        """Something of it has changed, or may have."""
        if service not in self._doubtful:
            return
        if service in self._settling:
            self._touched.add(service)
        else:
            self._set_due(service, self._clock.monotonic_s())

    def look_at_all(self) -> None:
        for service in self._doubtful:
            self.look_at(service)

    def _mark(self, name: InstanceName, doubt: Doubt | None) -> None:
        if doubt is not None and doubt.is_held:
            self._held.add(name)
        else:
            self._held.discard(name)
        HELD.set(len(self._held))

    def _set_due(self, service: ServiceName, due_s: float) -> None:
        self._schedule.set(service, due_s)
        self._woken.set()

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            while (service := self._schedule.pop_due(self._clock.monotonic_s())) is not None:
                self._settling.add(service)
                self._tasks.start(self._settle(service), "registry-doubts-settle")
            await asyncio.sleep(TURN_S)
            due_s = self._schedule.next_due_s()
            try:
                async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._clock.monotonic_s())):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _settle(self, service: ServiceName) -> None:
        all_taken = False
        try:
            ruling = self._rule(service)
            all_taken = await self._write_all(service)
        finally:
            self._settling.discard(service)
            is_touched = service in self._touched
            self._touched.discard(service)
        if service not in self._doubtful:
            return
        now_s = self._clock.monotonic_s()
        if is_touched:
            self._set_due(service, now_s)
        elif not all_taken:
            self._set_due(service, now_s + REPEAT_AFTER_S)
        elif ruling.due_ms is not None:
            self._set_due(service, now_s + max(0.0, ruling.due_ms - self._now_ms()) / 1_000)

    def _rule(self, service: ServiceName) -> Ruling:
        now_ms, settings = self._now_ms(), self._catalog.settings(*service)
        verdicts = self._verdicts.get(service, {})
        counting = {name: verdict for name, verdict in verdicts.items() if self._would_take_traffic(name)}
        terms = Terms(settings.protection_threshold, 1_000 * settings.hold_s)
        ruling = rule(counting, terms, now_ms, self._short_ms.get(service, now_ms))
        if ruling.is_short and service in self._short_ms:
            self._short_ms[service] = now_ms
        for name in self._doubtful.get(service, ()):
            verdict = verdicts[name]
            # One that takes no traffic is believed.
            former = verdict.doubt._replace(is_held=False) if verdict.doubt is not None else None
            doubt = ruling.doubts.get(name, former)
            verdicts[name] = verdict._replace(doubt=doubt)
            self._mark(name, doubt)
        return ruling

    def _would_take_traffic(self, name: InstanceName) -> bool:
        entry = self._catalog.entry(name)
        return entry is not None and entry.record.would_take_traffic

    async def _write_all(self, service: ServiceName) -> bool:
        """False when some of it is not in the store, and is to be tried again."""
        names = sorted(name for name in self._doubtful.get(service, ()) if self._news_of(name) is not None)
        all_taken = True
        for first in range(0, len(names), WRITES_RUNNING_MAX):
            portion = names[first : first + WRITES_RUNNING_MAX]
            taken = await asyncio.gather(*(self._write_if_new(name) for name in portion))
            all_taken = all_taken and all(taken)
        return all_taken

    def _news_of(self, name: InstanceName) -> tuple[Entry, Verdict, Doubt] | None:
        """What is to be written of it; None when the store has it."""
        verdict, entry = self._verdicts.get(name.of, {}).get(name), self._catalog.entry(name)
        if verdict is None or verdict.doubt is None or entry is None:
            return None
        former = entry.health
        if former is not None and former.passing == verdict.doubt.is_held and former.doubt_since_ms:
            return None
        return entry, verdict, verdict.doubt

    async def _write_if_new(self, name: InstanceName) -> bool:
        news = self._news_of(name)
        if news is None:
            return True
        entry, verdict, doubt = news
        text = marked(verdict.output) if doubt.is_held else verdict.output
        return await self._reports.write(entry, doubt.is_held, Outcome.of(doubt.is_held, text).output, doubt)

    def _now_ms(self) -> int:
        return round(1_000 * self._clock.wall_s())

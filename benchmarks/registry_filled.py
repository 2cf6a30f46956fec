"""Many registered instances beside as many leased keys of etcd: what it costs to have them, and to restart with them.

Three members are filled through the leader; then, in this order: their memory is read; heartbeats of all instances come
for some time, each once in BEAT_INTERVAL_S, in batches (of ours BATCH, of etcd's as many as its JSON API takes) to all
members alike, and what the members use of the processor meanwhile is the *steady* load; a follower is restarted, and
then all of them. Of ours the pauses of the leader's event loop are read as well.

Instances are counted at another member than the one that took them after filling, after the heartbeats and after each
restart, so an instance that was lost, or whose life had ended, is a failure. Lives are LIVE_S long, so that none ends
while nobody is up to be told of it; a heartbeat costs the same whatever it is.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.filled_cluster import STAGE_S_MAX, Quantities, pause_readings
from benchmarks.keys import OURS, PEER, KeysResults, Reading
from benchmarks.load_figures import LoadFigures
from benchmarks.measurements import turn_order
from benchmarks.node_metrics import Pauses, read_metrics
from benchmarks.processes import until
from benchmarks.registry import AskedMembers
from benchmarks.registry_client import BATCH, BEAT_INTERVAL_S
from benchmarks.rounds import Bench, Tell
from benchmarks.store_members import EtcdMembers, QuorateMembers, StoreMembers

ROUNDS_MAX = 3
LIVE_S = 600
STEADY_S = 30
"""Three times all of them."""
STEADY_CORES_GOAL = 1.0
"""Of all three members together."""
KEEP_OVERRUN_S = 90.0
LATE_S_NOTED = 1.0
_MIB = 1024**2


class RegistryFilledScenario:
    name = "registry-filled"
    summary = "100,000 instances beside as many leases of etcd: steady CPU, memory, restart (10,000 without --full)"

    def title(self, instances: int) -> str:
        beats = f"a heartbeat of each every {BEAT_INTERVAL_S:g} s"
        return f"Registry, filled: {instances:,} instances on three members, {beats}"


class FilledRegistry:
    """Members that are up, and every stage of what is measured with them. A stage raises BenchmarkFailed."""

    def __init__(self, bench: Bench, members: StoreMembers, http: httpx.Client, instances: int, steady_s: int) -> None:
        self._members = members
        self._asked = AskedMembers(bench, members, http)
        self._http = http
        self._instances = instances
        self._steady_s = steady_s
        self._leader = members.leader()
        self.remarks: list[str] = []

    def stages(self) -> Sequence[tuple[str, Callable[[], Quantities]]]:
        """By name, in the order in which they have to be taken."""
        return (
            ("fill", self._fill), ("memory", self._memory), ("steady", self._steady),
            ("restart of a follower", self._restart_follower), ("restart of all", self._restart_all),
        )  # fmt: skip

    def _fill(self) -> Quantities:
        with self._pauses() as pauses:
            figures = self._asked.fill(self._leader, range(self._instances), LIVE_S, STAGE_S_MAX)
        yield "fill: registrations/s, 64 connections", figures.requests_per_s
        yield "fill: registration, p99 ms", figures.p99_ms
        yield from pause_readings("fill", pauses)
        self._must_have_all()

    def _memory(self) -> Quantities:
        for role, number in (("the leader", self._leader), ("a follower", self._another)):
            process = self._members.process(number)
            yield f"memory of {role}: MiB", process.memory_bytes() / _MIB
            yield f"memory of {role}, not of files: MiB", process.anonymous_bytes() / _MIB

    def _steady(self) -> Quantities:
        arguments = [argument for url in self._members.urls for argument in ("--url", url)]
        arguments += ["--count", str(self._instances), "--batch", str(BATCH), "--interval", str(BEAT_INTERVAL_S)]
        # Once around first: what a member learns with the first beat of each it need not learn again.
        self._keep(arguments, BEAT_INTERVAL_S)
        with self._pauses() as pauses:
            before_s, began_s = self._cpu_s(), time.perf_counter()
            figures = self._keep(arguments, self._steady_s)
            cores = (self._cpu_s() - before_s) / (time.perf_counter() - began_s)
        if self._asked.side.name == OURS:
            kept = "met" if cores <= STEADY_CORES_GOAL else "missed"
            self.remarks.append(f"{OURS}: steady at {cores:.2f} cores (≤ {STEADY_CORES_GOAL:g} {kept})")
        if figures.extra["late_us"] > LATE_S_NOTED * 1e6:
            self.remarks.append(f"{self._asked.side.name}: a batch left {figures.extra['late_us'] / 1e6:.1f} s late")
        yield f"steady, {self._instances / BEAT_INTERVAL_S:,.0f} beats/s: cores of all", cores
        yield "steady: a batch of heartbeats, p50 ms", figures.p50_ms
        yield "steady: a batch of heartbeats, p99 ms", figures.p99_ms
        yield from pause_readings("steady", pauses)
        self._must_have_all()

    def _cpu_s(self) -> float:
        return sum(process.cpu_s() for process in self._members.processes)

    def _keep(self, arguments: Sequence[str], seconds: float) -> LoadFigures:
        return self._asked.client("keep", *arguments, "--seconds", f"{seconds:g}", within_s=seconds + KEEP_OVERRUN_S)

    def _restart_follower(self) -> Quantities:
        number = self._another
        self._members.stop(number)
        yield "restart of a follower: all instances after s", self._start_and_wait([number])

    def _restart_all(self) -> Quantities:
        numbers = range(len(self._members.urls))
        for number in numbers:
            self._members.stop(number)
        yield "restart of all: all instances at the last one after s", self._start_and_wait(numbers)
        self._leader = self._members.leader()
        self._must_have_all()

    def _start_and_wait(self, numbers: Sequence[int]) -> float:
        """Until each has counted all instances, by a read that is not stale."""
        began_s = time.perf_counter()
        for number in numbers:
            self._members.start(number)
        for number in numbers:
            until(
                f"{self._members.names[number]} has all instances",
                partial(self._has_all, number),
                self._members.processes,
                STAGE_S_MAX,
            )
        return time.perf_counter() - began_s

    def _has_all(self, number: int) -> bool:
        try:
            return self._asked.count(number) == self._instances
        except BenchmarkFailed:
            return False  # it has no leader yet, or still loads

    def _must_have_all(self) -> None:
        counted = self._asked.count(self._another)
        if counted != self._instances:
            raise BenchmarkFailed(f"{counted} instances are registered, and {self._instances} should be")

    @property
    def _another(self) -> int:
        return (self._leader + 1) % len(self._members.urls)

    @contextmanager
    def _pauses(self) -> Iterator[list[Pauses]]:
        """What the leader's event loop has felt meanwhile, when it is over; nothing of etcd, which has no such loop."""
        found: list[Pauses] = []
        if not isinstance(self._members, QuorateMembers):
            yield found
            return
        url = self._members.urls[self._leader]
        before = read_metrics(self._http, url).pauses
        yield found
        found.append(read_metrics(self._http, url).pauses - before)


def run_filled(
    bench: Bench, instances: int, rounds: int, steady_s: int, only: Sequence[str], tell: Tell
) -> KeysResults:
    """`only` names the contenders to run; none means all."""
    results = KeysResults(instances, what="instances")
    chosen = [name for name in (PEER, OURS) if not only or name in only]
    with httpx.Client(trust_env=False, timeout=STAGE_S_MAX) as http:
        for number in range(min(rounds, ROUNDS_MAX)):
            for name in turn_order(chosen, number):
                try:
                    with (QuorateMembers if name == OURS else EtcdMembers)(bench, http) as members:
                        filled = FilledRegistry(bench, members, http, instances, steady_s)
                        _take_turn(filled, name, number, results, tell)
                except (BenchmarkFailed, httpx.HTTPError) as error:
                    _fail(results, number, name, "start", error, tell)
    return results


def _take_turn(filled: FilledRegistry, name: str, number: int, results: KeysResults, tell: Tell) -> None:
    for stage, measure in filled.stages():
        try:
            for quantity, value in measure():
                results.readings.append(Reading(number, name, quantity, value))
                tell(f"  {name:<10} {quantity:<60} {value:>12,.2f}")
        except (BenchmarkFailed, httpx.HTTPError) as error:
            _fail(results, number, name, stage, error, tell)
            break  # what comes after it would be measured with something else
    results.remarks += [f"round {number + 1}, {remark}" for remark in filled.remarks]


def _fail(results: KeysResults, number: int, name: str, stage: str, error: Exception, tell: Tell) -> None:
    text = f"round {number + 1}, {name}, {stage}: {str(error) or type(error).__name__}"
    results.failures.append(text)
    tell(f"  FAILED: {text}")

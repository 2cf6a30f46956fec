"""Watchers beside etcd's: a thousand streams on one prefix, over three members, and puts at a fixed rate.

The client is `watch_client`, one process, the same for both. It counts: an event that misses one watcher, comes twice
or out of order is a failure, and there is no figure then.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures
from benchmarks.measurements import Bound, Figure, Goal
from benchmarks.peers import ROOT
from benchmarks.processes import Process
from benchmarks.rounds import Bench, Contender, Load, Start
from benchmarks.store_members import MEMBERS, PUT, WATCH, EtcdMembers, QuorateMembers, StoreMembers
from benchmarks.wrk import read_to_end

WATCHERS = 1_000
RATES = (10, 100)
"""Events a second; each goes to every watcher."""
FULL_MEASURE_S = 30
P99_MS_MAX = 100.0
OVERRUN_S_MAX = 400.0
"""For opening the streams, and for what is still on its way after the last put."""
LATE_S_NOTED = 0.05
"""Puts that left later than this say that the client had too little of the cores."""
CHECK_TIMEOUT_S = 30.0

LOADS = tuple(Load(f"{WATCHERS:,} watchers, {rate} events/s", WATCHERS, WATCH, work=str(rate)) for rate in RATES)


class WatchScenario:
    name = "watch"
    title = "Watch: 1,000 watchers of one prefix over three members; a request is an event that reached one of them"
    summary = "1,000 watchers of one prefix beside etcd's: every event to all of them, and how late"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = LOADS
    goals: Sequence[Goal] = ()
    bounds: Sequence[Bound] = (Bound(LOADS[-1].name, "quorate", Figure.P99, P99_MS_MAX),)
    are_cores_shared = True
    full_measure_s: int | None = FULL_MEASURE_S

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S) as http:
            yield {
                "etcd": partial(_watched, bench, partial(EtcdMembers, bench, http)),
                "quorate": partial(_watched, bench, partial(QuorateMembers, bench, http, profiled), profiled),
            }


class WatchedCluster:
    """Members that are up, and the client that watches them."""

    def __init__(self, bench: Bench, members: StoreMembers, profiled: bool) -> None:
        self._bench = bench
        self._members = members
        self._leader = members.leader()
        self.processes: Sequence[Process] = members.processes
        self.sampled = members.process(self._leader) if profiled else None
        self._probes = 0

    def prepare(self, load: Load) -> None:
        """Nothing: a watch needs no keys before it."""

    def run(self, load: Load, seconds: int) -> LoadFigures:
        command = [
            sys.executable, "-P", "-m", "benchmarks.watch_client", "--put", self._members.urls[self._leader] + PUT,
            *(argument for url in self._members.urls for argument in ("--watch", url + WATCH)),
            "--watchers", str(load.connections), "--rate", load.work, "--seconds", str(seconds),
        ]  # fmt: skip
        environment = {"PYTHONPATH": str(ROOT)}
        with Process("watchers", command, self._bench.cores, self._bench.folder, environment) as client:
            return read_to_end(client, seconds + OVERRUN_S_MAX, lambda: self.check(load))

    def check(self, load: Load) -> None:
        """A put outside of what is watched, read at once from another member."""
        self._probes += 1
        key, value = b"bench/probe", f"probe {self._probes}".encode()
        self._members.put(self._leader, key, value)
        number = (self._leader + 1) % MEMBERS
        found = self._members.get(number, key)
        if found != [value]:
            raise BenchmarkFailed(f"{self._members.names[number]} holds {found!r}, and {value!r} was written")

    def begin(self, load: Load) -> None:
        """Nothing: the client counts for itself."""

    def end(self, load: Load) -> None:
        """Nothing: the client counts for itself."""

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        wanted = load.connections * figures.extra["puts"]
        if figures.requests != wanted:
            raise BenchmarkFailed(f"{figures.requests} events reached watchers, and {wanted} should have")
        if figures.extra["put_late_us"] > LATE_S_NOTED * 1e6:
            yield f"a put left {figures.extra['put_late_us'] / 1e3:.0f} ms after it was due: the cores were full"
        leader = self._members.leader()
        if leader != self._leader:
            self._leader = leader
            yield "the leader changed during the measurement"


@contextmanager
def _watched(bench: Bench, make: Callable[[], StoreMembers], profiled: bool = False) -> Iterator[Contender]:
    with make() as members:
        yield WatchedCluster(bench, members, profiled)

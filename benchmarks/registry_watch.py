"""The registry's fan-out beside etcd's: watchers of one service over three members, whose instances change.

The client is `registry_watch_client`, one process, the same for both sides. It fails when a watcher does not come to
see the last change of each instance, or sees one go back.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import PREFIX, LoadFigures, parse_figures
from benchmarks.measurements import Bound, Figure, Goal
from benchmarks.node_metrics import PAUSE_S_MAX, Pauses, read_metrics
from benchmarks.peers import ROOT
from benchmarks.processes import Process, until
from benchmarks.registry import CHECK_TIMEOUT_S, FILL_S_MAX, TTL_S, AskedMembers
from benchmarks.registry_sides import SMALL, id_of, service_of
from benchmarks.registry_watch_client import DRAIN_S_MAX, IN_FORCE, SETUP_S_MAX
from benchmarks.rounds import Bench, Contender, Load, Start
from benchmarks.store_members import EtcdMembers, QuorateMembers, StoreMembers
from benchmarks.wrk import OVERRUN_S_MAX, PROBE_INTERVAL_S

FULL_MEASURE_S = 30
LATE_S_NOTED = 0.05
"""Changes that left later than this say that the client had too little of the cores."""

LOADS = tuple(
    Load(f"{watchers:,} watchers of a service, {rate} change{'s' * (rate > 1)}/s", watchers, "", work=str(rate))
    for watchers, rate in ((1_000, 10), (10_000, 1))
)
"""`work` is the rate of changes; each goes to every watcher."""


class RegistryWatchScenario:
    name = "registry-watch"
    title = "Registry watch: watchers of one service over three members; a request is a change that reached one of them"
    summary = "1,000 and 10,000 watchers of a service beside etcd's: every change to all of them, and how late"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = LOADS
    goals: Sequence[Goal] = ()
    bounds: Sequence[Bound] = (
        Bound(LOADS[0].name, "quorate", Figure.P99, 100.0),
        Bound(LOADS[1].name, "quorate", Figure.P99, 1_000.0),
    )
    are_cores_shared = True
    full_measure_s: int | None = FULL_MEASURE_S

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S) as http:
            yield {
                "etcd": partial(_watched, bench, http, partial(EtcdMembers, bench, http)),
                "quorate": partial(_watched, bench, http, partial(QuorateMembers, bench, http, profiled), profiled),
            }


class WatchedService:
    """Members that are up with the service's instances, and the client that watches them."""

    def __init__(self, bench: Bench, members: StoreMembers, http: httpx.Client, profiled: bool) -> None:
        self._bench = bench
        self._members = members
        self._asked = AskedMembers(bench, members, http)
        self._leader = members.leader()
        self.processes: Sequence[Process] = members.processes
        self.sampled = members.process(self._leader) if profiled else None
        self._is_filled = False
        self._client: Process | None = None
        self._http = http
        self._before: list[Pauses] = []
        self._long_pauses: list[int] = []
        self._go = members.folder / "go"

    def prepare(self, load: Load) -> None:
        if not self._is_filled:
            self._asked.fill(self._leader, SMALL, TTL_S, FILL_S_MAX)
            self._is_filled = True

    def run(self, load: Load, seconds: int) -> LoadFigures:
        """One without `begin` and `end` around it is the warm-up, and does both itself."""
        is_alone = self._client is None
        if is_alone:
            self.begin(load)
        try:
            return self._watch(load, seconds)
        finally:
            if is_alone:
                self.end(load)

    def begin(self, load: Load) -> None:
        """Open all streams, so that this is no part of what is measured."""
        for number in SMALL:  # each run counts its changes from 1
            self._asked.ask(self._leader, self._asked.side.change(number, TTL_S, 0))
        command = [
            sys.executable, "-P", "-m", "benchmarks.registry_watch_client", "--side", self._asked.side.name,
            *(argument for url in self._members.urls for argument in ("--url", url)),
            "--change-url", self._members.urls[self._leader], "--watchers", str(load.connections),
            "--rate", load.work, "--go", str(self._go),
        ]  # fmt: skip
        self._client = Process("watchers", command, self._bench.cores, self._members.folder, {"PYTHONPATH": str(ROOT)})
        client = self._client
        until("all streams are in force", lambda: IN_FORCE in client.log, [client], SETUP_S_MAX)
        self._before = self._pauses()

    def _watch(self, load: Load, seconds: int) -> LoadFigures:
        client = self._client
        if client is None:
            raise BenchmarkFailed("nobody watches")
        # Renamed when it is whole, so that it is never read half.
        draft = self._go.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.rename(self._go)
        within_s = seconds + DRAIN_S_MAX + OVERRUN_S_MAX

        def figures() -> LoadFigures | None:
            self.check(load)
            return parse_figures(client.log) if "\n" + PREFIX in client.log else None

        found = until("the changes have reached everybody", figures, [client], within_s, PROBE_INTERVAL_S)
        if found.failed:
            raise client.failure(f"counted {found.failed} failed requests:")
        return found

    def end(self, load: Load) -> None:
        """Look at the pauses, and close all streams."""
        if self._client is not None:
            self._long_pauses = [
                (now - before).longer_than(PAUSE_S_MAX)
                for now, before in zip(self._pauses(), self._before, strict=True)
            ]
        self.close()

    def close(self) -> None:
        self._go.unlink(missing_ok=True)
        client, self._client = self._client, None
        if client is not None:
            client.end()

    def _pauses(self) -> list[Pauses]:
        """Of each member's event loop; nothing of etcd's, which have none."""
        if not isinstance(self._members, QuorateMembers):
            return []
        return [read_metrics(self._http, url).pauses for url in self._members.urls]

    def check(self, load: Load) -> None:
        """All instances, at a member that does not take the changes."""
        number = (self._leader + 1) % len(self._members.urls)
        found = self._asked.list(number, service_of(SMALL[0]))
        if found != [id_of(number) for number in SMALL]:
            raise BenchmarkFailed(f"the service has {found}, and {len(SMALL)} instances are registered")

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        wanted = load.connections * figures.extra["changes"]
        if figures.requests != wanted:
            raise BenchmarkFailed(f"{figures.requests} changes reached watchers, and {wanted} should have")
        if figures.extra["together"]:
            share = figures.extra["together"] / figures.requests
            yield f"{share:.1%} of the changes came together with a later one of the same instance"
        if self._long_pauses:
            yield f"pauses of over {PAUSE_S_MAX * 1e3:.0f} ms of a member's loop: {sum(self._long_pauses)}"
        if figures.extra["change_late_us"] > LATE_S_NOTED * 1e6:
            yield f"a change left {figures.extra['change_late_us'] / 1e3:.0f} ms after it was due: the cores were full"
        leader = self._members.leader()
        if leader != self._leader:
            self._leader = leader
            yield "the leader changed during the measurement"


@contextmanager
def _watched(
    bench: Bench, http: httpx.Client, make: Callable[[], StoreMembers], profiled: bool = False
) -> Iterator[Contender]:
    with make() as members:
        watched = WatchedService(bench, members, http, profiled)
        try:
            yield watched
        finally:
            watched.close()

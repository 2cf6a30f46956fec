"""Consensus under load: `python -m benchmarks.consensus endurance --minutes 10` and `… catch-up --entries 1000000`.

Three nodes and wrk share the cores; wrk puts through the leader's v3 JSON API, 64 at once, all the time.

- endurance: elections, changes of the leader, and pauses of each node's event loop, with no fault at all.
- catch-up: a follower is killed, so many entries are written without it, and it comes back while writing goes on. How
  long until it has applied all that was committed when it came back, by a snapshot or by the log, and what pauses the
  leader's event loop had meanwhile.
"""

import argparse
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from quorate_cli.ports import free_ports

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures
from benchmarks.machine import describe_machine
from benchmarks.node_metrics import PAUSE_S_MAX, Pauses, read_metrics
from benchmarks.peers import WORKING_FOLDER, Program, read_programs
from benchmarks.processes import Process, until
from benchmarks.quorate_processes import start_node, wait_ready
from benchmarks.run import tell
from benchmarks.store import POST_BODIES, WRITTEN
from benchmarks.store_members import PUT
from benchmarks.store_records import Work
from benchmarks.wrk import command_line, run_wrk

MEMBERS = 3
CONNECTIONS = 64
CORES = (0, 1)
SLICE_S = 10
"""wrk runs for so long at a time, and then again."""
CATCH_UP_S_MAX = 300.0


@dataclass(frozen=True)
class Counts:
    """What one node has counted since it started."""

    elections: float
    leader_changes: float
    snapshots_taken: float
    snapshots_sent: float
    pauses: Pauses

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(
            self.elections - before.elections, self.leader_changes - before.leader_changes,
            self.snapshots_taken - before.snapshots_taken, self.snapshots_sent - before.snapshots_sent,
            self.pauses - before.pauses,
        )  # fmt: skip


class LoadedCluster:
    """Three nodes, of which a follower can be killed and started again, and a load on the leader."""

    def __init__(self, folder: Path, http: httpx.Client, wrk: Program, ends: ExitStack) -> None:
        self._folder = folder
        self._http = http
        self._wrk = wrk
        self._ends = ends
        self._names = [f"node-{number}" for number in range(1, MEMBERS + 1)]
        ports = free_ports(2 * MEMBERS, "127.0.0.1", random.Random())
        self._http_ports = dict(zip(self._names, ports[:MEMBERS], strict=True))
        self._peers = dict(zip(self._names, ports[MEMBERS:], strict=True))
        self.processes: dict[str, Process] = {}
        for name in self._names:
            self.start(name)
        for name in self._names:
            wait_ready(http, self.url(name), self.processes[name])
        self.leader = until("the nodes agree on a leader", self._agreed_leader, self._running())
        self._bodies = folder / "bodies.txt"
        self._bodies.write_text("\n".join(WRITTEN.bodies(Work.PUT)) + "\n")

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._http_ports[name]}"

    def start(self, name: str) -> None:
        process = start_node(name, self._peers, self._http_ports[name], CORES, self._folder)
        self.processes[name] = self._ends.enter_context(process)

    def kill(self, name: str) -> None:
        self.processes[name].signal(signal.SIGKILL)
        self.processes[name].wait(SLICE_S)

    @property
    def followers(self) -> Sequence[str]:
        return [name for name in self._names if name != self.leader]

    def load(self, seconds: int) -> LoadFigures:
        """Put for so long through the leader."""
        url = self.url(self.leader) + PUT
        command = command_line(self._wrk.path, url, CONNECTIONS, seconds, POST_BODIES, [str(self._bodies)])
        return run_wrk(self._wrk, command, seconds, CORES, self._folder, lambda: None)

    def applied_index(self, name: str) -> int:
        return int(str(self._node(name)["applied_index"]))

    def counts(self, name: str) -> Counts:
        metrics = read_metrics(self._http, self.url(name))
        return Counts(
            metrics.total("quorate_raft_elections_total"), metrics.total("quorate_raft_leader_changes_total"),
            metrics.total("quorate_raft_snapshots_taken_total"), metrics.total("quorate_raft_snapshots_sent_total"),
            metrics.pauses,
        )  # fmt: skip

    def _running(self) -> list[Process]:
        return list(self.processes.values())

    def _node(self, name: str) -> dict[str, object]:
        return dict(self._http.get(f"{self.url(name)}/v1/cluster/node").json())

    def _agreed_leader(self) -> str | None:
        leaders = {str(self._node(name)["leader"]) for name in self._names}
        return leaders.pop() if len(leaders) == 1 else None


def measure_endurance(cluster: LoadedCluster, minutes: float) -> None:
    names = list(cluster.processes)
    before = {name: cluster.counts(name) for name in names}
    ends_s, puts, slowest_ms = time.monotonic() + minutes * 60, 0, 0.0
    while time.monotonic() < ends_s:
        figures = cluster.load(min(SLICE_S, max(1, round(ends_s - time.monotonic()))))
        puts, slowest_ms = puts + figures.requests, max(slowest_ms, figures.max_ms)
    tell(f"{minutes:g} minutes, {puts:,} puts, slowest {slowest_ms:.0f} ms")
    for name in names:
        tell(f"  {_line(name, cluster.counts(name) - before[name], leads=name == cluster.leader)}")


def measure_catch_up(cluster: LoadedCluster, entries: int) -> None:
    away, leader = cluster.followers[0], cluster.leader
    cluster.kill(away)
    base = cluster.applied_index(leader)
    while (written := cluster.applied_index(leader) - base) < entries:
        cluster.load(SLICE_S)
        tell(f"  {written:,} entries written without {away}")
    before, target = cluster.counts(leader), cluster.applied_index(leader)
    began_s = time.monotonic()
    cluster.start(away)
    caught_up_s: float | None = None
    slices: list[LoadFigures] = []
    while caught_up_s is None:
        if time.monotonic() - began_s > CATCH_UP_S_MAX:
            raise BenchmarkFailed(f"{away} has not caught up within {CATCH_UP_S_MAX:.0f} s")
        slices.append(cluster.load(1))
        try:
            caught_up_s = time.monotonic() - began_s if cluster.applied_index(away) >= target else None
        except (httpx.HTTPError, KeyError):
            continue  # it is not up yet
    rate = sum(each.requests for each in slices) / sum(each.duration_s for each in slices)
    tell(
        f"{away} lacked {target - base:,} entries and had applied them {caught_up_s:.1f} s after its start, while "
        f"clients put {rate:,.0f} a second (slowest {max(each.max_ms for each in slices):.0f} ms)"
    )
    tell(f"  meanwhile: {_line(leader, cluster.counts(leader) - before, leads=True)}")


def _line(name: str, counts: Counts, *, leads: bool) -> str:
    role, late = "leader" if leads else "follower", counts.pauses.longer_than(PAUSE_S_MAX)
    return (
        f"{name} ({role}): {counts.elections:.0f} elections, {counts.leader_changes:.0f} changes of the leader, "
        f"{counts.snapshots_taken:.0f} snapshots taken, {counts.snapshots_sent:.0f} sent; {late} "
        f"of {counts.pauses.count} timers late by over {PAUSE_S_MAX * 1000:.0f} ms (all within "
        f"{counts.pauses.all_within_s * 1000:g} ms)"
    )


@contextmanager
def _loaded_cluster() -> Iterator[LoadedCluster]:
    runs = WORKING_FOLDER / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="consensus-", dir=runs))
    try:
        programs = read_programs()
        tell("\n".join(describe_machine(folder, CORES, programs.versions).lines()))
        with httpx.Client(trust_env=False, timeout=SLICE_S) as http, ExitStack() as ends:
            yield LoadedCluster(folder, http, programs["wrk"], ends)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.consensus", description="Consensus under load.")
    commands = parser.add_subparsers(required=True)
    endurance = commands.add_parser("endurance", help="elections and pauses without a fault")
    endurance.add_argument("--minutes", type=float, default=10)
    endurance.set_defaults(measure=lambda cluster, given: measure_endurance(cluster, given.minutes))
    catch_up = commands.add_parser("catch-up", help="a follower that was away comes back")
    catch_up.add_argument("--entries", type=int, default=1_000_000)
    catch_up.set_defaults(measure=lambda cluster, given: measure_catch_up(cluster, given.entries))
    given = parser.parse_args()
    measure: Callable[[LoadedCluster, argparse.Namespace], None] = given.measure
    try:
        with _loaded_cluster() as cluster:
            measure(cluster, given)
    except BenchmarkFailed as error:
        tell(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

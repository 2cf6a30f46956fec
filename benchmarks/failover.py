"""Leader killed to first successful write: `python -m benchmarks.failover --kills 50`.

Three nodes; two clients, each at one of those that will be left, put one key after the other through the v3 JSON API.
The leader is ended with SIGKILL; the time runs until the first put that was sent after that is acknowledged. Then the
killed one is started again, and there is no further kill before it has caught up.
"""

import argparse
import base64
import json
import math
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from quorate_cli.ports import free_ports

from benchmarks.failures import BenchmarkFailed
from benchmarks.machine import describe_machine
from benchmarks.peers import WORKING_FOLDER
from benchmarks.processes import Process, until
from benchmarks.quorate_processes import start_node, wait_ready
from benchmarks.run import tell

MEMBERS = 3
CORES = (0, 1)
KILLS_DEFAULT = 50
GOAL_P99_S = 1.5
PUT = "/v3/kv/put"
VALUE_BYTES = 256
PUT_S_MAX = 1.0
"""A put that waits for longer than this is given up, and another one sent."""
PUT_INTERVAL_S = 0.005
OUTAGE_S_MAX = 30.0
ASK_S_MAX = 5.0


class Prober(threading.Thread):
    """Puts at one node until one is acknowledged, and `acknowledged_s` says when, or `settled` is set by another."""

    def __init__(self, url: str, settled: threading.Event) -> None:
        super().__init__(name=f"prober of {url}", daemon=True)
        self._url = url
        self._settled = settled
        self.acknowledged_s: float | None = None
        self.refusals = 0

    def run(self) -> None:
        body = json.dumps({"key": _text(b"failover"), "value": _text(b"x" * VALUE_BYTES)})
        with httpx.Client(trust_env=False, timeout=PUT_S_MAX) as http:
            while not self._settled.is_set():
                try:
                    if http.post(self._url + PUT, content=body).is_success:
                        self.acknowledged_s = time.monotonic()
                        self._settled.set()
                        return
                except httpx.HTTPError:
                    pass  # refused, or not answered in time
                self.refusals += 1
                self._settled.wait(PUT_INTERVAL_S)


class Failover:
    """Three nodes, of which one after the other is killed as it leads."""

    def __init__(self, folder: Path, http: httpx.Client, ends: ExitStack) -> None:
        self._folder = folder
        self._http = http
        self._ends = ends
        names = [f"node-{number}" for number in range(1, MEMBERS + 1)]
        ports = free_ports(2 * MEMBERS, "127.0.0.1", random.Random())
        self._http_ports = dict(zip(names, ports[:MEMBERS], strict=True))
        self._peers = dict(zip(names, ports[MEMBERS:], strict=True))
        self._processes: dict[str, Process] = {}
        for name in names:
            self._start(name)
        for name in names:
            wait_ready(http, self._url(name), self._processes[name])

    def kill_leader(self) -> float:
        """Returns after how many seconds a write succeeded. All nodes are up and have caught up before and after."""
        leader = self._wait_whole()
        settled = threading.Event()
        probers = [Prober(self._url(name), settled) for name in self._processes if name != leader]
        self._processes[leader].signal(signal.SIGKILL)
        killed_s = time.monotonic()
        for prober in probers:
            prober.start()
        if not settled.wait(OUTAGE_S_MAX):
            raise BenchmarkFailed(f"no write succeeded within {OUTAGE_S_MAX:.0f} s after {leader} was killed")
        for prober in probers:
            prober.join(2 * PUT_S_MAX)
        first_s = min(prober.acknowledged_s for prober in probers if prober.acknowledged_s is not None)
        self._processes[leader].wait(ASK_S_MAX)
        self._start(leader)
        wait_ready(self._http, self._url(leader), self._processes[leader])
        return first_s - killed_s

    def _wait_whole(self) -> str:
        """Until all agree on a leader, and have applied what it has committed; returns the leader."""

        def whole() -> str | None:
            found = [self._http.get(self._url(name) + "/v1/cluster/node").json() for name in self._processes]
            agreed = {(each["leader"], each["term"]) for each in found}
            behind = [each for each in found if each["applied_index"] < max(one["commit_index"] for one in found)]
            return str(found[0]["leader"]) if len(agreed) == 1 and found[0]["leader"] and not behind else None

        return until("all nodes have caught up", whole, list(self._processes.values()))

    def _start(self, name: str) -> None:
        process = start_node(name, self._peers, self._http_ports[name], CORES, self._folder)
        self._processes[name] = self._ends.enter_context(process)

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._http_ports[name]}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def measure(failover: Failover, kills: int) -> None:
    taken: list[float] = []
    for number in range(1, kills + 1):
        taken.append(failover.kill_leader())
        tell(f"  kill {number}: {taken[-1] * 1000:.0f} ms")
    p50, p99 = statistics.median(taken), percentile(taken, 99)
    verdict = "reached" if p99 < GOAL_P99_S else "MISSED"
    tell(
        f"leader killed to first successful write, {kills} kills: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, "
        f"longest {max(taken) * 1000:.0f} ms (goal: p99 under {GOAL_P99_S * 1000:.0f} ms, {verdict})"
    )


@contextmanager
def _failover() -> Iterator[Failover]:
    runs = WORKING_FOLDER / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="failover-", dir=runs))
    try:
        machine = describe_machine(folder, CORES, peers={})
        tell("\n".join(line for line in machine.lines() if not line.startswith("peers")))  # there are none here
        with httpx.Client(trust_env=False, timeout=ASK_S_MAX) as http, ExitStack() as ends:
            yield Failover(folder, http, ends)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description="Leader killed to first write.")
    parser.add_argument("--kills", type=int, default=KILLS_DEFAULT)
    kills = max(1, parser.parse_args().kills)
    try:
        with _failover() as failover:
            measure(failover, kills)
    except BenchmarkFailed as error:
        tell(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A store that is filled with many keys, and the stages of what is measured with it.

Three members are filled, and then, in this order: their memory and disk are read; a snapshot is saved from the leader;
a follower is away while every key is put once more, and catches up; all that history is compacted; a follower is
restarted that has missed nothing; all of them are. While the leader saves, helps to catch up and compacts, a put every
PROBE_INTERVAL_S says what a client feels of it, on either side. Of ours the pauses of the leader's event loop are read
as well: each is a time in which it does nothing else, so it has a bound.

Keys are counted and values read back after filling, after catching up, after compaction and after each restart.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.keys_client import PREFIX, PREFIX_END, key_of, value_of
from benchmarks.load_figures import LoadFigures
from benchmarks.node_metrics import PAUSE_S_MAX, Pauses, read_metrics
from benchmarks.peers import ROOT
from benchmarks.processes import Process, until
from benchmarks.rounds import Bench
from benchmarks.store_members import (
    COMPACTION,
    MEMBERS,
    PUT,
    RANGE,
    SNAPSHOT,
    TRANSACTION,
    QuorateMembers,
    Refused,
    StoreMembers,
    text_of,
)
from benchmarks.wrk import read_to_end

READ_BACK = 50
STAGE_S_MAX = 900.0
"""No stage may take longer, however many keys there are."""
PROBE_INTERVAL_S = 0.05
PROBE_S_MAX = 30.0
IDLE_CORES_MAX = 0.3
"""Members are at rest when all together use less than this of a core; probing takes some of it."""
IDLE_SAMPLE_S = 0.5
_MIB = 1024**2

Quantities = Iterator[tuple[str, float]]
"""What was measured, by name with its unit."""


class Prober(threading.Thread):
    """Puts one key after the other, until it is told to stop, and keeps how long each took."""

    def __init__(self, url: str) -> None:
        super().__init__(name="prober", daemon=True)
        self._url = url
        self._stopped = threading.Event()
        self._latencies_s: list[float] = []
        self._failure = ""

    def run(self) -> None:
        body = f'{{"key":"{text_of(b"bench/probe")}","value":"{text_of(bytes(256))}"}}'
        with httpx.Client(trust_env=False, timeout=PROBE_S_MAX) as http:
            while not self._stopped.wait(PROBE_INTERVAL_S):
                began_s = time.perf_counter()
                try:
                    answer = http.post(self._url + PUT, content=body)
                except httpx.HTTPError as error:
                    self._failure = f"{type(error).__name__}: {error}"
                    return
                if not answer.is_success:
                    self._failure = f"{answer.status_code}: {answer.text[:300]}"
                    return
                self._latencies_s.append(time.perf_counter() - began_s)

    def stop(self) -> None:
        self._stopped.set()
        self.join(2 * PROBE_S_MAX)

    def longest_ms(self) -> float:
        """Once it has stopped. Raises BenchmarkFailed when a put failed, or none was made."""
        if self._failure or not self._latencies_s:
            raise BenchmarkFailed(f"a put of the prober failed: {self._failure or 'there was none'}")
        return max(self._latencies_s) * 1e3


class FilledCluster:
    """Members that are up, and every stage of what is measured with them. A stage raises BenchmarkFailed."""

    def __init__(self, bench: Bench, members: StoreMembers, http: httpx.Client, keys: int) -> None:
        self._bench = bench
        self._members = members
        self._http = http
        self._keys = keys
        self._leader = members.leader()
        self._generation = 1

    def follow_leader(self) -> bool:
        """Ask who leads now; returns whether it is another one than before."""
        before, self._leader = self._leader, self._members.leader()
        return self._leader != before

    @property
    def leading_process(self) -> Process:
        return self._members.process(self._leader)

    def stages(self) -> Sequence[tuple[str, Callable[[], Quantities]]]:
        """By name, in the order in which they have to be taken."""
        return (
            ("fill", self._fill), ("cost", self._cost), ("snapshot", self._save_snapshot),
            ("catch-up", self._catch_up), ("compaction", self._compact),
            ("restart of a follower", self._restart_follower), ("restart of all", self._restart_all),
        )  # fmt: skip

    def _fill(self) -> Quantities:
        with self._pauses() as pauses:
            figures = self._put_all()
        if figures.requests != self._keys:
            raise BenchmarkFailed(f"{figures.requests} keys were put, and not {self._keys}")
        yield "fill: keys/s", figures.requests_per_s
        yield "fill: transaction of 100 puts, p99 ms", figures.p99_ms
        yield from pause_readings("fill", pauses)
        self._must_hold_all()

    def _cost(self) -> Quantities:
        self._wait_idle()
        for role, number in self._roles():
            process = self._members.process(number)
            yield f"memory of {role}: MiB", process.memory_bytes() / _MIB
            yield f"memory of {role}, not of files: MiB", process.anonymous_bytes() / _MIB
        yield "disk of the leader: MiB", folder_bytes(self._members.data_folder(self._leader)) / _MIB

    def _save_snapshot(self) -> Quantities:
        file = self._members.folder / "saved.snapshot"
        with self._pauses() as pauses, self._probed() as longest_ms:
            figures = self._client("snapshot", SNAPSHOT, "--file", str(file))
        file.unlink()
        yield "snapshot: s", figures.duration_s
        yield "snapshot: MiB", figures.extra["bytes"] / _MIB
        yield "snapshot: slowest put meanwhile, ms", longest_ms[0]
        yield from pause_readings("snapshot", pauses)

    def _catch_up(self) -> Quantities:
        number = (self._leader + 1) % MEMBERS
        self._members.stop(number)
        self._generation += 1
        self._put_all()
        with self._pauses() as pauses, self._probed() as longest_ms:
            took_s = self._start_and_wait([number])
        yield "catch-up of a follower that missed every key: s", took_s
        yield "catch-up: slowest put meanwhile, ms", longest_ms[0]
        yield from pause_readings("catch-up", pauses)
        self._must_hold_all()

    def _compact(self) -> Quantities:
        self._wait_idle()
        revision = self._members.status(self._leader)[0]
        with self._pauses() as pauses, self._probed() as longest_ms:
            began_s = time.perf_counter()
            self._members.post(self._leader, COMPACTION, {"revision": str(revision), "physical": True})
            answered_s = time.perf_counter() - began_s
            self._wait_idle()
            idle_s = time.perf_counter() - began_s
        yield "compaction of all history: answered after s", answered_s
        yield "compaction of all history: members at rest after s", idle_s
        yield "compaction: slowest put meanwhile, ms", longest_ms[0]
        yield from pause_readings("compaction", pauses)
        self._must_hold_all()

    def _restart_follower(self) -> Quantities:
        number = (self._leader + 1) % MEMBERS
        self._members.stop(number)
        yield "restart of a follower: first answer after s", self._start_and_wait([number])
        self._must_hold_all()

    def _restart_all(self) -> Quantities:
        for number in range(MEMBERS):
            self._members.stop(number)
        yield "restart of all: first answer of the last one after s", self._start_and_wait(range(MEMBERS))
        self.follow_leader()
        self._must_hold_all()

    def _start_and_wait(self, numbers: Sequence[int]) -> float:
        """Until each has answered a linearizable read, and so has applied all that was committed before."""
        began_s = time.perf_counter()
        for number in numbers:
            self._members.start(number)
        for number in numbers:
            until(
                f"{self._members.names[number]} answers",
                partial(self._answers, number),
                self._members.processes,
                STAGE_S_MAX,
            )
        return time.perf_counter() - began_s

    def _answers(self, number: int) -> bool:
        try:
            return self._members.get(number, key_of(0)) == [value_of(0, self._generation)]
        except Refused:
            return False  # it has no leader yet

    def _put_all(self) -> LoadFigures:
        return self._client("fill", TRANSACTION, "--keys", str(self._keys), "--generation", str(self._generation))

    def _roles(self) -> Iterator[tuple[str, int]]:
        yield "the leader", self._leader
        for nth, each in enumerate(("a follower", "the other follower"), 1):
            yield each, (self._leader + nth) % MEMBERS

    def _must_hold_all(self) -> None:
        """Count all keys, and read some, from a member that did not take the writes."""
        another = (self._leader + 1) % MEMBERS
        body = {"key": text_of(PREFIX), "range_end": text_of(PREFIX_END), "count_only": True}
        counted = int(self._members.post(another, RANGE, body).get("count", 0))
        if counted != self._keys:
            raise BenchmarkFailed(f"{self._members.names[another]} holds {counted} keys, and {self._keys} were put")
        for number in random.sample(range(self._keys), READ_BACK):
            if self._members.get(another, key_of(number)) != [value_of(number, self._generation)]:
                raise BenchmarkFailed(
                    f"{self._members.names[another]} does not hold what was put to {key_of(number)!r}"
                )

    def _client(self, command: str, path: str, *arguments: str) -> LoadFigures:
        """Run `keys_client` against the leader to its end."""
        url = self._members.urls[self._leader] + path
        whole = [sys.executable, "-P", "-m", "benchmarks.keys_client", command, "--url", url, *arguments]
        environment = {"PYTHONPATH": str(ROOT)}
        with Process("keys-client", whole, self._bench.cores, self._bench.folder, environment) as client:
            return read_to_end(client, STAGE_S_MAX)

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

    @contextmanager
    def _probed(self) -> Iterator[list[float]]:
        """The longest put meanwhile, in ms, when it is over."""
        prober = Prober(self._members.urls[self._leader])
        found: list[float] = []
        prober.start()
        try:
            yield found
        finally:
            prober.stop()
        found.append(prober.longest_ms())

    def _wait_idle(self) -> None:
        """Until what the members still do by themselves is done."""
        deadline_s = time.monotonic() + STAGE_S_MAX
        while self._cores_busy() > IDLE_CORES_MAX:
            if time.monotonic() > deadline_s:
                raise BenchmarkFailed(
                    f"the members are not at rest {STAGE_S_MAX:.0f} s after they were asked for anything"
                )

    def _cores_busy(self) -> float:
        """Of all members together, over IDLE_SAMPLE_S."""
        before_s = sum(process.cpu_s() for process in self._members.processes)
        began_s = time.perf_counter()
        time.sleep(IDLE_SAMPLE_S)
        used_s = sum(process.cpu_s() for process in self._members.processes) - before_s
        return used_s / (time.perf_counter() - began_s)


def pause_readings(stage: str, pauses: Sequence[Pauses]) -> Quantities:
    """What a stage says of the pauses of the leader's loop; nothing where there is no such loop."""
    for each in pauses:
        yield f"{stage}: pauses of the leader's loop over {PAUSE_S_MAX * 1e3:.0f} ms", each.longer_than(PAUSE_S_MAX)
        yield f"{stage}: all pauses of the leader's loop within ms", each.all_within_s * 1e3


def folder_bytes(folder: Path) -> int:
    """Room that its files take on disk; of a sparse file, only what it has."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())

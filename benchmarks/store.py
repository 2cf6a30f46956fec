"""The store beside etcd: three members each, over etcd's v3 JSON API, on the same disk, every write synced.

wrk talks to the leader of either side. Members and wrk share the cores, and the data is new in each turn.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures
from benchmarks.measurements import Bound, Figure, Goal
from benchmarks.processes import Process
from benchmarks.rounds import Bench, Contender, Load, Start, run_wrk_load
from benchmarks.store_members import MEMBERS, PUT, RANGE, TRANSACTION, EtcdMembers, QuorateMembers, StoreMembers
from benchmarks.store_records import Records, Work, body_of

KEYS_WRITTEN = 10_000
"""Keys that the puts go around in: in a longer run they are overwritten, as in use."""
KEYS_READ = 1_000
"""Keys that are there before they are read; transactions put them again as they are."""
READ_BACK = 50
CHECK_TIMEOUT_S = 15.0
POST_BODIES = "post_bodies.lua"

PUT_LOADS = tuple(
    Load(f"put, {count} connection{'s' * (count > 1)}", count, PUT, POST_BODIES, Work.PUT) for count in (1, 64, 256)
)
RANGE_LOAD = Load("range, 64 connections", 64, RANGE, POST_BODIES, Work.RANGE)
SERIALIZABLE_LOAD = Load("serializable range, 64 connections", 64, RANGE, POST_BODIES, Work.SERIALIZABLE_RANGE)
TRANSACTION_LOAD = Load("transaction, 64 connections", 64, TRANSACTION, POST_BODIES, Work.TRANSACTION)


def _goals() -> Iterator[Goal]:
    for load, bound in zip(PUT_LOADS, (1.5, 2.5, 2.0), strict=True):
        yield Goal(load.name, "quorate", "etcd", Figure.RATE, bound)
        yield Goal(load.name, "quorate", "etcd", Figure.P50, 1.0)
        yield Goal(load.name, "quorate", "etcd", Figure.P99, 1.0)
    for load, bound in ((RANGE_LOAD, 3.0), (SERIALIZABLE_LOAD, 4.0), (TRANSACTION_LOAD, 2.0)):
        yield Goal(load.name, "quorate", "etcd", Figure.RATE, bound)


class StoreScenario:
    name = "store"
    title = "Store: three members, v3 JSON API, 256-byte values, every write synced"
    summary = "puts, ranges and transactions beside etcd, by wrk"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = (*PUT_LOADS, RANGE_LOAD, SERIALIZABLE_LOAD, TRANSACTION_LOAD)
    goals: Sequence[Goal] = tuple(_goals())
    bounds: Sequence[Bound] = ()
    are_cores_shared = True
    full_measure_s: int | None = None

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S) as http:
            yield {
                "etcd": partial(store_cluster, bench, partial(EtcdMembers, bench, http)),
                "quorate": partial(store_cluster, bench, partial(QuorateMembers, bench, http, profiled), profiled),
            }


WRITTEN = Records("bench/written", KEYS_WRITTEN)
READ = Records("bench/read", KEYS_READ)


def surely_written(requests: int) -> list[tuple[bytes, bytes]]:
    """Records that wrk has written when it counted so many puts. It takes the first request for a look at it, and
    sends it only when it comes around; and which of the last ones were answered is not known."""
    return list(WRITTEN.values.items())[1 : requests // 2 + 1]


class StoreCluster:
    """Members that are up, under wrk's load. Writes are checked by reading them from another member."""

    def __init__(self, bench: Bench, members: StoreMembers, profiled: bool = False) -> None:
        self._bench = bench
        self._members = members
        self._leader = members.leader()
        self.processes: Sequence[Process] = members.processes
        self.sampled = members.process(self._leader) if profiled else None
        self._revision_before = 0
        self._advanced = 0
        self._probes = 0
        self._is_filled = False

    def prepare(self, load: Load) -> None:
        work = Work(load.work)
        if work is not Work.PUT and not self._is_filled:
            for key, value in READ.values.items():
                self._members.put(self._leader, key, value)
            self._is_filled = True
        path = self._members.folder / _bodies_file(work)
        if not path.exists():
            path.write_text("\n".join((WRITTEN if work is Work.PUT else READ).bodies(work)) + "\n")

    def run(self, load: Load, seconds: int) -> LoadFigures:
        url = self._members.urls[self._leader] + load.path
        bodies = str(self._members.folder / _bodies_file(Work(load.work)))
        return run_wrk_load(self._bench, self, load, url, seconds, arguments=[bodies], cores=self._bench.cores)

    def check(self, load: Load) -> None:
        """A write that must be read at once from a member other than the one that took it, or a read."""
        self._probes += 1
        work = Work(load.work)
        if work is Work.PUT:
            key, value = b"bench/probe", f"probe {self._probes}".encode()
            self._members.put(self._leader, key, value)
        else:
            key, value = random.choice(list(READ.values.items()))
        if work is Work.TRANSACTION:
            answer = self._members.post(self._leader, TRANSACTION, body_of(work, key, value))
            if answer.get("succeeded") is not True:
                raise BenchmarkFailed(f"a transaction whose comparison holds did not succeed: {answer}")
        if work is Work.SERIALIZABLE_RANGE:
            # No other member promises to have it already, and the one that wrk asks has.
            self._must_hold(self._leader, key, value, serializable=True)
        else:
            self._must_hold(self._another, key, value)

    def begin(self, load: Load) -> None:
        self._probes = 0
        self._revision_before = self._members.status(self._leader)[0]

    def end(self, load: Load) -> None:
        advanced = self._members.status(self._leader)[0] - self._revision_before
        self._advanced = advanced - (self._probes if Work(load.work).writes else 0)

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        work = Work(load.work)
        if work.writes:
            # wrk forgets what is on its way when its time is over: at the end of the warm-up, and of the measurement.
            most = figures.requests + 2 * load.connections
            if not figures.requests <= self._advanced <= most:
                raise BenchmarkFailed(
                    f"wrk counted {figures.requests} writes, and the revision rose by {self._advanced}"
                )
        if work is Work.PUT:
            for key, value in random.sample(sure := surely_written(figures.requests), min(READ_BACK, len(sure))):
                self._must_hold(self._another, key, value)
        leader = self._members.leader()
        if leader != self._leader:
            self._leader = leader
            return ["the leader changed during the measurement"]
        return []

    @property
    def _another(self) -> int:
        return (self._leader + 1) % MEMBERS

    def _must_hold(self, number: int, key: bytes, value: bytes, *, serializable: bool = False) -> None:
        found = self._members.get(number, key, serializable=serializable)
        if found != [value]:
            held = ", ".join(f"{each[:20]!r}…" for each in found) or "nothing"
            name = self._members.names[number]
            raise BenchmarkFailed(f"{name} holds {held} for {key!r}, and {value[:20]!r}… was written")


def _bodies_file(work: Work) -> str:
    return f"{work.replace(' ', '-')}-bodies.txt"


@contextmanager
def store_cluster(bench: Bench, make: Callable[[], StoreMembers], profiled: bool = False) -> Iterator[Contender]:
    with make() as members:
        yield StoreCluster(bench, members, profiled)

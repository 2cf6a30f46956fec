"""The registry beside what registrars make of etcd: three members each, registrations, heartbeats and lists.

An instance of etcd's side is a lease and a key with the same JSON, see `registry_sides`. Everything goes to the leader.
wrk sends heartbeats and asks for lists; registrations, which are two calls on etcd's side, come from
`registry_client`. Lists are whole answers: no ETag and no gzip is asked for. A "request" is a registration, a renewed
instance, or a list.
"""

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures
from benchmarks.measurements import Bound, Goal
from benchmarks.peers import ROOT
from benchmarks.processes import Process
from benchmarks.registry_client import SUCCESSES
from benchmarks.registry_sides import KEPT, LARGE, NEW_FROM, SIDES, SMALL, Call, WrongAnswer, id_of, service_of
from benchmarks.rounds import Bench, Contender, Load, Start, run_wrk_load
from benchmarks.store_members import EtcdMembers, QuorateMembers, StoreMembers
from benchmarks.wrk import OVERRUN_S_MAX, read_to_end

TTL_S = 3_600
"""Longer than any run: only heartbeats that are measured are sent."""
FILL_S_MAX = 300.0
CHECK_TIMEOUT_S = 15.0
BATCHES_PREPARED_MAX = 1_000
"""Bodies that wrk sends in turn; it builds them all beforehand."""
REGISTER, HEARTBEAT, LIST, STALE_LIST = "register", "heartbeat", "list", "stale list"

REGISTER_LOAD = Load("register, 64 connections", 64, "", work=REGISTER)
HEARTBEAT_LOADS = tuple(
    Load(f"heartbeats, batches of {batch:,}, {connections} connections", connections, str(batch), work=HEARTBEAT)
    for batch, connections in ((1, 64), (100, 16), (1_000, 4))
)
"""`path` is the size of a batch."""
LIST_LOADS = tuple(
    Load(f"{work} of {len(listed):,} instances, 64 connections", 64, service_of(listed[0]), work=work)
    for work in (LIST, STALE_LIST)
    for listed in (SMALL, LARGE)
)
"""`path` is the service."""

T = TypeVar("T")


class RegistryScenario:
    name = "registry"
    title = "Registry: three members; an instance of etcd's is a lease and a key; a request is an instance or a list"
    summary = "registrations, heartbeats and lists of a service, beside etcd's leases, keepalives and ranges"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = (REGISTER_LOAD, *HEARTBEAT_LOADS, *LIST_LOADS)
    goals: Sequence[Goal] = ()
    bounds: Sequence[Bound] = ()
    are_cores_shared = True
    full_measure_s: int | None = None

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S) as http:
            yield {
                "etcd": partial(_registry, bench, http, partial(EtcdMembers, bench, http)),
                "quorate": partial(_registry, bench, http, partial(QuorateMembers, bench, http, profiled), profiled),
            }


class AskedMembers:
    """Members of one side, asked by the harness for what its registry says. Every method raises BenchmarkFailed."""

    def __init__(self, bench: Bench, members: StoreMembers, http: httpx.Client) -> None:
        self.side = SIDES[members.kind]
        self.members = members
        self._bench = bench
        self._http = http

    def ask(self, number: int, asked: Call) -> bytes:
        """The answer of one member."""
        headers = {"content-type": "application/json"}
        url = self.members.urls[number] + asked.path
        answer = self._http.request(asked.method, url, content=asked.body.encode(), headers=headers)
        if answer.status_code not in SUCCESSES:
            raise BenchmarkFailed(f"{asked.method} {asked.path}: {answer.status_code} {answer.text[:500]}")
        return answer.content

    def count(self, number: int) -> int:
        return self._read(lambda: self.side.counted(self.ask(number, self.side.counting())))

    def list(self, number: int, service: str, *, is_stale: bool = False) -> list[str]:
        asked = self.side.listing(service, is_stale=is_stale)
        return self._read(lambda: self.side.listed(self.ask(number, asked)))

    def renew(self, number: int, instances: Sequence[int]) -> None:
        answer = self.ask(number, self.side.heartbeat(instances))
        self._read(lambda: self.side.renewed(answer, len(instances)))

    def client(self, command: str, *arguments: str, within_s: float) -> LoadFigures:
        """Run `registry_client` to its end."""
        whole = [
            *(sys.executable, "-P", "-m", "benchmarks.registry_client", command),
            *("--side", self.side.name, *arguments),
        ]
        environment = {"PYTHONPATH": str(ROOT)}
        with Process("registry-client", whole, self._bench.cores, self._bench.folder, environment) as client:
            return read_to_end(client, within_s)

    def fill(self, leader: int, instances: range, ttl_s: int, within_s: float) -> LoadFigures:
        """Register all of these through one member."""
        arguments = ("--first", str(instances.start), "--count", str(len(instances)), "--ttl", str(ttl_s))
        figures = self.client("fill", "--url", self.members.urls[leader], *arguments, within_s=within_s)
        if figures.requests != len(instances):
            raise BenchmarkFailed(f"{figures.requests} instances were registered, and not {len(instances)}")
        return figures

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except WrongAnswer as error:
            raise BenchmarkFailed(f"{self.side.name}: {error}") from error


class RegistryCluster:
    """Members that are up, under load. What was registered is counted at a member that did not take it."""

    def __init__(self, bench: Bench, members: StoreMembers, http: httpx.Client, profiled: bool) -> None:
        self._bench = bench
        self._asked = AskedMembers(bench, members, http)
        self._members = members
        self._leader = members.leader()
        self.processes: Sequence[Process] = members.processes
        self.sampled = members.process(self._leader) if profiled else None
        self._filled: set[range] = set()
        self._registered = 0
        """Instances of which the client has said so."""
        self._next_number = NEW_FROM

    def prepare(self, load: Load) -> None:
        for wanted in _wanted(load):
            if wanted not in self._filled:
                self._asked.fill(self._leader, wanted, TTL_S, FILL_S_MAX)
                self._filled.add(wanted)
                self._registered += len(wanted)

    def run(self, load: Load, seconds: int) -> LoadFigures:
        if load.work == REGISTER:
            return self._register(load, seconds)
        calls = self._calls(load)
        bodies = self._members.folder / f"bodies-{self._bench.random_source.getrandbits(64):x}.txt"
        script = "report.lua" if calls[0].method == "GET" else "post_bodies.lua"
        bodies.write_text("".join(f"{each.body}\n" for each in calls))
        url = self._members.urls[self._leader] + calls[0].path
        figures = run_wrk_load(
            self._bench,
            self,
            replace(load, script=script),
            url,
            seconds,
            arguments=[str(bodies)],
            cores=self._bench.cores,
        )
        renewals = self._batch(load) if load.work == HEARTBEAT else 1
        return replace(figures, requests=figures.requests * renewals)

    def _register(self, load: Load, seconds: int) -> LoadFigures:
        figures = self._asked.client(
            "register", "--url", self._members.urls[self._leader], "--first", str(self._next_number), "--seconds",
            str(seconds), "--ttl", str(TTL_S), "--connections", str(load.connections),
            within_s=seconds + OVERRUN_S_MAX,
        )  # fmt: skip
        self._next_number += figures.requests
        self._registered += figures.requests
        return figures

    def _calls(self, load: Load) -> list[Call]:
        """What wrk sends, one after the other and over again."""
        side = self._asked.side
        if load.work != HEARTBEAT:
            return [side.listing(load.path, is_stale=load.work == STALE_LIST)]
        batch = self._batch(load)
        batches = [KEPT[at : at + batch] for at in range(0, len(KEPT), batch)]
        return [side.heartbeat(each) for each in batches[:BATCHES_PREPARED_MAX]]

    def check(self, load: Load) -> None:
        """A heartbeat of some that must all be known, or a list that must have all."""
        if load.work == HEARTBEAT:
            self._asked.renew(self._leader, random.sample(KEPT, self._batch(load)))
            return
        for wanted in _wanted(load):
            # A member that did not take the writes need not have them all where a stale answer will do.
            is_stale = load.work == STALE_LIST
            found = self._asked.list(self._leader if is_stale else self._another, load.path, is_stale=is_stale)
            if found != [id_of(number) for number in wanted]:
                raise BenchmarkFailed(f"a list of {len(wanted)} instances had {len(found)}, or not in order")

    def begin(self, load: Load) -> None:
        """Nothing: what is registered is counted from the start."""

    def end(self, load: Load) -> None:
        """Nothing: what is registered is counted from the start."""

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        counted = self._asked.count(self._another)
        if counted != self._registered:
            raise BenchmarkFailed(f"{counted} instances are registered, and {self._registered} should be")
        if load.work == HEARTBEAT and self._batch(load) < int(load.path):
            yield f"{self._batch(load)} leases a request, which is what its JSON API answers reliably"
        leader = self._members.leader()
        if leader != self._leader:
            self._leader = leader
            yield "the leader changed during the measurement"

    def _batch(self, load: Load) -> int:
        return min(int(load.path), self._asked.side.batch_max)

    @property
    def _another(self) -> int:
        return (self._leader + 1) % len(self._members.urls)


def _wanted(load: Load) -> Iterator[range]:
    """The instances that are there before the load begins."""
    if load.work == HEARTBEAT:
        yield KEPT
    yield from (listed for listed in (SMALL, LARGE) if service_of(listed[0]) == load.path)


@contextmanager
def _registry(
    bench: Bench, http: httpx.Client, make: Callable[[], StoreMembers], profiled: bool = False
) -> Iterator[Contender]:
    with make() as members:
        yield RegistryCluster(bench, members, http, profiled)

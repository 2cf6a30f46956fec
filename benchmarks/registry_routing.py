"""From an instance's deregistration to the last request that our gateway sends it: `registry_routing_client` measures.

Three nodes, one gateway that follows them, the client and the service's instances share the cores. There is no peer: of
those at hand none has a registry and a proxy of its own.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import httpx

from benchmarks import quorate_processes
from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures
from benchmarks.measurements import Bound, Figure, Goal
from benchmarks.peers import ROOT
from benchmarks.processes import Process, until
from benchmarks.registry import CHECK_TIMEOUT_S
from benchmarks.registry_routing_client import PATH, ROUTES
from benchmarks.rounds import Bench, Contender, Load, Start
from benchmarks.store_members import QuorateMembers, StoreMembers
from benchmarks.wrk import OVERRUN_S_MAX, read_to_end

FULL_MEASURE_S = 60
P99_MS_MAX = 50.0
FEW = 100
"""A 99th percentile of fewer is the longest."""

LOAD = Load("deregistered to no longer routed", 1, "", is_paced=True)


class RegistryRoutingScenario:
    name = "registry-routing"
    title = "Registry to gateway: from a DELETE to the last request to that instance; a request is a deregistration"
    summary = "from an instance's deregistration to the last request that the gateway sends it"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = (LOAD,)
    goals: Sequence[Goal] = ()
    bounds: Sequence[Bound] = (Bound(LOAD.name, "quorate", Figure.P99, P99_MS_MAX),)
    are_cores_shared = True
    full_measure_s: int | None = FULL_MEASURE_S

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S) as http:
            yield {"quorate": partial(_routed, bench, http, profiled)}


class RoutedService:
    """Nodes and a gateway that are up; its routes are published, and have nobody to ask yet."""

    def __init__(
        self, bench: Bench, members: StoreMembers, gateway: Process, url: str, http: httpx.Client, profiled: bool
    ) -> None:
        self._bench = bench
        self._members = members
        self._leader = members.leader()
        self._url = url
        self._http = http
        self.processes: Sequence[Process] = [*members.processes, gateway]
        self.sampled = gateway if profiled else None

    def prepare(self, load: Load) -> None:
        """Nothing: the instances are the client's."""

    def run(self, load: Load, seconds: int) -> LoadFigures:
        command = [
            *(sys.executable, "-P", "-m", "benchmarks.registry_routing_client", "--gateway", self._url),
            *("--registry", self._members.urls[self._leader], "--seconds", str(seconds)),
        ]
        environment = {"PYTHONPATH": str(ROOT)}
        with Process("routing", command, self._bench.cores, self._bench.folder, environment) as client:
            return read_to_end(client, seconds + OVERRUN_S_MAX)

    def check(self, load: Load) -> None:
        """Between the runs there is nobody to ask, and the gateway says so."""
        answer = self._http.get(self._url + PATH)
        if not says_nobody(answer):
            raise BenchmarkFailed(f"a service without instances answered {answer.status_code}: {answer.text[:300]}")

    def begin(self, load: Load) -> None:
        """Nothing: the client counts for itself."""

    def end(self, load: Load) -> None:
        """Nothing: the client counts for itself."""

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        yield f"{figures.extra['requests_meanwhile']:,} requests meanwhile, all answered rightly"
        if figures.requests < FEW:
            yield f"{figures.requests} deregistrations: the p99 is the longest of them"


def says_nobody(answer: httpx.Response) -> bool:
    """Whether the gateway has the route, and no instance to ask."""
    return answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and answer.json().get("rule") == "no-endpoint"


@contextmanager
def _routed(bench: Bench, http: httpx.Client, profiled: bool) -> Iterator[Contender]:
    with QuorateMembers(bench, http) as members:
        port, admin_port = bench.ports(2)
        folder, nodes = bench.subfolder("gateway"), ",".join(members.urls)
        gateway = quorate_processes.start_gateway(port, admin_port, nodes, bench.cores, folder, profiled)
        with gateway:
            quorate_processes.publish_routes(http, members.urls[0], ROUTES)
            url = f"http://127.0.0.1:{port}"
            until("the gateway has the route", lambda: says_nobody(http.get(url + PATH)), [gateway])
            yield RoutedService(bench, members, gateway, url, http, profiled)

"""The gateway beside nginx, HAProxy and Envoy: each proxies the same small answer of the same nginx, on one core."""

import grp
import importlib.util
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from quorate_gateway import compiled

from benchmarks import quorate_processes
from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures
from benchmarks.measurements import Bound, Figure, Goal
from benchmarks.peers import CONFIGURATIONS, ROOT, render, write_configuration
from benchmarks.processes import Process, until
from benchmarks.rounds import Bench, Contender, Load, Start, run_wrk_load
from benchmarks.wrk import OVERRUN_S_MAX, read_to_end

ANSWER = '{"greeting":"hello","id":"01a20518-55bd-74a4-9057-673bc2d0928c","status":"CONFIRMED","quantity":2}'
PATH = "/hello/world"
TOKENS = 1_000_000
"""Tokens a second of every rate limit: more than any of these proxies can serve, so each request is counted and none
refused."""
TTL_S = 3_600
"""Longer than any measurement: nobody sends heartbeats for an nginx."""
CHECK_TIMEOUT_S = 10.0
CONNECTIONS = 64

ADMITTED_BY_GATEWAY = r'^quorate_gateway_rate_limit_total\{outcome="admitted",route="hello"\} (\S+)$'
COUNTED_BY_GATEWAY = r'^quorate_gateway_requests_total\{route="hello",status="2xx"\} (\S+)$'
COUNTED_BY_ENVOY = r"^limit\.http_local_rate_limit\.ok: (\d+)$"

LOAD = Load(f"GET, {CONNECTIONS} connections", CONNECTIONS, PATH)
RATE = 5_000
RATE_LOAD = Load(f"GET, {RATE:,}/s", CONNECTIONS, PATH, is_paced=True)
"""Requests that are due at their time, whatever became of those before; see `benchmarks.open_loop`."""
LARGE_PATH = "/hello/large"
LARGE_BYTES = 1024**3
LATE_SHARE_MAX = 0.25
LOADER_CPU_PERCENT_MAX = 60
"""Above either the load generator says more about itself than about the contender."""
WORKERS_FLAGS = ("--workers", "2")
COMPILED = "quorate-compiled"
"""Where there is a current build, which `make bench` makes if it can."""


@dataclass(frozen=True)
class Counter:
    """Where a proxy says how many requests its protections have let through: the sum of what `pattern` finds."""

    url: str
    pattern: str

    def read(self, http: httpx.Client) -> int:
        answer = http.get(self.url).raise_for_status()
        return sum(int(float(found)) for found in re.findall(self.pattern, answer.text, re.MULTILINE))


Program = Callable[[Bench, Sequence[int], Path, int], tuple[Process, Counter | None]]
"""Starts a proxy that listens on the port given and stands in front of the upstreams given."""


class GatewayScenario:
    name = "gateway"
    title = "Gateway: one core, 64 kept connections, a JSON answer of about 100 bytes"
    summary = "one core proxies small answers, beside nginx, HAProxy and Envoy: by wrk, and at a fixed rate"
    ours: tuple[str, ...] = ("quorate", COMPILED, "quorate-bare", "quorate-2")
    loads: Sequence[Load] = (LOAD, RATE_LOAD)
    goals: Sequence[Goal] = (
        Goal(LOAD.name, "quorate", "envoy", Figure.RATE, 1.5),
        Goal(LOAD.name, "quorate", "nginx", Figure.RATE, 0.6),
        Goal(LOAD.name, "quorate", "envoy", Figure.P99, 1.0),
        Goal(RATE_LOAD.name, "quorate", "envoy", Figure.P99, 1.0),
        Goal(LOAD.name, COMPILED, "envoy", Figure.RATE, 1.5),
        Goal(LOAD.name, COMPILED, "nginx", Figure.RATE, 0.6),
    )
    bounds: Sequence[Bound] = ()
    are_cores_shared = False
    full_measure_s: int | None = None

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        """All stand in front of one upstream, which is up as long as any of them."""
        with ExitStack() as ends:
            http = ends.enter_context(httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S))
            upstreams = ends.enter_context(_upstream(bench, http))
            programs: dict[str, Program] = {
                "nginx": _nginx,
                "haproxy": _haproxy,
                "envoy": _envoy,
                "envoy-bare": _bare_envoy,
            }
            starts: dict[str, Start] = {
                name: partial(_peer, name, program, bench, upstreams, http) for name, program in programs.items()
            }
            whole = render((CONFIGURATIONS / "quorate-routes.yaml").read_text(), {"tokens": TOKENS})
            bare = (CONFIGURATIONS / "quorate-routes-bare.yaml").read_text()
            for name, routes, pattern, flags in (
                ("quorate", whole, ADMITTED_BY_GATEWAY, ()),
                (COMPILED, whole, ADMITTED_BY_GATEWAY, ()),
                ("quorate-bare", bare, COUNTED_BY_GATEWAY, ()),
                ("quorate-2", whole, ADMITTED_BY_GATEWAY, WORKERS_FLAGS),
            ):
                is_sampled = profiled and not flags
                starts[name] = partial(_quorate, name, routes, pattern, bench, upstreams, http, is_sampled, flags)
            if compiled.why_not_current() is not None:
                del starts[COMPILED]
            yield starts


class Proxy:
    """A proxy that is up. Its answers must be the upstream's, byte for byte, and where it counts what its protections
    let through, that must be what wrk has counted."""

    def __init__(
        self, bench: Bench, process: Process, port: int, http: httpx.Client, counter: Counter | None = None,
        is_sampled: bool = False,
    ) -> None:  # fmt: skip
        self._bench = bench
        self.processes: Sequence[Process] = [process]
        self.sampled = process if is_sampled else None
        self._counter = counter
        self._counted = 0
        self.origin = f"http://127.0.0.1:{port}"
        self._http = http

    def prepare(self, load: Load) -> None:
        """Nothing: it stands in front of upstreams that answer already."""

    def run(self, load: Load, seconds: int) -> LoadFigures:
        url = self.origin + load.path
        if load.is_paced:
            return _run_at_rate(self._bench, load, url, seconds, lambda: self.check(load))
        return run_wrk_load(self._bench, self, load, url, seconds, cores=self._bench.loading)

    def begin(self, load: Load) -> None:
        self._counted = -self._count()

    def end(self, load: Load) -> None:
        self._counted += self._count()

    def check(self, load: Load) -> None:
        answer = self._http.get(self.origin + load.path)
        if not is_right(answer):
            raise BenchmarkFailed(f"{self.processes[0].name} answered {answer.status_code}: {answer.text[:500]}")

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        if self._counter is not None and self._counted < figures.requests:
            name = self.processes[0].name
            raise BenchmarkFailed(f"{figures.requests} requests were counted, and by {name} itself {self._counted}")
        return _doubts(figures) if load.is_paced else ()

    def _count(self) -> int:
        return 0 if self._counter is None else self._counter.read(self._http)

    def answers(self) -> bool:
        """Whether it routes already."""
        return is_right(self._http.get(self.origin + PATH))


def _run_at_rate(bench: Bench, load: Load, url: str, seconds: int, probe: Callable[[], None]) -> LoadFigures:
    """Our own load generator's turn, the contender's answers checked meanwhile."""
    command = [
        *(sys.executable, "-m", "benchmarks.open_loop", url),
        *("--rate", str(RATE), "--connections", str(load.connections), "--seconds", str(seconds)),
    ]
    with Process("open_loop", command, bench.loading, bench.folder, {"PYTHONPATH": str(ROOT)}) as process:
        return read_to_end(process, seconds + OVERRUN_S_MAX, probe)


def _doubts(figures: LoadFigures) -> Iterator[str]:
    """When the latencies say more about the load generator than about the contender."""
    late_ms, cpu_percent = figures.extra["late_p99_us"] / 1_000, figures.extra["cpu_percent"]
    if late_ms > LATE_SHARE_MAX * figures.p99_ms:
        yield "the load generator itself was late by more than a quarter of the p99 that it measured"
    if cpu_percent > LOADER_CPU_PERCENT_MAX:
        yield f"the load generator used over {LOADER_CPU_PERCENT_MAX} % of its core"


def is_right(answer: httpx.Response) -> bool:
    return answer.status_code == httpx.codes.OK and answer.text == ANSWER


@contextmanager
def _upstream(bench: Bench, http: httpx.Client) -> Iterator[list[int]]:
    """nginx on the load's cores; the two ports where it answers."""
    folder, ports = bench.subfolder("upstream"), bench.ports(2)
    with (folder / "large").open("wb") as large:
        large.truncate(LARGE_BYTES)  # sparse: reading it costs no disk
    owner = {"user": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
    values = {"folder": folder, "answer": ANSWER, **owner, **_upstream_ports(ports)}
    configuration = write_configuration("upstream.nginx.conf", folder, values)
    with _start_nginx(bench, "upstream", configuration, folder, bench.loading) as process:
        for port in ports:
            until("the upstream answers", Proxy(bench, process, port, http).answers, [process])
        yield ports


@contextmanager
def _peer(name: str, start: Program, bench: Bench, upstreams: Sequence[int], http: httpx.Client) -> Iterator[Contender]:
    (port,) = bench.ports(1)
    process, counter = start(bench, upstreams, bench.subfolder(name), port)
    with process:
        proxy = Proxy(bench, process, port, http, counter)
        until(f"{name} proxies", proxy.answers, [process])
        yield proxy


@contextmanager
def _quorate(
    name: str, routes: str, counted: str, bench: Bench, upstreams: Sequence[int], http: httpx.Client, profiled: bool,
    flags: Sequence[str] = (),
) -> Iterator[Contender]:  # fmt: skip
    """The gateway on the tested core, with workers on all; its control plane, one node, on the load's, idle but for its
    heartbeats."""
    folder = bench.subfolder(name)
    port, admin_port, node_port, peer_port = bench.ports(4)
    node_url = f"http://127.0.0.1:{node_port}"
    with quorate_processes.start_node("node-1", {"node-1": peer_port}, node_port, bench.loading, folder) as node:
        quorate_processes.wait_ready(http, node_url, node)
        quorate_processes.register(http, node_url, "hello", upstreams, TTL_S)
        quorate_processes.publish_routes(http, node_url, routes)
        gateway = quorate_processes.start_gateway(
            port, admin_port, node_url, bench.cores if flags else bench.tested, folder, profiled, flags,
            "required" if name == COMPILED else "off",
        )  # fmt: skip
        with gateway:
            counter = Counter(f"http://127.0.0.1:{admin_port}/metrics", counted)
            proxy = Proxy(bench, gateway, port, http, counter, profiled)
            until(f"{name} proxies", proxy.answers, [node, gateway])
            yield proxy


def _upstream_ports(ports: Sequence[int]) -> dict[str, int]:
    return {f"upstream_port_{number}": port for number, port in enumerate(ports, 1)}


def _start_nginx(bench: Bench, name: str, configuration: Path, folder: Path, cores: Sequence[int]) -> Process:
    program = bench.programs["nginx"]
    command = [program.path, "-p", str(folder), "-c", str(configuration), "-e", "stderr"]
    return Process(name, command, cores, folder, program.environment)


class PythonProxiesScenario(GatewayScenario):
    """The simplest proxies that people write in Python, which do nothing but pass on."""

    name = "python-proxies"
    title = "Python proxies: one core, 64 kept connections, a JSON answer of about 100 bytes"
    summary = "the same load on what people write with aiohttp, and with FastAPI and httpx"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = (LOAD,)
    goals: Sequence[Goal] = ()

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with ExitStack() as ends:
            http = ends.enter_context(httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S))
            upstreams = ends.enter_context(_upstream(bench, http))
            whole = render((CONFIGURATIONS / "quorate-routes.yaml").read_text(), {"tokens": TOKENS})
            starts: dict[str, Start] = {
                name: partial(_peer, name, partial(_python_proxy, name), bench, upstreams, http)
                for name in ("aiohttp", "fastapi")
            }
            starts["quorate"] = partial(
                _quorate, "quorate", whole, ADMITTED_BY_GATEWAY, bench, upstreams, http, profiled
            )
            yield starts


def _python_proxy(
    name: str, bench: Bench, upstreams: Sequence[int], folder: Path, port: int
) -> tuple[Process, Counter | None]:
    """Raises BenchmarkFailed when the library is not in this environment."""
    if importlib.util.find_spec(name) is None:
        raise BenchmarkFailed(f"{name} is missing: it is not installed in this environment")
    program = CONFIGURATIONS / f"{name}_proxy.py"
    command = [sys.executable, "-P", str(program), str(port), *map(str, upstreams)]
    return Process(name, command, bench.tested, folder, {}), None


def _nginx(bench: Bench, upstreams: Sequence[int], folder: Path, port: int) -> tuple[Process, None]:
    configuration = write_configuration(
        "nginx.conf", folder, {"folder": folder, "listen_port": port, **_upstream_ports(upstreams)}
    )
    return _start_nginx(bench, "nginx", configuration, folder, bench.tested), None


def _haproxy(bench: Bench, upstreams: Sequence[int], folder: Path, port: int) -> tuple[Process, None]:
    program = bench.programs["haproxy"]
    configuration = write_configuration("haproxy.cfg", folder, {"listen_port": port, **_upstream_ports(upstreams)})
    command = [program.path, "-q", "-db", "-f", str(configuration)]
    return Process("haproxy", command, bench.tested, folder, program.environment), None


def _envoy(bench: Bench, upstreams: Sequence[int], folder: Path, port: int) -> tuple[Process, Counter]:
    process, admin_url = _start_envoy(bench, upstreams, folder, port, "envoy.yaml", {"tokens": TOKENS})
    return process, Counter(f"{admin_url}/stats?filter=http_local_rate_limit", COUNTED_BY_ENVOY)


def _bare_envoy(bench: Bench, upstreams: Sequence[int], folder: Path, port: int) -> tuple[Process, None]:
    return _start_envoy(bench, upstreams, folder, port, "envoy-bare.yaml", {})[0], None


def _start_envoy(
    bench: Bench, upstreams: Sequence[int], folder: Path, port: int, template: str, values: Mapping[str, object]
) -> tuple[Process, str]:
    """The process, and the URL of its admin API."""
    program = bench.programs["envoy"]
    (admin_port,) = bench.ports(1)
    filled = {"listen_port": port, "admin_port": admin_port, **_upstream_ports(upstreams), **values}
    configuration = write_configuration(template, folder, filled)
    command = [program.path, "-c", str(configuration), "--concurrency", "1", "--disable-hot-restart", "-l", "critical"]
    return Process("envoy", command, bench.tested, folder, program.environment), f"http://127.0.0.1:{admin_port}"

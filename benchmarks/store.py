"""The store beside etcd: three members each, over etcd's v3 JSON API, on the same disk, every write synced.

wrk talks to the leader of either side. Members and wrk share the cores, and the data is new in each turn.
"""

import base64
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import quorate_processes
from benchmarks.failures import BenchmarkFailed
from benchmarks.measurements import Figure, Goal
from benchmarks.peers import write_configuration
from benchmarks.processes import Process, until
from benchmarks.rounds import Bench, Contender, Load, Start
from benchmarks.wrk import WrkFigures

MEMBERS = 3
VALUE_BYTES = 256
KEYS_WRITTEN = 10_000
"""Keys that the puts go around in: in a longer run they are overwritten, as in use."""
KEYS_READ = 1_000
READ_BACK = 50
CHECK_TIMEOUT_S = 15.0
SEED = 20_240_229

PUT, RANGE, STATUS = "/v3/kv/put", "/v3/kv/range", "/v3/maintenance/status"
PUT_LOADS = tuple(
    Load(f"put, {count} connection{'s' * (count > 1)}", count, PUT, "post_bodies.lua") for count in (1, 64, 256)
)
RANGE_LOAD = Load("range, 64 connections", 64, RANGE, "post_bodies.lua")


def _goals() -> Iterator[Goal]:
    for load, bound in zip(PUT_LOADS, (1.5, 2.5, 2.0), strict=True):
        yield Goal(load.name, "quorate", "etcd", Figure.RATE, bound)
        yield Goal(load.name, "quorate", "etcd", Figure.P50, 1.0)
        yield Goal(load.name, "quorate", "etcd", Figure.P99, 1.0)
    yield Goal(RANGE_LOAD.name, "quorate", "etcd", Figure.RATE, 3.0)


class StoreScenario:
    name = "store"
    title = "Store: three members, v3 JSON API, 256-byte values, every write synced"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = (*PUT_LOADS, RANGE_LOAD)
    goals: Sequence[Goal] = tuple(_goals())
    are_cores_shared = True

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S) as http:
            yield {"etcd": partial(_etcd, bench, http), "quorate": partial(_quorate, bench, http, profiled)}


class Records:
    """Keys with their values, the same for all, and as the JSON bodies that write and read them."""

    def __init__(self, prefix: str, count: int) -> None:
        source = random.Random(SEED)
        self.values = {f"{prefix}/{number:06}".encode(): source.randbytes(VALUE_BYTES) for number in range(count)}

    def bodies(self, path: str) -> list[str]:
        """Compact JSON, one a line."""
        if path == PUT:
            return [f'{{"key":"{_text(key)}","value":"{_text(value)}"}}' for key, value in self.values.items()]
        return [f'{{"key":"{_text(key)}"}}' for key in self.values]


WRITTEN = Records("bench/written", KEYS_WRITTEN)
READ = Records("bench/read", KEYS_READ)


def surely_written(requests: int) -> list[tuple[bytes, bytes]]:
    """Records that wrk has written when it counted so many puts. It takes the first request for a look at it, and
    sends it only when it comes around; and which of the last ones were answered is not known."""
    return list(WRITTEN.values.items())[1 : requests // 2 + 1]


class StoreCluster:
    """Members that are up. `urls` are those of their APIs; writes are checked by reading them from another member."""

    def __init__(self, processes: Sequence[Process], urls: Sequence[str], http: httpx.Client, folder: Path) -> None:
        self.processes = processes
        self.sampled: Process | None = None
        self._http = http
        self._folder = folder
        self._urls = urls
        self._leader = self._wait_for_leader()
        self._revision_before = 0
        self._advanced = 0
        self._probes = 0
        self._is_filled = False

    def url(self, load: Load) -> str:
        return self._urls[self._leader] + load.path

    @property
    def leading_process(self) -> Process:
        return self.processes[self._leader]

    def prepare(self, load: Load) -> Sequence[str]:
        if load.path == RANGE and not self._is_filled:
            for key, value in READ.values.items():
                self._put(key, value)
            self._is_filled = True
        path = self._folder / f"{load.path.rpartition('/')[2]}-bodies.txt"
        if not path.exists():
            path.write_text("\n".join((WRITTEN if load.path == PUT else READ).bodies(load.path)) + "\n")
        return [str(path)]

    def check(self, load: Load) -> None:
        """A put that must be read at once from a member other than the one that took it, or a read."""
        self._probes += 1
        if load.path == PUT:
            key, value = b"bench/probe", f"probe {self._probes}".encode()
            self._put(key, value)
        else:
            key = random.choice(list(READ.values))
            value = READ.values[key]
        self._must_hold(key, value)

    def begin(self, load: Load) -> None:
        self._probes = 0
        self._revision_before = self._status(self._urls[self._leader])[0]

    def end(self, load: Load) -> None:
        advanced = self._status(self._urls[self._leader])[0] - self._revision_before
        self._advanced = advanced - (self._probes if load.path == PUT else 0)

    def verify(self, load: Load, figures: WrkFigures) -> Iterable[str]:
        if load.path == PUT:
            # wrk forgets what is on its way when its time is over: at the end of the warm-up, and of the measurement.
            most = figures.requests + 2 * load.connections
            if not figures.requests <= self._advanced <= most:
                raise BenchmarkFailed(f"wrk counted {figures.requests} puts, and the revision rose by {self._advanced}")
            for key, value in random.sample(sure := surely_written(figures.requests), min(READ_BACK, len(sure))):
                self._must_hold(key, value)
        leader = self._wait_for_leader()
        if leader != self._leader:
            self._leader = leader
            return ["the leader changed during the measurement"]
        return []

    def _put(self, key: bytes, value: bytes) -> None:
        self._post(self._urls[self._leader] + PUT, {"key": _text(key), "value": _text(value)})

    def _must_hold(self, key: bytes, value: bytes) -> None:
        another = self._urls[(self._leader + 1) % len(self._urls)]
        kvs = self._post(another + RANGE, {"key": _text(key)}).get("kvs", [])
        found = [base64.b64decode(kv["value"]) for kv in kvs]
        if found != [value]:
            held = ", ".join(f"{each[:20]!r}…" for each in found) or "nothing"
            raise BenchmarkFailed(f"{another} holds {held} for {key!r}, and {value[:20]!r}… was written")

    def _wait_for_leader(self) -> int:
        """Index of the member that leads, once all name the same."""
        return until("the members agree on a leader", self._agreed_leader, self.processes)[0]

    def _agreed_leader(self) -> tuple[int] | None:
        seen = [self._status(url) for url in self._urls]
        leaders = {leader for _, _, leader in seen}
        if len(leaders) != 1:
            return None
        return next(((number,) for number, (_, member, _) in enumerate(seen) if member in leaders), None)

    def _status(self, url: str) -> tuple[int, str, str]:
        """Revision, the member's own id, and the leader's."""
        answer = self._post(url + STATUS, {})
        header = answer["header"]
        return int(header.get("revision", 0)), header["member_id"], answer.get("leader", "0")

    def _post(self, url: str, body: dict[str, str]) -> dict[str, Any]:
        answer = self._http.post(url, json=body)
        if answer.status_code != httpx.codes.OK:
            raise BenchmarkFailed(f"{url} answered {answer.status_code}: {answer.text[:500]}")
        return dict(answer.json())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@contextmanager
def _etcd(bench: Bench, http: httpx.Client) -> Iterator[Contender]:
    program, folder = bench.programs["etcd"], bench.subfolder("etcd")
    names = [f"etcd-{number}" for number in range(1, MEMBERS + 1)]
    ports = bench.ports(2 * MEMBERS)
    clients, peers = ports[:MEMBERS], dict(zip(names, ports[MEMBERS:], strict=True))
    members = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in peers.items())
    with ExitStack() as ends:
        processes = []
        for name, client_port in zip(names, clients, strict=True):
            own = folder / name
            own.mkdir()
            configuration = write_configuration(
                "etcd.yaml", own, {"folder": own, "name": name, "client_port": client_port, "peer_port": peers[name],
                                   "members": members},
            )  # fmt: skip
            command = [program.path, "--config-file", str(configuration)]
            processes.append(ends.enter_context(Process(name, command, bench.cores, own, program.environment)))
        urls = [f"http://127.0.0.1:{port}" for port in clients]
        for url in urls:
            until("etcd is healthy", partial(_is_healthy, http, url), processes)
        yield StoreCluster(processes, urls, http, folder)


def _is_healthy(http: httpx.Client, url: str) -> bool:
    return bool(http.get(url + "/health").json() == {"health": "true"})


@contextmanager
def _quorate(bench: Bench, http: httpx.Client, profiled: bool) -> Iterator[Contender]:
    folder = bench.subfolder("quorate")
    names = [f"node-{number}" for number in range(1, MEMBERS + 1)]
    ports = bench.ports(2 * MEMBERS)
    members = dict(zip(names, ports[MEMBERS:], strict=True))
    with ExitStack() as ends:
        processes = [
            ends.enter_context(quorate_processes.start_node(name, members, port, bench.cores, folder, profiled))
            for name, port in zip(names, ports, strict=False)
        ]
        urls = [f"http://127.0.0.1:{port}" for port in ports[:MEMBERS]]
        for url, process in zip(urls, processes, strict=True):
            quorate_processes.wait_ready(http, url, process)
        cluster = StoreCluster(processes, urls, http, folder)
        if profiled:
            cluster.sampled = cluster.leading_process
        yield cluster

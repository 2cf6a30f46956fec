"""PySyncObj, the Raft library that Python programs use today: its replicated dict beside our puts.

The two are not the same thing, and the figures say so: its callers live in its own process and pay for no API, and it
answers before anything is synced. Ours are wrk's over HTTP, every put synced by a majority before its answer.
"""

import json
import random
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures, figures_of
from benchmarks.measurements import Bound, Goal
from benchmarks.peers import CONFIGURATIONS
from benchmarks.processes import Process, until
from benchmarks.rounds import Bench, Contender, Load, Start
from benchmarks.store import CHECK_TIMEOUT_S, KEYS_WRITTEN, POST_BODIES, READ_BACK, store_cluster
from benchmarks.store_members import MEMBERS, PUT, QuorateMembers
from benchmarks.store_records import SEED, VALUE_BYTES, Work

CONTROL_S_MAX = 60.0
"""For an answer of a member's control port, beyond the time of a run."""
ANSWER_BYTES_MAX = 64 * 1024
NOT_SYNCED = "answers before anything is synced to disk, and its callers are in its own process"

LOADS = tuple(Load(f"put, {count} caller{'s' * (count > 1)}", count, PUT, POST_BODIES, Work.PUT) for count in (1, 64))


class PythonPeerScenario:
    name = "pysyncobj"
    title = "PySyncObj: three members, a replicated dict with journal and dump file; ours by wrk over HTTP, synced"
    summary = "puts beside PySyncObj's replicated dict, Python's own peer"
    ours: tuple[str, ...] = ("quorate",)
    loads: Sequence[Load] = LOADS
    goals: Sequence[Goal] = ()
    bounds: Sequence[Bound] = ()
    are_cores_shared = True
    full_measure_s: int | None = None

    @contextmanager
    def contenders(self, bench: Bench, profiled: bool = False) -> Iterator[Mapping[str, Start]]:
        with httpx.Client(trust_env=False, timeout=CHECK_TIMEOUT_S) as http:
            yield {
                "pysyncobj": partial(_pysyncobj, bench, ()),
                "pysyncobj-unbatched": partial(_pysyncobj, bench, ("--unbatched",)),
                "quorate": partial(store_cluster, bench, partial(QuorateMembers, bench, http, profiled), profiled),
            }


class Control:
    """The control port of one member."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, command: Mapping[str, Any], within_s: float = CONTROL_S_MAX) -> dict[str, Any]:
        """Raises BenchmarkFailed when there is no answer."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), within_s) as connection:
                connection.sendall(json.dumps(command).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    return dict(json.loads(answers.readline(ANSWER_BYTES_MAX)))
        except (OSError, ValueError) as error:
            raise BenchmarkFailed(f"a member of PySyncObj did not answer {command['do']}: {error}") from error

    def status(self) -> dict[str, Any] | None:
        """None while it does not listen yet."""
        try:
            return self.ask({"do": "status"})
        except BenchmarkFailed:
            return None


class SyncObjCluster:
    """Members that are up. The load is on the leader, by its own process; what was put is read from another."""

    def __init__(self, processes: Sequence[Process], controls: Sequence[Control]) -> None:
        self.processes = processes
        self.sampled: Process | None = None
        self._controls = controls
        self._leader = until("PySyncObj has a leader that all follow", self._agreed_leader, processes)[0]
        self._probes = 0

    def prepare(self, load: Load) -> None:
        """Nothing: the records are made in the member."""

    def run(self, load: Load, seconds: int) -> LoadFigures:
        command = {"do": "run", "callers": load.connections, "seconds": seconds, **_records()}
        figures = figures_of(self._controls[self._leader].ask(command, seconds + CONTROL_S_MAX))
        if figures.failed:
            raise BenchmarkFailed(f"{figures.failed} puts failed or were not answered")
        return figures

    def check(self, load: Load) -> None:
        """A put that the other members must have in the end; when, they do not promise."""
        self._probes += 1
        value = f"probe {self._probes}"
        answer = self._controls[self._leader].ask({"do": "put", "key": "bench/probe", "value": value})
        if answer["error"] != 0:
            raise BenchmarkFailed(f"a put was answered with {answer['error']}")
        held = {"value": value.encode().hex()}
        until(
            "another member has what was put",
            lambda: self._another.ask({"do": "get", "key": "bench/probe"}) == held,
            self.processes,
        )

    def begin(self, load: Load) -> None:
        """Nothing: the member counts for itself."""

    def end(self, load: Load) -> None:
        """Nothing: the member counts for itself."""

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        source = random.Random(SEED)
        values = [source.randbytes(VALUE_BYTES) for _ in range(min(figures.requests, KEYS_WRITTEN))]
        for number in random.sample(range(len(values)), min(READ_BACK, len(values))):
            if self._another.ask({"do": "get", "key": f"bench/{number:06}"}) != {"value": values[number].hex()}:
                raise BenchmarkFailed(f"another member does not hold what was put to bench/{number:06}")
        leader = until("PySyncObj has a leader that all follow", self._agreed_leader, self.processes)[0]
        if leader != self._leader:
            self._leader = leader
            return [NOT_SYNCED, "the leader changed during the measurement"]
        return [NOT_SYNCED]

    @property
    def _another(self) -> Control:
        return self._controls[(self._leader + 1) % MEMBERS]

    def _agreed_leader(self) -> tuple[int] | None:
        seen = [control.status() for control in self._controls]
        if not all(each and each["is_ready"] and each["leader"] for each in seen):
            return None
        leading = [number for number, each in enumerate(seen) if each and each["leads"]]
        names = {each["leader"] for each in seen if each}
        return (leading[0],) if len(leading) == len(names) == 1 else None


def _records() -> dict[str, int]:
    return {"keys": KEYS_WRITTEN, "value_bytes": VALUE_BYTES, "seed": SEED}


@contextmanager
def _pysyncobj(bench: Bench, options: Sequence[str]) -> Iterator[Contender]:
    program, folder = bench.programs["pysyncobj"], bench.subfolder("pysyncobj")
    ports = bench.ports(2 * MEMBERS)
    addresses, controls = [f"127.0.0.1:{port}" for port in ports[:MEMBERS]], ports[MEMBERS:]
    start: Callable[[int], Process] = partial(_start_member, bench, program.path, folder, addresses, controls, options)
    with ExitStack() as ends:
        processes = [ends.enter_context(start(number)) for number in range(MEMBERS)]
        yield SyncObjCluster(processes, [Control(port) for port in controls])


def _start_member(
    bench: Bench, python: str, folder: Path, addresses: Sequence[str], controls: Sequence[int], options: Sequence[str],
    number: int,
) -> Process:  # fmt: skip
    name, own = f"member-{number + 1}", addresses[number]
    data = folder / name
    data.mkdir()
    command = [
        python, "-P", str(CONFIGURATIONS / "pysyncobj_member.py"), "--self", own, "--control", str(controls[number]),
        "--others", ",".join(each for each in addresses if each != own), "--folder", str(data), *options,
    ]  # fmt: skip
    return Process(name, command, bench.cores, folder, {})

"""Three members of a store, ours or etcd's: started, ended and started again, and asked over etcd's v3 JSON API.

Both sides have the same duties here and are asked the same questions, so what is measured of one is measured of the
other in the same words.
"""

import base64
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx

from benchmarks import quorate_processes
from benchmarks.failures import BenchmarkFailed
from benchmarks.peers import write_configuration
from benchmarks.processes import Process, until
from benchmarks.rounds import Bench

MEMBERS = 3
ANSWER_CHARS_SHOWN_MAX = 500

PUT, RANGE, TRANSACTION = "/v3/kv/put", "/v3/kv/range", "/v3/kv/txn"
COMPACTION, WATCH = "/v3/kv/compaction", "/v3/watch"
STATUS, SNAPSHOT = "/v3/maintenance/status", "/v3/maintenance/snapshot"


_JSON = {"content-type": "application/json"}


class Refused(BenchmarkFailed):
    """A member has answered that it cannot or will not."""


class StoreMembers(ABC):
    """All members, numbered from 0. Use it as a context manager: it starts them and, at the end, ends whatever runs."""

    kind: ClassVar[str]

    def __init__(self, bench: Bench, http: httpx.Client) -> None:
        self._bench = bench
        self._http = http
        self._ends = ExitStack()
        self._running: dict[int, Process] = {}
        self.folder = bench.subfolder(self.kind)
        self.names = [f"{self.kind}-{number}" for number in range(1, MEMBERS + 1)]
        ports = bench.ports(2 * MEMBERS)
        self._client_ports = ports[:MEMBERS]
        self._peer_ports = dict(zip(self.names, ports[MEMBERS:], strict=True))
        self.urls = [f"http://127.0.0.1:{port}" for port in self._client_ports]

    def __enter__(self) -> "StoreMembers":
        with ExitStack() as ends:
            self._ends = ends
            for number in range(MEMBERS):
                self.start(number)
            for number in range(MEMBERS):
                self.wait_ready(number)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()
        # A million keys are gigabytes, and the next turn needs the room and not the data.
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def _launch(self, number: int) -> Process: ...

    @abstractmethod
    def _is_ready(self, number: int) -> bool: ...

    @abstractmethod
    def data_folder(self, number: int) -> Path:
        """Where the member keeps everything that it has on disk."""
        ...

    @property
    def processes(self) -> list[Process]:
        """Those that have not been stopped, in the order of their numbers."""
        return [self._running[number] for number in sorted(self._running)]

    def process(self, number: int) -> Process:
        """Raises BenchmarkFailed when it was stopped."""
        if number not in self._running:
            raise BenchmarkFailed(f"{self.names[number]} does not run")
        return self._running[number]

    def start(self, number: int) -> None:
        """Start the member, with the data that it has; it is not ready yet."""
        self._running[number] = self._ends.enter_context(self._launch(number))

    def stop(self, number: int) -> None:
        """End it as an operator does, with SIGTERM; returns when it has ended. Raises BenchmarkFailed when it was
        stopped before."""
        self.process(number).end()
        del self._running[number]

    def wait_ready(self, number: int) -> None:
        until(f"{self.names[number]} is ready", partial(self._is_ready, number), [self.process(number)])

    def leader(self) -> int:
        """Number of the member that leads, once all that run name the same."""
        return until("the members agree on a leader", self._agreed_leader, self.processes)[0]

    def _agreed_leader(self) -> tuple[int] | None:
        try:
            seen = {number: self.status(number) for number in sorted(self._running)}
        except Refused:
            return None  # it has no leader yet
        leaders = {leader for _, _, leader in seen.values()}
        if len(leaders) != 1:
            return None
        return next(((number,) for number, (_, member, _) in seen.items() if member in leaders), None)

    def status(self, number: int) -> tuple[int, str, str]:
        """Revision, the member's own id, and the leader's."""
        answer = self.post(number, STATUS, {})
        header = answer["header"]
        return int(header.get("revision", 0)), header["member_id"], answer.get("leader", "0")

    def put(self, number: int, key: bytes, value: bytes) -> None:
        self.post(number, PUT, {"key": text_of(key), "value": text_of(value)})

    def get(self, number: int, key: bytes, *, serializable: bool = False) -> list[bytes]:
        """Values of the key: none or one."""
        body: dict[str, Any] = {"key": text_of(key), **({"serializable": True} if serializable else {})}
        return [base64.b64decode(kv["value"]) for kv in self.post(number, RANGE, body).get("kvs", [])]

    def post(self, number: int, path: str, body: Mapping[str, Any] | str) -> dict[str, Any]:
        """`body` is a message, or its JSON. Raises Refused for any status but 200."""
        content = body if isinstance(body, str) else json.dumps(body)
        answer = self._http.post(self.urls[number] + path, content=content, headers=_JSON)
        if answer.status_code != httpx.codes.OK:
            said = answer.text[:ANSWER_CHARS_SHOWN_MAX]
            raise Refused(f"{self.names[number]} answered {path} with {answer.status_code}: {said}")
        return dict(answer.json())


class EtcdMembers(StoreMembers):
    kind = "etcd"

    def _launch(self, number: int) -> Process:
        program, name = self._bench.programs["etcd"], self.names[number]
        own = self.folder / name
        own.mkdir(exist_ok=True)
        members = ",".join(f"{each}=http://127.0.0.1:{port}" for each, port in self._peer_ports.items())
        configuration = write_configuration(
            "etcd.yaml", own, {"folder": own, "name": name, "client_port": self._client_ports[number],
                               "peer_port": self._peer_ports[name], "members": members},
        )  # fmt: skip
        command = [program.path, "--config-file", str(configuration)]
        return Process(name, command, self._bench.cores, own, program.environment)

    def _is_ready(self, number: int) -> bool:
        return bool(self._http.get(self.urls[number] + "/health").json() == {"health": "true"})

    def data_folder(self, number: int) -> Path:
        return self.folder / self.names[number] / "data"


class QuorateMembers(StoreMembers):
    """`profiled`: each can be told to sample itself; that costs nothing until then."""

    kind = "quorate"

    def __init__(self, bench: Bench, http: httpx.Client, profiled: bool = False) -> None:
        super().__init__(bench, http)
        self._profiled = profiled

    def _launch(self, number: int) -> Process:
        name, port = self.names[number], self._client_ports[number]
        return quorate_processes.start_node(
            name, self._peer_ports, port, self._bench.cores, self.folder, self._profiled
        )

    def _is_ready(self, number: int) -> bool:
        return self._http.get(self.urls[number] + "/readyz").status_code == httpx.codes.OK

    def data_folder(self, number: int) -> Path:
        return self.folder / self.names[number] / "data"


def text_of(content: bytes) -> str:
    """Bytes as the JSON API has them: base64."""
    return base64.b64encode(content).decode()

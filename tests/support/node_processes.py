"""Real nodes as processes of their own, on free ports of loopback, and hands to break them."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from quorate_cli import ports as machine_ports
from quorate_core.secrets import generate_secret
from support import forked_programs, plain_http

START_S_MAX = 30.0
STOP_S_MAX = 20.0
POLL_INTERVAL_S = 0.02
LOG_CHARS_SHOWN_MAX = 6_000
EXIT_SETTINGS = 78

T = TypeVar("T")


def until(what: str, probe: Callable[[], T | None], within_s: float = 15.0) -> T:
    """The first truthy answer of `probe`; HTTP errors count as "not yet". Fails after `within_s` seconds."""
    deadline_s = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline_s:
        try:
            last = answer = probe()
            if answer:
                return answer
        except httpx.HTTPError as error:
            last = error
        time.sleep(POLL_INTERVAL_S)
    raise AssertionError(f"not within {within_s} s: {what}; last seen: {last!r}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago, outside of the range of outgoing connections."""
    return machine_ports.free_ports(count, "127.0.0.1", random.Random())


def write_secret(path: Path, secret: str | None = None) -> Path:
    """A file with a generated secret, or the one given, that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text((secret or generate_secret()) + "\n")
    return path


@dataclass
class NodeProcess:
    """One `python -m quorate_node`. `changes` replace or (by None) remove flags of its command line."""

    name: str
    folder: Path
    http_port: int
    members: dict[str, int]
    """Every member's peer port."""
    secret_file: Path
    cluster_id: str = "test-cluster"
    changes: dict[str, str | None] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | forked_programs.ForkedProcess | None = None
    program: tuple[str, ...] = ("-m", "quorate_node")
    """What Python runs, before the flags."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def data_dir(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> str:
        path = self.folder / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Begin, without waiting."""
        flags: dict[str, str | None] = {
            "--name": self.name, "--data-dir": str(self.data_dir), "--http": f"127.0.0.1:{self.http_port}",
            "--peer": f"127.0.0.1:{self.members[self.name]}",
            "--members": ",".join(f"{name}=127.0.0.1:{port}" for name, port in self.members.items()),
            "--cluster-id": self.cluster_id, "--cluster-secret-file": str(self.secret_file), **self.changes,
        }  # fmt: skip
        arguments = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
        with (self.folder / f"{self.name}.log").open("ab") as output:
            self.process = forked_programs.start(self.program, arguments, output)

    def wait_ready(self, within_s: float = START_S_MAX) -> float:
        """Returns after how many seconds of waiting /readyz said yes. Fails with the log when it does not."""
        began_s = time.monotonic()
        try:
            until(f"{self.name} is ready", self.is_ready, within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-LOG_CHARS_SHOWN_MAX:]}") from None
        return time.monotonic() - began_s

    def is_ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}")
        return plain_http.get(self.url + "/readyz", timeout=2).status_code == 200

    def exit_status(self, within_s: float = STOP_S_MAX) -> int:
        """Wait for the end of a process that ends by itself, or was told to."""
        if self.process is None:
            raise AssertionError(f"{self.name} was not started")
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs\n{self.log[-LOG_CHARS_SHOWN_MAX:]}") from None

    def refused(self) -> str:
        """Start a node that cannot start; returns what it said. Fails when it ends otherwise."""
        already = len(self.log)
        self.start()
        status, said = self.exit_status(), self.log[already:]
        assert status == EXIT_SETTINGS, f"ended with {status}:\n{said}"
        assert "Traceback" not in said
        return said

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM, and wait for the drained end."""
        self._signal(signal.SIGTERM, wait=False)
        return self.exit_status()

    def restart(self) -> None:
        self.start()
        self.wait_ready()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def _signal(self, number: int, wait: bool = True) -> None:
        if self.process is None:
            raise AssertionError(f"{self.name} was not started")
        os.kill(self.process.pid, number)
        if wait:
            self.process.wait(STOP_S_MAX)


@dataclass
class NodeCluster:
    """Nodes that are members of one cluster."""

    nodes: list[NodeProcess]

    def __getitem__(self, name: str) -> NodeProcess:
        return next(node for node in self.nodes if node.name == name)

    def start(self) -> None:
        """All at once, and wait until all are ready."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_ready()

    def mend(self) -> None:
        """Whole again, whichever of them have ended: for tests that share a cluster."""
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                node.start()
        for node in self.nodes:
            node.wait_ready()

    def status(self, node: NodeProcess) -> dict[str, Any]:
        answer = plain_http.get(node.url + "/v1/cluster/status", timeout=5)
        answer.raise_for_status()
        return dict(answer.json())

    def leader(self) -> NodeProcess:
        """The node that a majority names as leader."""
        running = [node for node in self.nodes if node.process is not None and node.process.poll() is None]
        name = until("there is a leader", lambda: next(filter(None, (self.status(n)["leader"] for n in running)), None))
        return self[str(name)]

    def followers(self) -> list[NodeProcess]:
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]


@contextmanager
def node_cluster(folder: Path, size: int, **changes: str | None) -> Iterator[NodeCluster]:
    """A cluster that is not started yet; what runs of it at the end is killed. `changes`: flags of every node."""
    ports = free_ports(2 * size)
    members = {f"node-{number}": ports[number - 1] for number in range(1, size + 1)}
    secret = write_secret(folder / "cluster.secret")
    flags = {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    cluster = NodeCluster(
        [
            NodeProcess(name, folder, http_port, members, secret, changes=dict(flags))
            for name, http_port in zip(members, ports[size:], strict=True)
        ]
    )
    try:
        yield cluster
    finally:
        for node in cluster.nodes:
            node.end()

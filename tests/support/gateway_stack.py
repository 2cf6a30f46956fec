"""A real gateway, the one real node that it follows, and services behind it: processes on free ports of loopback."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support import forked_programs, plain_http
from support.node_processes import START_S_MAX, NodeProcess, node_cluster, until

SUPPORT = Path(__file__).resolve().parent
TTL_S = 3_600
"""Nobody sends heartbeats for the instances here."""
STOP_S_MAX = 20.0
ASK_S_MAX = 5.0
LOG_CHARS_SHOWN_MAX = 6_000
LISTENING = re.compile(r"listening .*admin=http://127\.0\.0\.1:(\d+).* url=https?://127\.0\.0\.1:(\d+)")


@dataclass
class EchoProcess:
    """One instance of `echo_service.py`."""

    name: str
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """On the port that it had before, if it had one."""
        command = [sys.executable, str(SUPPORT / "echo_service.py"), self.name, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S_MAX)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass
class GatewayStack:
    """`port` is the clients', `admin_port` the operator's."""

    folder: Path
    node: NodeProcess
    process: subprocess.Popen[bytes] | forked_programs.ForkedProcess | None = None
    port: int = 0
    admin_port: int = 0
    http: httpx.Client = field(default_factory=lambda: plain_http.client(timeout=ASK_S_MAX))
    fresh: dict[str, int] = field(default_factory=dict)
    """`counts` of before the first request, for who compares."""

    # The control plane.

    def register(self, service: str, instances: Mapping[str, int]) -> None:
        """Ports of loopback by instance id."""
        for name, port in instances.items():
            spec = {"host": "127.0.0.1", "port": port, "ttl_s": TTL_S}
            self._accepted("PUT", self._instance(service, name), json=spec)

    def deregister(self, service: str, names: Sequence[str]) -> None:
        for name in names:
            self._accepted("DELETE", self._instance(service, name))

    def publish(self, routes: str, *, wait: bool = True) -> int:
        """`routes` is the whole document. Returns its version, once the gateway serves by it."""
        path = "/v1/config/default/gateway/routes.yaml"
        version = int(self._accepted("PUT", path, content=routes.encode())["version"])
        if wait:
            until("the routes are served", lambda: self.snapshot()["routes_version"] >= version)
        return version

    def wait_endpoints(self, service: str, names: Sequence[str]) -> None:
        """Until the gateway routes to exactly these instances."""

        def are_routed() -> bool:
            found = self.admin("endpoints")
            return sorted(names) == sorted(
                one["instance"] for one in found if one["service"] == service and one["routed"]
            )

        until(f"the gateway routes to {', '.join(names) or 'none'}", are_routed)

    def _instance(self, service: str, name: str) -> str:
        return f"/v1/registry/default/services/{service}/instances/{name}"

    def _accepted(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        answer = self.http.request(method, self.node.url + path, **content)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json())

    # The gateway's process.

    def start(self, *flags: str) -> None:
        """Start it and wait until it serves."""
        with self.log_file.open("ab") as output:
            self.process = forked_programs.start(
                (str(SUPPORT / "counted_gateway.py"),),
                (
                    str(self.folder / "counts.json"), "--name", "gateway", "--data-dir", str(self.folder / "gateway"),
                    "--listen", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.admin_port}",
                    "--endpoints", self.node.url, *flags,
                ),
                output, {**os.environ, "NO_COLOR": "1"},
            )  # fmt: skip
        found = until("the gateway listens", self._listening, START_S_MAX)
        self.admin_port, self.port = int(found[1]), int(found[2])

    def _listening(self) -> re.Match[str] | None:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        *_, last = (None, *LISTENING.finditer(self.log))
        return last

    def stop(self) -> int:
        """SIGTERM, and wait for the drained end."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(STOP_S_MAX)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_S_MAX)
        self.http.close()

    @property
    def log_file(self) -> Path:
        return self.folder / "gateway.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    # What it says of itself, and what the kernel says of it.

    def admin(self, path: str, **query: str) -> Any:
        answer = self.http.get(f"http://127.0.0.1:{self.admin_port}/v1/gateway/{path}", params=query)
        answer.raise_for_status()
        return answer.json()

    def snapshot(self) -> dict[str, Any]:
        return dict(self.admin("snapshot"))

    def metric(self, name: str) -> float:
        """The sum of all samples of that name."""
        text = self.http.get(f"http://127.0.0.1:{self.admin_port}/metrics").raise_for_status().text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    def counts(self) -> dict[str, int]:
        """Its tasks and the objects that a leak would pile up."""
        assert self.process is not None
        path = self.folder / "counts.json"
        path.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        until("the gateway has counted", path.exists)
        return dict(json.loads(path.read_text()))

    def memory_bytes(self) -> int:
        """Resident."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self._pid}/fd").iterdir()))

    @property
    def _pid(self) -> int:
        assert self.process is not None
        return self.process.pid


@contextmanager
def gateway_stack(folder: Path, *flags: str) -> Iterator[GatewayStack]:
    """A node and a gateway that follows it, without routes and instances; `flags` are the gateway's."""
    with ExitStack() as ends:
        cluster = ends.enter_context(node_cluster(folder, 1))
        cluster.start()
        stack = GatewayStack(folder, cluster.nodes[0])
        ends.callback(stack.end)
        stack.start(*flags)
        yield stack


@contextmanager
def echo_processes(*names: str) -> Iterator[dict[str, EchoProcess]]:
    """Instances that are up, by name; what is left of them at the end is killed."""
    started = {name: EchoProcess(name) for name in names}
    try:
        for one in started.values():
            one.start()
        yield started
    finally:
        for one in started.values():
            if one.process is not None and one.process.poll() is None:
                one.kill()

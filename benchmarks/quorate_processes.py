"""Real Quorate processes as contenders: nodes and the gateway, started by their command lines as a user starts them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from quorate_core.secrets import load_or_create_secret
from quorate_gateway.compiled import VARIABLE

from benchmarks.failures import BenchmarkFailed
from benchmarks.processes import Process, until

SAMPLER = Path(__file__).resolve().parent / "sampled_process.py"
SAMPLES_FILE = "samples.json"
CLUSTER_ID = "benchmark"
_QUIET = ("--log-level", "WARNING")


def start_node(
    name: str, members: dict[str, int], http_port: int, cores: Sequence[int], folder: Path, profiled: bool = False
) -> Process:
    """One `python -m quorate_node`; `members` are the peer ports of all. It is not ready yet."""
    own = folder / name
    own.mkdir(exist_ok=True)
    secret = folder / "cluster.secret"
    load_or_create_secret(secret)
    arguments = [
        "--name", name, "--data-dir", str(own / "data"), "--http", f"127.0.0.1:{http_port}",
        "--peer", f"127.0.0.1:{members[name]}",
        "--members", ",".join(f"{member}=127.0.0.1:{port}" for member, port in members.items()),
        "--cluster-id", CLUSTER_ID, "--cluster-secret-file", str(secret), *_QUIET,
    ]  # fmt: skip
    return Process(name, [*_python(own, profiled), "quorate_node", *arguments], cores, own, {})


def start_gateway(
    port: int, admin_port: int, node_url: str, cores: Sequence[int], folder: Path, profiled: bool = False,
    flags: Sequence[str] = (), compiled: str = "off",
) -> Process:  # fmt: skip
    """One `python -m quorate_gateway`, fed by the node at `node_url`, with further `flags`; for `compiled` see
    `quorate_gateway.compiled`."""
    arguments = [
        "--name", "gateway", "--data-dir", str(folder / "data"), "--listen", f"127.0.0.1:{port}",
        "--admin", f"127.0.0.1:{admin_port}", "--endpoints", node_url, *_QUIET, *flags,
    ]  # fmt: skip
    environment = {VARIABLE: compiled}
    return Process("gateway", [*_python(folder, profiled), "quorate_gateway", *arguments], cores, folder, environment)


def _python(folder: Path, profiled: bool) -> list[str]:
    # -P keeps the folder of the script off the import path: its modules are named for benchmarks alone.
    if profiled:
        return [sys.executable, "-P", str(SAMPLER), str(folder / SAMPLES_FILE)]
    return [sys.executable, "-P", "-m"]


def wait_ready(http: httpx.Client, url: str, process: Process) -> None:
    until(f"{process.name} is ready", lambda: http.get(f"{url}/readyz").status_code == httpx.codes.OK, [process])


def register(http: httpx.Client, node_url: str, service: str, ports: Sequence[int], ttl_s: int) -> None:
    """Register an instance of `service` at each port of loopback. Raises BenchmarkFailed when that is refused."""
    for number, port in enumerate(ports, 1):
        path = f"/v1/registry/default/services/{service}/instances/{service}-{number}"
        _accepted(http.put(node_url + path, json={"host": "127.0.0.1", "port": port, "ttl_s": ttl_s}))


def publish_routes(http: httpx.Client, node_url: str, document: str) -> None:
    """Raises BenchmarkFailed when the document is refused."""
    _accepted(http.put(node_url + "/v1/config/default/gateway/routes.yaml", content=document.encode()))


def _accepted(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise BenchmarkFailed(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
    return answer.json()

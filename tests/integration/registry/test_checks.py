"""Active checks on three real nodes: one node checks a service, another one takes over when that is killed, and what is
shown is the same everywhere."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
from quorate_registry.ownership import rendezvous_owner
from support import plain_http
from support.node_processes import NodeCluster, NodeProcess, node_cluster, until

pytestmark = pytest.mark.timeout(240)

SERVICES = [f"ledger-{number}" for number in range(8)]
INTERVAL_S = 1.0
NODE_TTL_S = 10.0
TAKEN_OVER_S_MAX = NODE_TTL_S + 6.0
"""A node's lease, an election if it was the leader, the check's interval, and a machine busy with other tests."""
CHECKS_WATCHED = 4
AT_WORK_S = 0.3
"""A request of the node that was killed may still be at work in the server's threads for so long."""


class CheckedServer:
    """Answers for every service, by the path; `asked` has when each was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = {service: [] for service in SERVICES}
        self.ill: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service = self.path.strip("/")
                outer.asked[service].append(time.monotonic())
                self.send_response(503 if service in outer.ill else 200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[CheckedServer]:
    server = CheckedServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    with node_cluster(tmp_path_factory.mktemp("checks"), 3) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(started: NodeCluster) -> NodeCluster:
    started.mend()
    until("all nodes are announced", lambda: len(started.status(started.nodes[0])["nodes"]) == len(started.nodes), 30.0)
    return started


def path(service: str) -> str:
    return f"/v1/registry/default/services/{service}/instances/one"


def register(node: NodeProcess, service: str, port: int, host: str = "127.0.0.1") -> Any:
    check = {"type": "http", "path": f"/{service}", "interval_s": INTERVAL_S, "unhealthy_after": 1, "healthy_after": 1}
    spec = {"host": host, "port": port, "ephemeral": False, "check": check}
    return plain_http.put(node.url + path(service), json=spec, timeout=10)


def shown(node: NodeProcess, service: str) -> dict[str, Any]:
    return dict(plain_http.get(node.url + path(service), timeout=10).json())


def owner_of(cluster: NodeCluster, service: str) -> str | None:
    return rendezvous_owner([node.name for node in cluster.nodes], "default", service)


def checked_by(node: NodeProcess) -> int:
    """How many instances this node checks."""
    lines = plain_http.get(node.url + "/metrics", timeout=5).text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("quorate_registry_checked_instances "))))


def test_each_service_is_checked_by_one_node_and_taken_over_when_that_is_killed(
    cluster: NodeCluster, server: CheckedServer, show: Callable[[str], None]
) -> None:
    first = cluster.nodes[0]
    for service in SERVICES:
        answer = register(first, service, server.port)
        answer.raise_for_status()
        assert answer.json()["status"] == "STARTING"
    until("all are up", lambda: all(shown(first, service)["status"] == "UP" for service in SERVICES))
    owners = {service: owner_of(cluster, service) for service in SERVICES}
    assert set(owners.values()) == {node.name for node in cluster.nodes}
    until("each node checks what it owns", lambda: all(
        checked_by(node) == list(owners.values()).count(node.name) for node in cluster.nodes
    ))  # fmt: skip

    counted = {service: len(server.asked[service]) for service in SERVICES}
    until("each was asked often",
          lambda: all(len(server.asked[name]) >= counted[name] + CHECKS_WATCHED for name in SERVICES))  # fmt: skip
    for service in SERVICES:
        asked_s = server.asked[service][counted[service] :]
        gaps = [later - earlier for earlier, later in pairwise(asked_s)]
        assert sum(gaps) / len(gaps) > 0.8 * INTERVAL_S, f"{service} is checked by more than one node: {gaps}"

    victim = first
    orphans = [service for service, owner in owners.items() if owner == victim.name]
    survivor = cluster.nodes[1]
    victim.kill()
    killed_s = time.monotonic()
    after_s = killed_s + AT_WORK_S
    until("the orphans are asked again",
          lambda: all(server.asked[service][-1] > after_s for service in orphans), TAKEN_OVER_S_MAX)  # fmt: skip
    for service in orphans:
        last_s = max(at_s for at_s in server.asked[service] if at_s < after_s)
        gap_s = min(at_s for at_s in server.asked[service] if at_s > after_s) - last_s
        show(f"{service}: not checked for {gap_s:.1f} s after its node was killed")
        assert NODE_TTL_S / 2 < gap_s < TAKEN_OVER_S_MAX
    assert all(shown(survivor, service)["status"] == "UP" for service in SERVICES), "they kept what was decided"

    server.ill.update(SERVICES)
    until("all are down", lambda: all(shown(survivor, service)["status"] == "DOWN" for service in SERVICES))
    health = shown(survivor, orphans[0])["health"]
    assert health["checked_by"] != victim.name
    assert health["output"] == "status 503 Service Unavailable"


def test_every_node_shows_the_same_of_a_checked_instance(cluster: NodeCluster, server: CheckedServer) -> None:
    service = SERVICES[0]
    register(cluster.nodes[0], service, server.port).raise_for_status()
    for is_ill, status in ((False, "UP"), (True, "DOWN"), (False, "UP")):
        server.ill = {service} if is_ill else set()
        until(
            f"every node shows {status}",
            lambda status=status: all(shown(node, service)["status"] == status for node in cluster.nodes),
        )
    views = [shown(node, service) for node in cluster.nodes]
    assert views[0] == views[1] == views[2]


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "0xa9fea9fe", "fe80::1", "fd00:ec2::254", "0.0.0.0", "::ffff:169.254.169.254"]
)
def test_a_forbidden_address_is_refused_by_the_name_of_the_field(cluster: NodeCluster, host: str) -> None:
    answer = register(cluster.nodes[0], "thief", 80, host)
    assert answer.status_code == 400, answer.text
    assert "host" in answer.json()["detail"]

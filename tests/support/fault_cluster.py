"""Three real nodes with hands to break them: end them, stop and continue them, cut their network, fill their disk."""

import os
import secrets
import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support import plain_http
from support.fault_clients import CALL_S_MAX, Load
from support.fault_leases import HeldInstance
from support.fault_network import FaultNetwork
from support.node_processes import NodeCluster, NodeProcess, node_cluster, until, write_secret

NODES = 3
AGREED_S_MAX = 30.0
ASK_S_MAX = 1.0
HTTP_PORT, PEER_PORT = 8501, 7501
"""In a namespace nobody else has them."""


@dataclass
class PlacedNode(NodeProcess):
    """A node inside of a network namespace, at an address of its own."""

    network: FaultNetwork | None = None

    @property
    def url(self) -> str:
        return f"http://{self._network.addresses[self.name]}:{HTTP_PORT}"

    def start(self) -> None:
        with self._network.entered(self.name):
            super().start()

    @property
    def _network(self) -> FaultNetwork:
        if self.network is None:
            raise ValueError(f"{self.name} has no network")
        return self.network


@dataclass
class FaultCluster(NodeCluster):
    """`seed` decides what clients do."""

    seed: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    http: httpx.Client = field(default_factory=lambda: plain_http.client(timeout=ASK_S_MAX))

    def load(self, label: str, call_s_max: float = CALL_S_MAX) -> Load:
        return Load({node.name: node.url for node in self.nodes}, self.headers, label, self.seed, call_s_max)

    def instance(self, name: str, ttl_s: int) -> HeldInstance:
        urls = {node.name: node.url for node in self.nodes}
        return HeldInstance(urls, self.headers, f"{name}-{secrets.token_hex(4)}", ttl_s, self.seed)

    def view(self, node: NodeProcess) -> dict[str, Any]:
        """What a node says of itself. Raises what httpx does."""
        answer = self.http.get(node.url + "/v1/cluster/node", headers=self.headers)
        answer.raise_for_status()
        return dict(answer.json())

    def leader_of(self, nodes: Sequence[NodeProcess], other_than: Collection[str] = ()) -> NodeProcess:
        """Wait until all of `nodes` name the same leader in the same term, which is none of `other_than`."""

        def agreed() -> str | None:
            views = [self.view(node) for node in nodes]
            found = {(view["leader"], view["term"]) for view in views}
            leader = str(views[0]["leader"])
            return leader if len(found) == 1 and leader not in other_than else None

        return self[until(f"{[node.name for node in nodes]} agree on a leader", agreed, AGREED_S_MAX)]

    def others(self, *nodes: NodeProcess) -> list[NodeProcess]:
        return [node for node in self.nodes if node not in nodes]

    def wait_whole(self) -> NodeProcess:
        """Until all agree on a leader, and have applied what it has committed; returns the leader."""
        leader = self.leader_of(self.nodes)
        target = self.view(leader)["commit_index"]

        def is_whole() -> bool:
            return all(self.view(node)["applied_index"] >= target for node in self.nodes)

        until("all nodes have caught up", is_whole, AGREED_S_MAX)
        return leader

    def hand_over(self, to: NodeProcess) -> None:
        """Have `to` lead."""

        def asked() -> bool:
            answer = plain_http.post(
                to.url + "/v1/cluster/transfer", json={"to": to.name}, headers=self.headers, timeout=10
            )
            return answer.is_success and self.leader_of(self.nodes).name == to.name

        until(f"{to.name} leads", asked, AGREED_S_MAX)

    def pause(self, *nodes: NodeProcess) -> None:
        """SIGSTOP: the kernel goes on to take in what is sent to them."""
        for node in nodes:
            os.kill(_pid(node), signal.SIGSTOP)

    def resume(self, *nodes: NodeProcess) -> None:
        for node in nodes:
            os.kill(_pid(node), signal.SIGCONT)

    def mend(self) -> None:
        """Whatever a test has left of it: what is stopped goes on, what has ended is started."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                self.resume(node)
            else:
                node.start()
        for node in self.nodes:
            node.wait_ready()


def _pid(node: NodeProcess) -> int:
    if node.process is None or node.process.poll() is not None:
        raise AssertionError(f"{node.name} does not run:\n{node.log[-2000:]}")
    return node.process.pid


@contextmanager
def fault_cluster(folder: Path, seed: int) -> Iterator[FaultCluster]:
    """On loopback; not started yet. What runs of it at the end is killed."""
    with node_cluster(folder, NODES) as plain:
        cluster = FaultCluster(plain.nodes, seed)
        with cluster.http:
            yield cluster


@contextmanager
def placed_cluster(folder: Path, seed: int, network: FaultNetwork) -> Iterator[FaultCluster]:
    """One node in each of the network's namespaces; not started yet. Be inside of `network.entered()` to use it."""
    secret, token = write_secret(folder / "cluster.secret"), write_secret(folder / "token")
    members = dict.fromkeys(network.addresses, PEER_PORT)
    flags = {
        "--members": ",".join(f"{name}={address}:{PEER_PORT}" for name, address in network.addresses.items()),
        "--token-file": str(token),
    }
    nodes: list[NodeProcess] = [
        PlacedNode(
            name, folder, HTTP_PORT, members, secret, network=network,
            changes={**flags, "--http": f"{address}:{HTTP_PORT}", "--peer": f"{address}:{PEER_PORT}"},
        )
        for name, address in network.addresses.items()
    ]  # fmt: skip
    cluster = FaultCluster(nodes, seed, headers={"authorization": f"Bearer {token.read_text().strip()}"})
    try:
        with cluster.http:
            yield cluster
    finally:
        for node in nodes:
            node.end()

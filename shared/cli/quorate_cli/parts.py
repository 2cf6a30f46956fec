"""The parts of a local platform and the command line of each. Nothing here starts anything."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from quorate_core.settings import HostPort

from quorate_cli.layout import Cluster, Layout

HOST = "127.0.0.1"
NAMESPACE = "default"
FIRST_STOCK = "widget=1000,gadget=500"
NODE_COUNTS = (1, 3, 5)
INSTANCES_MAX = 9
REMOVED_MARK = "removed"
"""A node that was removed from its cluster leaves this file in its data folder (`quorate_node.memory`)."""


class PartKind(StrEnum):
    NODE = "node"
    GATEWAY = "gateway"
    ORDER = "order"
    INVENTORY = "inventory"

    @property
    def is_service(self) -> bool:
        return self in (PartKind.ORDER, PartKind.INVENTORY)


SERVICE_KINDS = (PartKind.ORDER, PartKind.INVENTORY)


@dataclass(frozen=True, slots=True)
class Part:
    """One process. `address` is where its HTTP is, bound by `address_flag`; `health_address` answers /readyz.

    `may_move`: it is found through the registry, so that when its port is taken it may come back on another.
    `retired_mark`: a file that it writes before it ends for good, since there is no use for it any more.
    """

    name: str
    kind: PartKind
    arguments: tuple[str, ...]
    address_flag: str
    address: HostPort
    health_address: HostPort
    may_move: bool = False
    retired_mark: Path | None = None
    scheme: str = "http"
    """Of what is at `address`."""

    @property
    def is_retired(self) -> bool:
        return self.retired_mark is not None and self.retired_mark.exists()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def ready_url(self) -> str:
        return f"http://{self.health_address}/readyz"

    def command(self, python: str) -> tuple[str, ...]:
        # NB: -P keeps the current folder off the import path: a file there must not stand in for a library.
        module = f"quorate_{self.kind}"
        return (python, "-P", "-m", module, *self.arguments, self.address_flag, str(self.address))

    def of_begun_node(self) -> "Part":
        """A node that has been part of the cluster, and so must not start without what it remembers of it."""
        known = ("--cluster-state", "existing")
        return self if known[0] in self.arguments else replace(self, arguments=(*self.arguments, *known))

    def moved_to(self, port: int) -> "Part":
        address = HostPort(self.address.host, port)
        return replace(self, address=address, health_address=address)


@dataclass(frozen=True, slots=True)
class Ports:
    http: tuple[int, ...]
    peers: tuple[int, ...]
    gateway: int
    admin: int
    services: tuple[int, ...]

    def named(self) -> list[tuple[int, str, str]]:
        """Each port that must be free before the start: port, what it is for, and the option that moves it."""
        http = [(port, f"node-{at} (HTTP)", "--http-port") for at, port in enumerate(self.http, 1)]
        peers = [(port, f"node-{at} (Raft peers)", "--peer-port") for at, port in enumerate(self.peers, 1)]
        gateway = [(self.gateway, "the gateway", "--gateway-port"), (self.admin, "the gateway's admin", "--admin-port")]
        return http + peers + gateway


@dataclass(frozen=True, slots=True)
class Platform:
    """What `up` starts."""

    nodes: tuple[Part, ...]
    gateway: Part
    services: tuple[Part, ...]

    @property
    def all(self) -> tuple[Part, ...]:
        return (*self.nodes, self.gateway, *self.services)

    @property
    def endpoints(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def admin_url(self) -> str:
        return f"http://{self.gateway.health_address}"


def plan_platform(
    layout: Layout, cluster: Cluster, ports: Ports, orders: int, inventories: int, gateway_workers: int | None = None,
    gateway_scheme: str = "http",
) -> Platform:  # fmt: skip
    """Every part with its command line. `ports.services` has one port for each order and inventory instance; without
    `gateway_workers`, the gateway goes by its environment, of which `gateway_scheme` follows too."""
    nodes = tuple(
        _node(layout, cluster, ports, at) for at in range(cluster.nodes) if node_name(at) not in cluster.removed_nodes
    )
    common = ("--endpoints", ",".join(node.url for node in nodes), "--token-file", str(layout.token_file),
              "--namespace", NAMESPACE)  # fmt: skip
    admin = _at(ports.admin)
    workers = () if gateway_workers is None else ("--workers", str(gateway_workers))
    gateway = Part(
        name="gateway", kind=PartKind.GATEWAY, address_flag="--listen", address=_at(ports.gateway),
        health_address=admin,
        arguments=(
            "--name", "gateway", "--data-dir", str(layout.data_dir / "gateway"), "--admin", str(admin), *workers,
            *common,
        ),
        scheme=gateway_scheme,
    )  # fmt: skip
    wanted = [(PartKind.ORDER, at) for at in range(1, orders + 1)]
    wanted += [(PartKind.INVENTORY, at) for at in range(1, inventories + 1)]
    services = tuple(
        _service(layout, kind, number, _at(port), common)
        for (kind, number), port in zip(wanted, ports.services, strict=True)
    )
    return Platform(nodes, gateway, services)


def migration_command(layout: Layout, kind: PartKind, python: str) -> tuple[str, ...]:
    """What brings a service's database to its newest schema, and stocks it the first time."""
    stock = ("--stock", FIRST_STOCK) if kind is PartKind.INVENTORY else ()
    return (python, "-P", "-m", f"quorate_{kind}.migrate", "--data-dir", str(service_data_dir(layout, kind)), *stock)


def service_data_dir(layout: Layout, kind: PartKind) -> Path:
    """A service's instances share one database, so they share this folder."""
    return layout.data_dir / kind.value


def removed_mark(layout: Layout, node: str) -> Path:
    return layout.data_dir / node / REMOVED_MARK


def node_name(at: int) -> str:
    return f"node-{at + 1}"


def _node(layout: Layout, cluster: Cluster, ports: Ports, at: int) -> Part:
    name = node_name(at)
    members = ",".join(
        f"{node_name(each)}={_at(port)}"
        for each, port in enumerate(ports.peers)
        if node_name(each) not in cluster.removed_nodes
    )
    address = _at(ports.http[at])
    return Part(
        name=name, kind=PartKind.NODE, address_flag="--http", address=address, health_address=address,
        arguments=(
            "--name", name, "--data-dir", str(layout.data_dir / name), "--peer", str(_at(ports.peers[at])),
            "--members", members, "--cluster-id", cluster.cluster_id,
            "--cluster-secret-file", str(layout.secret_file), "--token-file", str(layout.token_file),
        ),
        retired_mark=removed_mark(layout, name),
    )  # fmt: skip


def _service(layout: Layout, kind: PartKind, number: int, address: HostPort, common: Sequence[str]) -> Part:
    name = f"{kind}-{number}"
    return Part(
        name=name, kind=kind, address_flag="--listen", address=address, health_address=address, may_move=True,
        arguments=("--name", name, "--data-dir", str(service_data_dir(layout, kind)), *common),
    )  # fmt: skip


def _at(port: int) -> HostPort:
    return HostPort(HOST, port)

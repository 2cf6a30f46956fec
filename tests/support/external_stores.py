"""Stores that nodes stand on from outside: etcd's members, or nodes of Quorate. Each can be killed and started."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from support.node_processes import STOP_S_MAX, NodeCluster, free_ports, node_cluster
from support.repository import ROOT

_MANIFEST = ROOT / ".quorate-bench" / "peers" / "peers.json"
"""Written by `scripts/fetch_peers.py`."""


class ExternalStore(Protocol):
    """Members are counted from 0, in the order of `endpoints`."""

    @property
    def endpoints(self) -> list[str]: ...
    @property
    def flags(self) -> Mapping[str, str]:
        """What a node needs beside `--store` to stand on it."""
        ...

    def start(self, *members: int) -> None:
        """Begin, without waiting. None named: all of them."""
        ...

    def kill(self, *members: int) -> None:
        """kill -9, and wait until they are gone. None named: all of them."""
        ...

    def mend(self) -> None:
        """Start those that do not run."""
        ...


@dataclass
class OwnNodes:
    """Nodes of Quorate."""

    cluster: NodeCluster

    @property
    def endpoints(self) -> list[str]:
        return [node.url.removeprefix("http://") for node in self.cluster.nodes]

    @property
    def flags(self) -> Mapping[str, str]:
        return {"cluster_secret_file": str(self.cluster.nodes[0].secret_file)}

    def start(self, *members: int) -> None:
        for member in members or range(len(self.cluster.nodes)):
            self.cluster.nodes[member].start()

    def kill(self, *members: int) -> None:
        for member in members or range(len(self.cluster.nodes)):
            self.cluster.nodes[member].kill()

    def mend(self) -> None:
        for node in self.cluster.nodes:
            if node.process is None or node.process.poll() is not None:
                node.start()


def find_etcd() -> tuple[str, Mapping[str, str]] | str:
    """The program and the environment that it needs, or why there is none."""
    if _MANIFEST.exists():
        found = json.loads(_MANIFEST.read_text())["found"].get("etcd")
        if found is not None:
            return found["program"], {"LD_LIBRARY_PATH": os.pathsep.join(found["library_folders"])}
    program = shutil.which("etcd")
    return (program, {}) if program else "there is no etcd here; run scripts/fetch_peers.py"


@dataclass
class EtcdMembers:
    """An etcd cluster. `options` are given to each member beside its addresses."""

    folder: Path
    program: str
    environment: Mapping[str, str]
    client_ports: list[int]
    peer_ports: list[int]
    scheme: str = "http"
    options: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.client_ports]

    def log(self, member: int) -> str:
        path = self.folder / f"etcd-{member}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def data_dir(self, member: int) -> Path:
        return self.folder / f"etcd-{member}"

    def start(self, *members: int) -> None:
        peers = ",".join(f"e{number}=http://127.0.0.1:{port}" for number, port in enumerate(self.peer_ports))
        for member in members or range(len(self.client_ports)):
            client = f"{self.scheme}://127.0.0.1:{self.client_ports[member]}"
            peer = f"http://127.0.0.1:{self.peer_ports[member]}"
            with (self.folder / f"etcd-{member}.log").open("ab") as output:
                self.processes[member] = subprocess.Popen(
                    [
                        self.program, "--name", f"e{member}", "--data-dir", str(self.data_dir(member)),
                        "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                        "--initial-advertise-peer-urls", peer, "--initial-cluster", peers, *self.options,
                    ],
                    stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **self.environment},
                    start_new_session=True,
                )  # fmt: skip

    def kill(self, *members: int) -> None:
        for member in members or tuple(self.processes):
            process = self.processes.pop(member, None)
            if process is not None:
                process.kill()
                process.wait(STOP_S_MAX)

    def mend(self) -> None:
        missing = [member for member in range(len(self.client_ports)) if member not in self.processes]
        if missing:
            self.start(*missing)


@contextmanager
def etcd_members(folder: Path, found: tuple[str, Mapping[str, str]], size: int = 3) -> Iterator[EtcdMembers]:
    """Members that are not started yet; those that run at the end are killed."""
    folder.mkdir(exist_ok=True)
    ports = free_ports(2 * size)
    members = EtcdMembers(folder, *found, ports[:size], ports[size:])
    try:
        yield members
    finally:
        members.kill()


@contextmanager
def own_nodes(folder: Path, size: int = 3) -> Iterator[OwnNodes]:
    """Nodes that are not started yet, as members of one store; those that run at the end are killed."""
    folder.mkdir(exist_ok=True)
    with node_cluster(folder, size) as cluster:
        yield OwnNodes(cluster)

"""A network that can be cut: each node in a network namespace, a switch between them, and a place for clients.

Nothing of it touches the machine's own network: the switch (a bridge) is in a namespace too, so no rule of the machine
filters what it forwards, and addresses clash with nobody's. Whoever is inside of `entered` is at the clients' port of
the switch, with all threads that it starts meanwhile; cuts are between nodes, so clients reach both sides.

It needs root, `ip` and `iptables`. Names of namespaces are unique to the run, and are removed at the end.
"""

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND_S_MAX = 20.0
PREFIX = "quorate-faults"
SUBNET = "10.77.0"
CLIENTS_HOST = 250
PORT = "eth0"

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkUnavailable(Exception):
    """This machine does not let us make such a network; says why."""


def run(*command: str) -> str:
    """Its standard output. Raises NetworkUnavailable with what it said when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
    except OSError as error:
        raise NetworkUnavailable(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NetworkUnavailable(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class FaultNetwork:
    """`names` are the nodes'. Make it by `fault_network`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, 1)}
        self._run_id = secrets.token_hex(4)
        self._made: list[str] = []

    def build(self) -> None:
        """Raises NetworkUnavailable."""
        if os.geteuid() != 0:
            raise NetworkUnavailable("network namespaces need root")
        if missing := [program for program in ("ip", "iptables") if shutil.which(program) is None]:
            raise NetworkUnavailable(f"{' and '.join(missing)} cannot be found")
        self._add_namespace("switch")
        self._in("switch", "ip", "link", "add", "br0", "type", "bridge")
        self._in("switch", "ip", "link", "set", "br0", "up")
        for name, address in (*self.addresses.items(), ("clients", f"{SUBNET}.{CLIENTS_HOST}")):
            self._plug(name, address)
        for name in self.addresses:
            self._in(name, "iptables", "-w", "-L", "INPUT", "-n")  # whether there are rules at all in a namespace

    def remove(self) -> None:
        """Whatever of it was made. The processes in it are their owners' to end."""
        while self._made:
            run("ip", "netns", "delete", self._made.pop())

    @contextmanager
    def entered(self, place: str = "clients") -> Iterator[None]:
        """This thread, and every thread and process that it starts, is at `place` until the block ends."""
        with Path("/proc/thread-self/ns/net").open() as home:
            _enter(Path("/run/netns", self._namespace(place)))
            try:
                yield
            finally:
                if _libc.setns(home.fileno(), _CLONE_NEWNET):
                    raise NetworkUnavailable(f"cannot go back: {os.strerror(ctypes.get_errno())}")

    def cut(self, one: str, other: str) -> None:
        """Neither hears the other any more."""
        self.cut_one_way(one, other)
        self.cut_one_way(other, one)

    def cut_one_way(self, source: str, target: str) -> None:
        """What `source` sends does not reach `target`."""
        self._in(target, "iptables", "-w", "-A", "INPUT", "-s", self.addresses[source], "-j", "DROP")

    def isolate(self, name: str) -> None:
        """From all other nodes; clients still reach it."""
        for other in self._others(name):
            self.cut(name, other)

    def mute(self, name: str) -> None:
        """The other nodes do not hear it, and it hears them."""
        for other in self._others(name):
            self.cut_one_way(name, other)

    def deafen(self, name: str) -> None:
        """It does not hear the other nodes, and they hear it."""
        for other in self._others(name):
            self.cut_one_way(other, name)

    def unplug(self, name: str) -> None:
        """Nobody reaches it, clients neither."""
        self._in(name, "ip", "link", "set", PORT, "down")

    def heal(self) -> None:
        """Everybody reaches everybody."""
        for name in self.addresses:
            self._in(name, "iptables", "-w", "-F", "INPUT")
            self._in(name, "ip", "link", "set", PORT, "up")

    def _others(self, name: str) -> list[str]:
        return [other for other in self.addresses if other != name]

    def _plug(self, name: str, address: str) -> None:
        """A namespace with one cable to the switch."""
        self._add_namespace(name)
        namespace, switch = self._namespace(name), self._namespace("switch")
        # Made where it is used: the machine's own namespace never sees it. The name of an interface has 15 characters.
        port = f"port{len(self._made)}"
        run("ip", "link", "add", port, "netns", switch, "type", "veth", "peer", "name", PORT, "netns", namespace)
        self._in("switch", "ip", "link", "set", port, "master", "br0", "up")
        self._in(name, "ip", "address", "add", f"{address}/24", "dev", PORT)
        self._in(name, "ip", "link", "set", PORT, "up")

    def _add_namespace(self, name: str) -> None:
        run("ip", "netns", "add", self._namespace(name))
        self._made.append(self._namespace(name))
        self._in(name, "ip", "link", "set", "lo", "up")

    def _namespace(self, name: str) -> str:
        return f"{PREFIX}-{self._run_id}-{name}"

    def _in(self, name: str, *command: str) -> str:
        return run("ip", "netns", "exec", self._namespace(name), *command)


def _enter(namespace: Path) -> None:
    with namespace.open() as target:
        if _libc.setns(target.fileno(), _CLONE_NEWNET):
            raise NetworkUnavailable(f"cannot enter {namespace.name}: {os.strerror(ctypes.get_errno())}")


@contextmanager
def fault_network(names: Sequence[str]) -> Iterator[FaultNetwork]:
    """Built, and removed at the end. Raises NetworkUnavailable."""
    network = FaultNetwork(names)
    try:
        network.build()
        yield network
    finally:
        network.remove()

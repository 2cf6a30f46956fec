"""Ports of this machine: which are taken and by whom, and which may be handed out.

Ports are handed out below the range from which the kernel takes the local ports of outgoing connections: a client
that keeps trying to reach a port of that range while nobody listens there may be connected to itself, and then holds
the very port that the restarted part needs.

`QUORATE_PORT_RANGE` (such as `20000-20999`) names other ones: where a firewall lets only some through, or where several
who take ports do not know of each other.
"""

import errno
import os
import random
import socket
from pathlib import Path

from quorate_core.errors import SettingsError, Unavailable
from quorate_core.settings import HostPort

AUTO_PORT_MIN = 15_000
AUTO_PORT_MAX = 32_000
RANGE_VARIABLE = "QUORATE_PORT_RANGE"
_PROBES_MAX = 2_000
_LISTEN = "0A"


def is_free(address: HostPort) -> bool:
    """Whether a server could listen on `address` now."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_ports(
    count: int, host: str, random_source: random.Random, excluded: frozenset[int] = frozenset()
) -> list[int]:
    """`count` different ports on `host` that nobody listens on now. Raises Unavailable when there are too few, and
    SettingsError for a range that is none."""
    floor, ceiling = port_range()
    found: list[int] = []
    for _ in range(_PROBES_MAX):
        if len(found) == count:
            return found
        port = random_source.randrange(floor, ceiling)
        if port not in found and port not in excluded and is_free(HostPort(host, port)):
            found.append(port)
    raise Unavailable(f"this machine has no {count} free ports between {floor} and {ceiling}")


def port_range() -> tuple[int, int]:
    """The lowest port that may be handed out, and the one after the highest."""
    wanted = os.environ.get(RANGE_VARIABLE, "")
    if not wanted:
        ceiling = min(AUTO_PORT_MAX, _ephemeral_port_min())
        return min(AUTO_PORT_MIN, ceiling // 2), ceiling
    lowest, _, highest = wanted.partition("-")
    if not (lowest.isdecimal() and highest.isdecimal() and 0 < int(lowest) < int(highest) < 65_536):
        raise SettingsError(f"{RANGE_VARIABLE} is {wanted!r}; write it as 20000-20999")
    return int(lowest), int(highest) + 1


def _ephemeral_port_min() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return AUTO_PORT_MAX


def holder_of(port: int) -> str | None:
    """Who listens on `port`, as "name (pid 4711)", where /proc tells us; it tells only of our own user's processes."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _holds(process, wanted):
            return f"{_name_of(process)} (pid {process.name})"
    return None


def _listening_inodes(table: str, port: int) -> list[str]:
    try:
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [row.split() for row in rows]
    return [row[9] for row in fields if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _holds(process: Path, wanted: set[str]) -> bool:
    try:
        return any(str(link.readlink()) in wanted for link in (process / "fd").iterdir())
    except OSError:
        return False  # another user's, or just ended


def _name_of(process: Path) -> str:
    """The program with its module or script, such as `python -m http.server`, cut to a readable length."""
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "a process"
    words[0] = Path(words[0]).name
    return " ".join(words).strip()[:60] or "a process"

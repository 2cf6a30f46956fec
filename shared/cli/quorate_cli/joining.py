"""The command line with which a new member is started, as far as this machine knows what belongs into it."""

import os
import random
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quorate_core.settings import HostPort
from quorate_sdk.wire import MemberList

from quorate_cli import ports
from quorate_cli.endpoints import ENDPOINTS_VARIABLE
from quorate_cli.layout import Layout, find_root

HTTP_PORT_DEFAULT = 8501


@dataclass(frozen=True, slots=True)
class Place:
    """Where the new member will be: `layout` is that of the platform that runs here, when the member joins that one.
    What is None is not known here."""

    peer: HostPort
    layout: Layout | None
    http: HostPort | None = None
    data_dir: Path | None = None


def local_layout(endpoints: str | None, environment: Mapping[str, str] = os.environ) -> Layout | None:
    """Of the platform that runs here, unless another one is named."""
    return None if endpoints or environment.get(ENDPOINTS_VARIABLE) else Layout(find_root())


def join_command(name: str, place: Place, members: MemberList) -> list[str]:
    """The words of `python -m quorate_node …`. Those in capitals are for whoever starts it to fill in."""
    http = place.http or _free_http_address(place, members)
    layout = place.layout
    folder = place.data_dir or (layout.data_dir / name if layout else Path("DATA_DIR"))
    named = {member.name: member.peer for member in members.members} | {name: str(place.peer)}
    words = [
        sys.executable if layout else "python", "-m", "quorate_node",
        "--cluster-state", "join",
        "--name", name,
        "--data-dir", str(folder),
        "--http", str(http),
        "--peer", str(place.peer),
        "--members", ",".join(f"{each}={address}" for each, address in named.items()),
        "--cluster-id", members.cluster_id,
        "--cluster-secret-file", str(layout.secret_file) if layout else "CLUSTER_SECRET_FILE",
    ]  # fmt: skip
    if layout:
        words += ["--token-file", str(layout.token_file)]
    elif not http.is_loopback:
        words += ["--token-file", "TOKEN_FILE"]
    return words


def as_shell_lines(words: list[str]) -> str:
    """One flag a line, to be pasted into a shell."""
    lines = [" ".join(map(shlex.quote, words[:3]))]
    lines += [" ".join(map(shlex.quote, words[at : at + 2])) for at in range(3, len(words), 2)]
    return " \\\n      ".join(lines)


def _free_http_address(place: Place, members: MemberList) -> HostPort:
    """On this machine a port that is free; elsewhere the port that the other members have."""
    if place.layout is not None and place.peer.is_loopback:
        return HostPort(place.peer.host, ports.free_ports(1, place.peer.host, random.Random())[0])
    others = {port for member in members.members if (port := member.url.rpartition(":")[2]).isdigit()}
    return HostPort(place.peer.host, int(others.pop()) if len(others) == 1 else HTTP_PORT_DEFAULT)

"""Memory with 10,000 idle connections, and while 1 GiB is streamed: `python -m benchmarks.gateway_held`.

The same contenders as in the scenario `gateway`, started the same way. *Idle*: each connection has had one answer and
is kept open. *Streamed*: one client reads as fast as it can; memory is looked at every 16 MiB. *Slow*: another client
has read 1 MiB of it and stops for some seconds: what the proxy holds for it must not be the body.
"""

import argparse
import os
import re
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.failures import BenchmarkFailed
from benchmarks.gateway import LARGE_BYTES, LARGE_PATH, PATH, GatewayScenario, Proxy
from benchmarks.machine import describe_machine
from benchmarks.peers import WORKING_FOLDER, read_programs
from benchmarks.rounds import Bench
from benchmarks.tables import table

CONTENDERS = ("nginx", "envoy", "quorate", "quorate-2")
CONNECTIONS = 10_000
SLOW_S = 3.0
READ_BYTES = 1024**2
LOOK_EVERY_BYTES = 16 * 1024**2
ANSWER_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 16_384
FILES_BESIDE = 256
_MIB = 1024**2


@dataclass(frozen=True)
class Held:
    """Memory in bytes, resident. `idle` is that of so many connections above `fresh`."""

    name: str
    fresh: int
    connections: int
    idle: int
    streamed_mib_per_s: float
    streamed_peak: int
    slow: int

    def row(self) -> list[str]:
        each = (self.idle - self.fresh) / self.connections / 1024 if self.connections else 0.0
        return [
            self.name, f"{self.fresh / _MIB:.0f}", f"{self.connections:,}", f"{self.idle / _MIB:.0f}", f"{each:.1f}",
            f"{self.streamed_mib_per_s:,.0f}", f"{self.streamed_peak / _MIB:.0f}", f"{self.slow / _MIB:.0f}",
        ]  # fmt: skip


HEADER = (
    "contender", "MiB at first", "idle connections", "MiB", "KiB each", "MiB/s streamed", "MiB at most",
    "MiB, slow client",
)  # fmt: skip


def connect(origin: str, path: str) -> tuple[socket.socket, int, bytes]:
    """A connection that has asked for `path`: with the length of the answer's body, and what has come of it."""
    parts = urlsplit(origin)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), ANSWER_TIMEOUT_S)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65_536)
        if not more or len(data) > HEAD_BYTES_MAX + 65_536:
            raise BenchmarkFailed(f"{origin}{path} gave no answer: {data[:200]!r}")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise BenchmarkFailed(f"{origin}{path} answered {head[:200]!r}")
    return connection, int(length[1]), rest


@contextmanager
def idle_connections(origin: str, count: int) -> Iterator[int]:
    """So many connections, each of which has had an answer; how many the proxy took."""
    kept: list[socket.socket] = []
    try:
        for _ in range(count):
            try:
                connection, length, rest = connect(origin, PATH)
            except BenchmarkFailed:
                break  # it takes no more
            kept.append(connection)
            while len(rest) < length:
                rest += connection.recv(65_536)
        yield sum(not _has_ended(connection) for connection in kept)
    finally:
        for connection in kept:
            connection.close()


def _has_ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False


def stream(proxy: Proxy) -> tuple[float, int]:
    """MiB a second, and the most memory meanwhile. Raises BenchmarkFailed when not every byte came."""
    began_s = time.monotonic()
    connection, length, rest = connect(proxy.origin, LARGE_PATH)
    got, peak, looked_at, buffer = len(rest), 0, 0, memoryview(bytearray(READ_BYTES))
    with connection:
        while got < length:
            count = connection.recv_into(buffer)
            if not count:
                raise BenchmarkFailed(f"{proxy.origin} ended after {got:,} of {length:,} bytes")
            got += count
            if got - looked_at >= LOOK_EVERY_BYTES:
                looked_at, peak = got, max(peak, _memory(proxy))
    if length != LARGE_BYTES:
        raise BenchmarkFailed(f"{proxy.origin} gave {length:,} bytes in the place of {LARGE_BYTES:,}")
    return got / _MIB / (time.monotonic() - began_s), peak


def hold_back(proxy: Proxy, seconds: float) -> int:
    """The memory behind a client that has stopped reading for so long."""
    connection, _, rest = connect(proxy.origin, LARGE_PATH)
    with connection:
        got = len(rest)
        while got < _MIB:
            got += len(connection.recv(65_536))
        time.sleep(seconds)
        return _memory(proxy)


def _memory(proxy: Proxy) -> int:
    return sum(process.memory_bytes() for process in proxy.processes)


def measure(name: str, proxy: Proxy, connections: int, slow_s: float) -> Held:
    fresh = _memory(proxy)
    with idle_connections(proxy.origin, connections) as count:
        idle = _memory(proxy)
    rate, peak = stream(proxy)
    return Held(name, fresh, count, idle, rate, peak, hold_back(proxy, slow_s))


def run(bench: Bench, only: Sequence[str], connections: int, slow_s: float) -> tuple[list[Held], list[str]]:
    """What was measured, and what was not and why."""
    found, failures = [], []
    os.sched_setaffinity(0, bench.loading)
    with GatewayScenario().contenders(bench) as starts:
        for name in only:
            try:
                with starts[name]() as contender:
                    if isinstance(contender, Proxy):
                        found.append(measure(name, contender, connections, slow_s))
            except (BenchmarkFailed, OSError) as error:
                failures.append(f"{name}: {error}")
    return found, failures


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="gateway_held", description="What proxies hold in memory")
    parser.add_argument("--only", default=",".join(CONTENDERS), help=f"with commas between: {','.join(CONTENDERS)}")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--slow-seconds", type=float, default=SLOW_S)
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < options.connections + FILES_BESIDE:
        parser.error(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = tuple(sorted(os.sched_getaffinity(0))[:2])
    runs = WORKING_FOLDER / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="held-", dir=runs))
    try:
        programs = read_programs()
        lines = describe_machine(folder, cores, programs.versions).lines()
        found, failures = run(Bench(folder, programs, cores), options.only.split(","), options.connections,
                              options.slow_seconds)  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [each.row() for each in found]
    said = [*lines, "", table(HEADER, rows, 1) if rows else "", *(f"- failed: {text}" for text in failures)]
    print("\n".join(said))  # noqa: T201 - this is a command, and that is its output
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

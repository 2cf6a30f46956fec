"""Requests at a fixed rate, whatever the other side does: `python -m benchmarks.open_loop URL --rate 5000`.

wrk waits for each answer before it asks again, and so asks a slow server less. Here request number k is due at k times
the interval after the start, and its latency runs from then to the last byte of its answer. A server that stops for
100 ms is charged with every request that became due meanwhile, and so is a request that found all connections busy:
nothing is left out of the percentiles because the load had to wait (what is called coordinated omission).

The clock is a timerfd, since event loops wake by the millisecond: its counter says how many requests have become due,
so that none is forgotten when this process itself comes late. What it adds to the latencies is told with them:
`late_p99_us`, from when a request was due to its bytes being written where a connection was free, and `cpu_percent`,
its own use of its core. Above some 60 % of that, or when it is late by a good part of what it measures, its figures
say more about itself; `python -m benchmarks.open_loop` on the upstream alone gives the floor.
"""

import argparse
import asyncio
import ctypes
import os
import sys
import time
from collections import deque
from collections.abc import Sequence

import uvloop

from benchmarks.load_figures import figures_line
from benchmarks.raw_http import address_of

ANSWER_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 16_384
WAITING_MAX = 100_000
"""Requests due that found no connection free; one more, and they count as not answered."""
RATE_MAX = 50_000

_CLOCK_MONOTONIC, _TFD_NONBLOCK = 1, os.O_NONBLOCK
_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("it_interval", _TimeSpec), ("it_value", _TimeSpec))


def start_timer(interval_s: float) -> int:
    """A file that is readable whenever an interval has passed, and says then how many have (timerfd_create(2))."""
    file = int(_libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK))
    each = _TimeSpec(int(interval_s), round(interval_s % 1 * 1e9))
    if file < 0 or _libc.timerfd_settime(file, 0, ctypes.byref(_TimerSpec(each, each)), None) < 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return file


class Loader:
    """Sends `request` at `rate` a second over connections that are open already."""

    def __init__(self, request: bytes, rate: float, seconds: float) -> None:
        self.request = request
        self.latencies_s: list[float] = []
        self.late_s: list[float] = []
        self.failures = dict.fromkeys(("read_errors", "timeouts", "bad_statuses"), 0)
        self.finished = asyncio.Event()
        self.found_none_free = 0
        self._interval_s = 1 / rate
        self._total = round(rate * seconds)
        self._due = self._sent = 0
        self._free: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._began_s = 0.0
        self._timer = -1

    def start(self) -> None:
        self._began_s = time.monotonic()
        self._timer = start_timer(self._interval_s)
        asyncio.get_running_loop().add_reader(self._timer, self._tick)

    def stop(self) -> None:
        """Whatever is not answered by now counts as a timeout."""
        if self._timer >= 0:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1
        self.failures["timeouts"] += self._due - len(self.latencies_s) - self.failed

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def _tick(self) -> None:
        try:
            passed = int.from_bytes(os.read(self._timer, 8), sys.byteorder)
        except BlockingIOError:
            return
        for _ in range(min(passed, self._total - self._due)):
            self._due += 1
            due_s = self._began_s + self._due * self._interval_s
            if self._free:
                self._free.popleft().ask(due_s)
                self.late_s.append(time.monotonic() - due_s)
            elif len(self._waiting) < WAITING_MAX:
                self.found_none_free += 1
                self._waiting.append(due_s)

    def answered(self, connection: "_Connection", due_s: float, *, well: bool) -> None:
        if well:
            self.latencies_s.append(time.monotonic() - due_s)
        else:
            self.failures["bad_statuses"] += 1
        self.free(connection)

    def free(self, connection: "_Connection") -> None:
        if self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._free.append(connection)
        if self._due == self._total and len(self.latencies_s) + self.failed >= self._total:
            self.finished.set()

    def lost(self, connection: "_Connection", *, was_asked: bool) -> None:
        """There is no excuse for a kept connection to end while this runs."""
        if connection in self._free:
            self._free.remove(connection)
        self.failures["read_errors"] += was_asked


class _Connection(asyncio.Protocol):
    """Answers with a Content-Length only: that is all that the upstream of these benchmarks gives."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._due_s: float | None = None
        self._buffer = b""
        self._transport: asyncio.Transport
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's protocol gets a Transport
        self._loader.free(self)

    def close(self) -> None:
        self._transport.abort()

    def ask(self, due_s: float) -> None:
        self._due_s = due_s
        self._transport.write(self._loader.request)

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > HEAD_BYTES_MAX:
                self._transport.abort()
            return
        length = _length(data[:end])
        if length is None:
            self._transport.abort()
        elif len(data) >= end + 4 + length and self._due_s is not None:
            due_s, self._due_s, self._buffer = self._due_s, None, b""
            self._loader.answered(self, due_s, well=data[9:12] == b"200" and len(data) == end + 4 + length)

    def connection_lost(self, _error: Exception | None) -> None:
        self._loader.lost(self, was_asked=self._due_s is not None)
        self.closed.set()


def _length(head: bytes) -> int | None:
    found = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
    return int(found) if found.isdigit() else None


async def run(url: str, rate: float, connections: int, seconds: float) -> str:
    """The line of figures of so many seconds."""
    host, port = address_of(url)
    path = "/" + url.split("/", 3)[3]
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    loader, loop = Loader(request, rate, seconds), asyncio.get_running_loop()
    opened = [(await loop.create_connection(lambda: _Connection(loader), host, port))[1] for _ in range(connections)]
    cpu_s = time.process_time()
    began_s = time.monotonic()
    loader.start()
    try:
        async with asyncio.timeout(seconds + ANSWER_TIMEOUT_S):
            await loader.finished.wait()
    except TimeoutError:
        pass  # `stop` counts what is missing
    took_s = time.monotonic() - began_s
    cpu_percent = round(100 * (time.process_time() - cpu_s) / took_s)
    loader.stop()
    for connection in opened:
        connection.close()
    await asyncio.gather(*(connection.closed.wait() for connection in opened))
    return figures_line(
        len(loader.latencies_s), took_s, latency_marks(loader.latencies_s), loader.failures,
        late_p99_us=round(percentile(sorted(loader.late_s), 0.99) * 1e6), cpu_percent=cpu_percent,
        found_none_free=loader.found_none_free,
    )  # fmt: skip


def latency_marks(latencies_s: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and longest."""
    ordered = sorted(latencies_s)
    return percentile(ordered, 0.5), percentile(ordered, 0.99), percentile(ordered, 1.0)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; 0 of nothing."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="open_loop", description="Requests at a fixed rate")
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=5_000.0, help=f"a second; at most {RATE_MAX}")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    if not 0 < options.rate <= RATE_MAX:
        parser.error(f"--rate is not between 0 and {RATE_MAX}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        line = runner.run(run(options.url, options.rate, options.connections, options.seconds))
    print(line, flush=True)  # noqa: T201 - this is a command, and that is its output
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The client of the registry's benchmarks, the same for both sides: it registers instances, and keeps many alive.

    python -P -m benchmarks.registry_client register --side etcd --url URL --first 0 --seconds 10
    python -P -m benchmarks.registry_client fill --side quorate --url URL --first 0 --count 100000
    python -P -m benchmarks.registry_client keep --side quorate --url URL --url URL --count 100000 --seconds 30

Instances are those of `registry_sides`, by number from `--first` on. *register* goes on for so many seconds, *fill* for
so many instances; each connection makes the calls of one registration after the other, and the next registration when
all of them were answered. *keep* sends the heartbeats of all instances within each interval, in batches spread evenly
over it and over the URLs; a batch is sent when it is due, whether or not those before it were answered, and its latency
runs from then. Whoever is not known to the registry any more is a failure.

Each prints the line that `load_figures` reads at its end. A "request" is a registration or a renewed instance, and
latencies are those of registrations and of batches.
"""

import argparse
import asyncio
import gc
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import uvloop

from benchmarks.load_figures import figures_line
from benchmarks.open_loop import latency_marks
from benchmarks.raw_http import Connection, HttpFailed, request_of
from benchmarks.registry_sides import SIDES, Call, RegistrySide, WrongAnswer

CONNECTIONS = 64
KEEPING_CONNECTIONS = 4
"""To each URL: as many batches of it may be on their way."""
TTL_S = 3_600
IDLE_S_MAX = 2.0
"""A connection that was not used for so long is opened anew: servers close idle ones, ours after 5 s."""
BATCH = 1_000
BEAT_INTERVAL_S = 10.0
SUCCESSES = (200, 201)
REASONS_SHOWN_MAX = 5
ANSWER_CHARS_SHOWN_MAX = 300
DRAIN_S_MAX = 60.0


async def call(connection: Connection, url: str, asked: Call) -> bytes:
    """The body of the answer. Raises HttpFailed when that is no success."""
    status, answer = await connection.send(request_of(url + asked.path, asked.body.encode(), asked.method))
    if status not in SUCCESSES:
        shown = answer[:ANSWER_CHARS_SHOWN_MAX]
        raise HttpFailed(f"{asked.method} {asked.path} was answered with {status}: {shown!r}")
    return answer


async def register(
    side: RegistrySide, url: str, numbers: Iterator[int], ttl_s: int, connections: int, seconds: float | None
) -> str:
    """The line of figures, once all `numbers` are registered or the time is over. Raises HttpFailed for the first call
    that is refused."""
    latencies_s: list[float] = []
    opened = [await Connection.connect(url) for _ in range(connections)]
    began_s = time.perf_counter()
    ends_s = float("inf") if seconds is None else began_s + seconds

    async def register_each(connection: Connection) -> None:
        while time.perf_counter() < ends_s and (number := next(numbers, None)) is not None:
            asked_s = time.perf_counter()
            for asked in side.registration(number, ttl_s):
                await call(connection, url, asked)
            latencies_s.append(time.perf_counter() - asked_s)

    try:
        await asyncio.gather(*(register_each(connection) for connection in opened))
    finally:
        for connection in opened:
            connection.close()
    return figures_line(len(latencies_s), time.perf_counter() - began_s, latency_marks(latencies_s), {})


@dataclass
class Keeper:
    """Heartbeats of `numbers`, for `seconds`. `latest_s`: how late the latest batch left."""

    side: RegistrySide
    urls: Sequence[str]
    numbers: Sequence[int]
    batch: int = BATCH
    interval_s: float = BEAT_INTERVAL_S
    latest_s: float = 0.0
    renewed: int = 0
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self, seconds: float) -> str:
        """The line of figures; where something failed, reasons go before it."""
        batches = self._batches()
        spacing_s = self.interval_s / len(batches)
        due: list[asyncio.Queue[tuple[float, bytes, int] | None]] = [asyncio.Queue() for _ in self.urls]
        began_s = time.perf_counter()
        async with asyncio.timeout(seconds + DRAIN_S_MAX), asyncio.TaskGroup() as tasks:
            for url, queue in zip(self.urls, due, strict=True):
                for _ in range(KEEPING_CONNECTIONS):
                    tasks.create_task(self._send_each(url, queue))
            for beat in range(max(1, round(seconds / spacing_s))):
                due_s = began_s + beat * spacing_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                at = beat % len(batches)
                due[at % len(due)].put_nowait((due_s, *batches[at]))
            # The last beat has its share of the time too, and what it costs is measured.
            await asyncio.sleep(max(0.0, began_s + seconds - time.perf_counter()))
            for queue in due:
                for _ in range(KEEPING_CONNECTIONS):
                    queue.put_nowait(None)
        line = figures_line(
            self.renewed, time.perf_counter() - began_s, latency_marks(self.latencies_s),
            {"bad_statuses": len(self.failures)}, late_us=round(self.latest_s * 1e6), batches=len(self.latencies_s),
            client_cpu_us=round(time.process_time() * 1e6),
        )  # fmt: skip
        return "\n".join([*self.failures[:REASONS_SHOWN_MAX], line])

    def _batches(self) -> list[tuple[bytes, int]]:
        """Requests with how many instances each renews. A batch goes to the same URL each time."""
        found = []
        batch = min(self.batch, self.side.batch_max)
        for at, first in enumerate(range(0, len(self.numbers), batch)):
            numbers = self.numbers[first : first + batch]
            asked, url = self.side.heartbeat(numbers), self.urls[at % len(self.urls)]
            found.append((request_of(url + asked.path, asked.body.encode(), asked.method), len(numbers)))
        return found

    async def _send_each(self, url: str, queue: "asyncio.Queue[tuple[float, bytes, int] | None]") -> None:
        connection, used_s = await Connection.connect(url), time.perf_counter()
        try:
            while (due := await queue.get()) is not None:
                due_s, request, count = due
                if time.perf_counter() - used_s > IDLE_S_MAX:
                    connection.close()
                    connection = await Connection.connect(url)
                self.latest_s = max(self.latest_s, time.perf_counter() - due_s)
                status, answer = await connection.send(request)
                used_s = time.perf_counter()
                if status not in SUCCESSES:
                    raise HttpFailed(f"a heartbeat was answered with {status}: {answer[:ANSWER_CHARS_SHOWN_MAX]!r}")
                self.side.renewed(answer, count)
                self.latencies_s.append(used_s - due_s)
                self.renewed += count
        except (HttpFailed, WrongAnswer) as error:
            self.failures.append(str(error))
        finally:
            connection.close()


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    side, numbers = SIDES[given.side], range(given.first, given.first + (given.count or 0))
    gc.disable()
    if given.command == "keep":
        work = Keeper(side, given.url, numbers, given.batch, given.interval).run(given.seconds)
    elif given.command == "fill":
        work = register(side, given.url[0], iter(numbers), given.ttl, given.connections, None)
    else:
        work = register(side, given.url[0], itertools.count(given.first), given.ttl, given.connections, given.seconds)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            said = runner.run(work)
    except (HttpFailed, OSError, TimeoutError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry_client")
    add = parser.add_argument
    add("command", choices=("register", "fill", "keep"))
    add("--side", choices=tuple(SIDES), required=True)
    add("--url", action="append", required=True, help="of a member; repeat it for `keep`")
    add("--first", type=int, default=0)
    add("--count", type=int)
    add("--seconds", type=float, default=10.0)
    add("--ttl", type=int, default=TTL_S)
    add("--connections", type=int, default=CONNECTIONS)
    add("--batch", type=int, default=BATCH)
    add("--interval", type=float, default=BEAT_INTERVAL_S)
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The client of the watch benchmark, the same for both sides: many streams in one process, and puts at a fixed rate.

    python -P -m benchmarks.watch_client --watch URL --watch URL … --put URL --watchers 1000 --rate 100 --seconds 30

Every watcher is a stream of its own (`POST /v3/watch`, one watch on the prefix), spread evenly over the URLs. When all
are created, one value after the other is put, each when it is due, whether or not those before it have been answered.
Every stream must bring every value exactly once and in the order of revisions; what is late by more than DRAIN_S_MAX
after the last put is missing. A latency runs from the moment in which the put was written to its socket to that in
which the event's bytes were read from the stream's.

A thousand watchers make a thousand messages of each event, and a client that parsed them all would be what is measured.
Messages of one member about one event are the same to the byte, so a message is parsed when it is first seen, and known
by its bytes after that. The garbage collector is off: a pause of ours would count as theirs.

At the end it prints the line that `load_figures` reads; a "request" of it is an event that has reached a watcher.
"""

import argparse
import asyncio
import base64
import gc
import json
import random
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.load_figures import figures_line
from benchmarks.raw_http import STATUS_OK, ChunkedBody, Connection, HttpFailed, address_of, parse_head, request_of

PREFIX = b"bench/watched/"
PREFIX_END = b"bench/watched0"
VALUE_BYTES = 256
KEYS = 100
SEQUENCE_DIGITS = 9
"""The first bytes of a value: which put it came from."""
SEED = 20_240_301

PUT_CONNECTIONS = 16
"""As many puts may be on their way; when all are, the next one is late, and how late is told."""
OPENING_AT_ONCE_MAX = 50
SETUP_S_MAX = 60.0
DRAIN_S_MAX = 300.0
"""Whoever cannot keep up has its figures too, and they say how far behind it fell."""
MESSAGES_KNOWN_MAX = 256
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
REASONS_SHOWN_MAX = 5

BUCKET_S = 0.0001
BUCKETS = 4_000_000
"""Latencies are counted in steps of 0.1 ms, up to longer than anybody waits."""


class WatchFailed(Exception):
    """A stream said what it must not; the message says what."""


class Latencies:
    """How many took how long: bounded, however many there are."""

    def __init__(self) -> None:
        self._counts = array("L", [0]) * BUCKETS
        self.longest_s = 0.0
        self.count = 0

    def add(self, latency_s: float) -> None:
        self.count += 1
        self._counts[min(int(latency_s / BUCKET_S), BUCKETS - 1)] += 1
        if latency_s > self.longest_s:
            self.longest_s = latency_s

    def percentile_s(self, percent: float) -> float:
        """The upper end of the step that so many percent do not exceed, and never above the longest; 0 when there is
        none."""
        wanted, seen = self.count * percent / 100, 0
        for number, count in enumerate(self._counts[:-1]):  # the last one holds all that took longer
            seen += count
            if seen >= wanted:
                return min((number + 1) * BUCKET_S, self.longest_s)
        return self.longest_s


@dataclass
class Tally:
    """What all streams together have seen. `sent_s` is when each put left, or was due while it has not. `puts_of` says
    which put made a revision and `revisions_of` the other way round: one to one, and for every watcher the same. So a
    stream that brought as many events as there were puts, by rising revisions, has brought them all."""

    values: Sequence[bytes]
    sent_s: list[float] = field(default_factory=list)
    puts_of: dict[int, int] = field(default_factory=dict)
    revisions_of: dict[int, int] = field(default_factory=dict)
    known: dict[bytes, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Whole messages with their events, as (revision, number of the put)."""
    latencies: Latencies = field(default_factory=Latencies)
    parsed: int = 0
    """Reads that were not known by their bytes."""
    last_s: float = 0.0
    broken: list[str] = field(default_factory=list)

    def learn(self, line: bytes) -> tuple[tuple[int, int], ...]:
        """The events of one message. Raises WatchFailed when it is none, or not about our puts."""
        result = json.loads(line).get("result")
        if result is None or result.get("canceled"):
            raise WatchFailed(f"the watch was ended: {line[:200]!r}")
        events = tuple(self._event(each) for each in result.get("events", ()))
        for revision, number in events:
            made = self.puts_of.setdefault(revision, number), self.revisions_of.setdefault(number, revision)
            if made != (number, revision):
                raise WatchFailed(
                    f"revision {revision} is told of as put {number}, and before it was otherwise: {made}"
                )
        return events

    def _event(self, event: Any) -> tuple[int, int]:
        kv = event["kv"]
        value = base64.b64decode(kv["value"])
        number = int(value[:SEQUENCE_DIGITS])
        if event.get("type", "PUT") != "PUT" or not 0 <= number < len(self.sent_s) or value != self.values[number]:
            raise WatchFailed(f"an event that nobody has put: {kv}")
        return int(kv["mod_revision"]), number


class WatchStream(asyncio.Protocol):
    """One watcher. `created` is done when its watch is in force, `count` is how many events have come."""

    def __init__(self, tally: Tally, request: bytes) -> None:
        self._tally = tally
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._has_head = False
        self._chunks = ChunkedBody()
        self._line = b""
        self._is_whole = False
        self._last_revision = 0
        self.count = 0
        self.created: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport is one that can write
        self._transport.write(self._request)  # type: ignore[union-attr]

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._break(f"a stream was closed: {error or 'by the other side'}")

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        try:
            if self._is_whole:
                events = self._tally.known.get(data)
                if events is not None:
                    self._take(events, now_s)
                    return
            self._read(data, now_s)
        except (WatchFailed, HttpFailed, ValueError, KeyError) as error:
            self._break(str(error))

    def _take(self, events: Sequence[tuple[int, int]], now_s: float) -> None:
        tally = self._tally
        for revision, number in events:
            if revision <= self._last_revision:
                raise WatchFailed(f"revision {revision} came after {self._last_revision}")
            self._last_revision = revision
            self.count += 1
            tally.latencies.add(now_s - tally.sent_s[number])
        tally.last_s = now_s

    def _read(self, data: bytes, now_s: float) -> None:
        """The way of bytes that are not known as a whole message, or come in the middle of one."""
        was_whole, received = self._is_whole, data
        self._tally.parsed += 1
        if not self._has_head:
            self._head += data
            head, separator, received = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            parsed = parse_head(head)
            if parsed.status != STATUS_OK or parsed.length is not None:
                raise WatchFailed(f"{parsed.status} answers a watch: {received[:200]!r}")
            self._has_head = True
        self._line += b"".join(self._chunks.feed(received))
        *lines, self._line = self._line.split(b"\n")
        if len(self._line) > MESSAGE_BYTES_MAX:
            raise WatchFailed(f"a message of over {MESSAGE_BYTES_MAX} bytes")
        events = tuple(event for line in lines for event in self._message(line))
        self._is_whole = self._chunks.is_between_chunks and not self._line and self.created.done()
        if was_whole and self._is_whole:
            if len(self._tally.known) >= MESSAGES_KNOWN_MAX:
                self._tally.known.clear()
            self._tally.known[data] = events
        self._take(events, now_s)

    def _message(self, line: bytes) -> tuple[tuple[int, int], ...]:
        if not self.created.done():
            if not json.loads(line).get("result", {}).get("created"):
                raise WatchFailed(f"a watch was not created: {line[:200]!r}")
            self.created.set_result(None)
            return ()
        return self._tally.learn(line)

    def _break(self, reason: str) -> None:
        self._tally.broken.append(reason)
        self.close()
        if not self.created.done():
            self.created.set_exception(WatchFailed(reason))


def values_of(count: int) -> list[bytes]:
    """One for each put, beginning with its number."""
    source = random.Random(SEED)
    return [
        f"{number:0{SEQUENCE_DIGITS}}".encode() + source.randbytes(VALUE_BYTES - SEQUENCE_DIGITS)
        for number in range(count)
    ]


async def open_streams(urls: Sequence[str], watchers: int, tally: Tally) -> list[WatchStream]:
    """All of them, their watches in force. Raises WatchFailed, and TimeoutError after SETUP_S_MAX."""
    key, end = (base64.b64encode(each).decode() for each in (PREFIX, PREFIX_END))
    body = json.dumps({"create_request": {"key": key, "range_end": end}}).encode()
    loop, places = asyncio.get_running_loop(), asyncio.Semaphore(OPENING_AT_ONCE_MAX)

    async def open_one(number: int) -> WatchStream:
        url = urls[number % len(urls)]
        async with places:
            _, stream = await loop.create_connection(
                lambda: WatchStream(tally, request_of(url, body)), *address_of(url)
            )
            await stream.created
        return stream

    async with asyncio.timeout(SETUP_S_MAX):
        return list(await asyncio.gather(*(open_one(number) for number in range(watchers))))


class Putter:
    """Puts each value when it is due, over a few kept connections. `latest_s`: how late the latest of them left."""

    def __init__(self, url: str, tally: Tally, rate: float) -> None:
        self._url = url
        self._tally = tally
        self._interval_s = 1 / rate
        self._due: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.latest_s = 0.0
        self.failures: list[str] = []

    async def run(self) -> None:
        """Until all are answered."""
        connections = [await Connection.connect(self._url) for _ in range(PUT_CONNECTIONS)]
        async with asyncio.TaskGroup() as tasks:
            for connection in connections:
                tasks.create_task(self._put_each(connection))
            begin_s = time.perf_counter()
            for number, request in enumerate(self._requests()):
                due_s = begin_s + number * self._interval_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                self._tally.sent_s.append(due_s)
                self._due.put_nowait((number, request))
            for _ in connections:
                self._due.put_nowait(None)

    def _requests(self) -> Iterator[bytes]:
        for number, value in enumerate(self._tally.values):
            key = PREFIX + b"%05d" % (number % KEYS)
            key_text, value_text = (base64.b64encode(each).decode() for each in (key, value))
            yield request_of(self._url, f'{{"key":"{key_text}","value":"{value_text}"}}'.encode())

    async def _put_each(self, connection: Connection) -> None:
        try:
            while (due := await self._due.get()) is not None:
                number, request = due
                now_s = time.perf_counter()
                self.latest_s = max(self.latest_s, now_s - self._tally.sent_s[number])
                self._tally.sent_s[number] = now_s
                status, answer = await connection.send(request)
                if status != STATUS_OK:
                    self.failures.append(f"a put was answered with {status}: {answer[:200]!r}")
        except HttpFailed as error:
            self.failures.append(str(error))
        finally:
            connection.close()


async def measure(
    watch_urls: Sequence[str], put_url: str, watchers: int, rate: float, seconds: float, drain_s: float = DRAIN_S_MAX
) -> str:
    """The line of figures; where something failed, reasons go before it."""
    values = values_of(max(1, round(rate * seconds)))
    tally = Tally(values)
    streams = await open_streams(watch_urls, watchers, tally)
    putter = Putter(put_url, tally, rate)
    await putter.run()
    deadline_s = time.perf_counter() + drain_s
    while any(stream.count < len(values) for stream in streams) and time.perf_counter() < deadline_s:
        if len(tally.broken) >= len(streams):
            break
        await asyncio.sleep(0.01)
    for stream in streams:
        stream.close()
    return _report(tally, putter, streams)


def _report(tally: Tally, putter: Putter, streams: Sequence[WatchStream]) -> str:
    missing = sum(len(tally.values) - stream.count for stream in streams)
    reasons = [*putter.failures, *tally.broken][:REASONS_SHOWN_MAX]
    latencies = tally.latencies
    line = figures_line(
        latencies.count,
        tally.last_s - tally.sent_s[0],
        (latencies.percentile_s(50), latencies.percentile_s(99), latencies.longest_s),
        {"read_errors": len(tally.broken), "write_errors": len(putter.failures), "timeouts": missing},
        puts=len(tally.values),
        client_cpu_us=round(time.process_time() * 1e6),
        parsed=tally.parsed,
        put_late_us=round(putter.latest_s * 1e6),
    )
    return "\n".join([*reasons, line])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch_client")
    parser.add_argument("--watch", action="append", required=True, help="URL of a watch endpoint; repeat for more")
    parser.add_argument("--put", required=True, help="URL of the put endpoint")
    parser.add_argument("--watchers", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="events a second")
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args(arguments)
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            said = runner.run(measure(given.watch, given.put, given.watchers, given.rate, given.seconds))
    except (WatchFailed, HttpFailed, OSError, TimeoutError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The client of the registry's fan-out: many watchers of one service in one process, and changes of its instances.

    python -P -m benchmarks.registry_watch_client --side quorate --url URL --url URL … --change-url URL
        --watchers 10000 --rate 1 --go FILE

Every watcher is a stream of its own, spread evenly over the URLs: Server-Sent Events of ours, `POST /v3/watch` of
etcd's. When all are in force it says so by the line IN_FORCE, and waits for FILE, which says for how many seconds to go
on. One instance after the other is then changed through `--change-url`, each when it is due. When FILE is removed it
closes its streams and ends. So what it costs the other side to open and to close them is no part of the figures.

A latency runs from the moment in which the change was written to its socket to that in which a watcher's bytes were
read that have it.

Ours may put several changes of one instance together for a watcher that is behind: the newest state is what counts. So
what every watcher must have seen at the end is the last change of each instance, and none may ever go back; changes
that a watcher saw only together with a later one are told as `together`, and have the latency of that one.

Messages of one member about one change are the same to the byte, so a message is parsed when it is first seen, and
known by its bytes after that. The garbage collector is off: a pause of ours would count as theirs.

Behind the last change it prints the line that `load_figures` reads; a "request" of it is a change that has reached a
watcher.
"""

import argparse
import asyncio
import base64
import gc
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load_figures import figures_line
from benchmarks.raw_http import STATUS_OK, ChunkedBody, Connection, HttpFailed, address_of, parse_head, request_of
from benchmarks.registry_client import SUCCESSES, TTL_S
from benchmarks.registry_sides import SIDES, SMALL, RegistrySide, id_of, service_of
from benchmarks.watch_client import Latencies

WATCHED = SMALL
"""The instances of the service that is watched."""
OPENING_AT_ONCE_MAX = 50
SETUP_S_MAX = 120.0
DRAIN_S_MAX = 120.0
POLL_S = 0.01
TOLD_S_MAX = 600.0
"""Nobody waits for longer to be told to go on, or to end."""
IN_FORCE = "in force"
MESSAGES_KNOWN_MAX = 256
MESSAGE_BYTES_MAX = 1024 * 1024
CHANGE_CONNECTIONS = 8
REASONS_SHOWN_MAX = 5
FILES_BESIDE = 256
"""Files that are open beside the streams."""

Seen = tuple[tuple[int, int], ...]
"""What one message says: (place of an instance in WATCHED, its change)."""


class FanOutFailed(Exception):
    """A stream said what it must not; the message says what."""


@dataclass
class Tally:
    """What all streams together have seen. `sent_s` is when each change left, by its number from 1 on."""

    side: RegistrySide
    places: dict[str, int] = field(default_factory=lambda: {id_of(number): at for at, number in enumerate(WATCHED)})
    sent_s: list[float] = field(default_factory=lambda: [0.0])
    known: dict[bytes, Seen] = field(default_factory=dict)
    latencies: Latencies = field(default_factory=Latencies)
    together: int = 0
    parsed: int = 0
    last_s: float = 0.0
    broken: list[str] = field(default_factory=list)

    def learn(self, line: bytes) -> tuple[bool, Seen]:
        """Whether the line brings its stream into force, and what it tells of. Raises FanOutFailed."""
        return self._of_etcd(line) if self.side.name == "etcd" else self._of_ours(line)

    def _of_etcd(self, line: bytes) -> tuple[bool, Seen]:
        result = json.loads(line).get("result")
        if result is None or result.get("canceled"):
            raise FanOutFailed(f"the watch was ended: {line[:200]!r}")
        found = []
        for event in result.get("events", ()):
            instance_id = base64.b64decode(event["kv"]["key"]).decode().rpartition("/")[2]
            found.append(self._seen(instance_id, json.loads(base64.b64decode(event["kv"]["value"]))))
        return bool(result.get("created")), tuple(found)

    def _of_ours(self, line: bytes) -> tuple[bool, Seen]:
        if not line.startswith(b"data: "):
            return False, ()  # the event's name and id, a comment, or the empty line at its end
        said = json.loads(line[6:])
        if "reason" in said:
            raise FanOutFailed(f"the stream was given up: {said['reason']}")
        if "services" in said:
            instances = said["services"].get(service_of(WATCHED[0]), ())
            return True, tuple(self._seen(each["id"], each) for each in instances)
        return False, tuple(self._seen(each["id"], each["instance"]) for each in said.get("changes", ()))

    def _seen(self, instance_id: str, instance: dict[str, Any] | None) -> tuple[int, int]:
        place = self.places.get(instance_id)
        if place is None or instance is None:
            raise FanOutFailed(f"told of {instance_id!r} as {instance}, which nobody has done")
        change = int(instance["metadata"]["change"])
        if change and (change >= len(self.sent_s) or (change - 1) % len(WATCHED) != place):
            raise FanOutFailed(f"told of change {change} of {instance_id!r}, which nobody has made")
        return place, change


class FanOutStream(asyncio.Protocol):
    """One watcher. `in_force` is done when changes come to it from then on; `seen` is the last change of each
    instance."""

    def __init__(self, tally: Tally, request: bytes) -> None:
        self._tally = tally
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._has_head = False
        self._chunks = ChunkedBody()
        self._line = b""
        self._is_whole = False
        self.seen = [0] * len(WATCHED)
        self.in_force: asyncio.Future[None] = asyncio.get_running_loop().create_future()

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
            if self._is_whole and (seen := self._tally.known.get(data)) is not None:
                self._take(seen, now_s)
            else:
                self._read(data, now_s)
        except (FanOutFailed, HttpFailed, ValueError, KeyError, TypeError) as error:
            self._break(str(error))

    def _take(self, seen: Seen, now_s: float) -> None:
        tally = self._tally
        for place, change in seen:
            former = self.seen[place]
            if change < former:
                raise FanOutFailed(f"an instance went back from change {former} to {change}")
            self.seen[place] = change
            # NB: the first change of the instance at `place` is number place + 1, and then every len(WATCHED)th.
            missed = range(former + len(WATCHED) if former else place + 1, change + 1, len(WATCHED))
            for number in missed:
                tally.latencies.add(now_s - tally.sent_s[number])
            tally.together += max(0, len(missed) - 1)
        if seen:
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
                raise FanOutFailed(f"{parsed.status} answers a watch: {received[:200]!r}")
            self._has_head = True
        self._line += b"".join(self._chunks.feed(received))
        *lines, self._line = self._line.split(b"\n")
        if len(self._line) > MESSAGE_BYTES_MAX:
            raise FanOutFailed(f"a message of over {MESSAGE_BYTES_MAX} bytes")
        seen = tuple(each for line in lines for each in self._message(line))
        self._is_whole = self._chunks.is_between_chunks and not self._line and self.in_force.done()
        if was_whole and self._is_whole:
            if len(self._tally.known) >= MESSAGES_KNOWN_MAX:
                self._tally.known.clear()
            self._tally.known[data] = seen
        self._take(seen, now_s)

    def _message(self, line: bytes) -> Seen:
        begins, seen = self._tally.learn(line)
        if begins and not self.in_force.done():
            self.in_force.set_result(None)
        return seen

    def _break(self, reason: str) -> None:
        self._tally.broken.append(reason)
        self.close()
        if not self.in_force.done():
            self.in_force.set_exception(FanOutFailed(reason))


async def open_streams(tally: Tally, urls: Sequence[str], watchers: int) -> list[FanOutStream]:
    """All of them, in force. Raises FanOutFailed, and TimeoutError after SETUP_S_MAX."""
    asked = tally.side.watching(service_of(WATCHED[0]))
    requests = [request_of(url + asked.path, asked.body.encode(), asked.method) for url in urls]
    room, loop = asyncio.Semaphore(OPENING_AT_ONCE_MAX), asyncio.get_running_loop()

    async def open_one(number: int) -> FanOutStream:
        at = number % len(urls)
        async with room:
            _, stream = await loop.create_connection(lambda: FanOutStream(tally, requests[at]), *address_of(urls[at]))
            await stream.in_force
        return stream

    async with asyncio.timeout(SETUP_S_MAX):
        return list(await asyncio.gather(*(open_one(number) for number in range(watchers))))


class Changer:
    """Makes each change when it is due. `latest_s`: how late the latest of them left."""

    def __init__(self, tally: Tally, url: str, rate: float, changes: int) -> None:
        self._tally = tally
        self._url = url
        self._interval_s = 1 / rate
        self._changes = changes
        self._due: asyncio.Queue[int | None] = asyncio.Queue()
        self.latest_s = 0.0
        self.failures: list[str] = []

    async def run(self) -> None:
        """Until all are answered."""
        connections = [await Connection.connect(self._url) for _ in range(CHANGE_CONNECTIONS)]
        async with asyncio.TaskGroup() as tasks:
            for connection in connections:
                tasks.create_task(self._change_each(connection))
            began_s = time.perf_counter()
            for number in range(1, self._changes + 1):
                due_s = began_s + (number - 1) * self._interval_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                self._tally.sent_s.append(due_s)
                self._due.put_nowait(number)
            for _ in connections:
                self._due.put_nowait(None)

    async def _change_each(self, connection: Connection) -> None:
        side = self._tally.side
        try:
            while (number := await self._due.get()) is not None:
                asked = side.change(WATCHED[(number - 1) % len(WATCHED)], TTL_S, number)
                request = request_of(self._url + asked.path, asked.body.encode(), asked.method)
                now_s = time.perf_counter()
                self.latest_s = max(self.latest_s, now_s - self._tally.sent_s[number])
                self._tally.sent_s[number] = now_s
                status, answer = await connection.send(request)
                if status not in SUCCESSES:
                    self.failures.append(f"a change was answered with {status}: {answer[:200]!r}")
        except HttpFailed as error:
            self.failures.append(str(error))
        finally:
            connection.close()


def last_changes(changes: int) -> list[int]:
    """Of each instance, once all were made; 0 for one that was not changed."""
    return [max(range(at + 1, changes + 1, len(WATCHED)), default=0) for at in range(len(WATCHED))]


async def measure(
    side: RegistrySide, urls: Sequence[str], change_url: str, watchers: int, rate: float, seconds: float,
    drain_s: float = DRAIN_S_MAX,
) -> str:  # fmt: skip
    """The line of figures; where something failed, reasons go before it."""
    tally = Tally(side)
    streams = await open_streams(tally, urls, watchers)
    try:
        return await change_and_watch(tally, streams, change_url, rate, seconds, drain_s)
    finally:
        for stream in streams:
            stream.close()


async def measure_when_told(
    side: RegistrySide, urls: Sequence[str], change_url: str, watchers: int, rate: float, go: Path
) -> None:
    """The same, with the line on standard output as soon as it is known. `go`: see above."""
    tally = Tally(side)
    streams = await open_streams(tally, urls, watchers)
    try:
        print(IN_FORCE, flush=True)  # noqa: T201 - whoever started it reads that
        async with asyncio.timeout(TOLD_S_MAX):
            while (said := _read(go)) is None:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(POLL_S)
        seconds = float(said)
        print(await change_and_watch(tally, streams, change_url, rate, seconds, DRAIN_S_MAX), flush=True)  # noqa: T201
        async with asyncio.timeout(TOLD_S_MAX):
            while _read(go) is not None:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
    finally:
        for stream in streams:
            stream.close()


def _read(go: Path) -> str | None:
    """None while there is no such file."""
    try:
        return go.read_text()
    except FileNotFoundError:
        return None


async def change_and_watch(
    tally: Tally, streams: Sequence[FanOutStream], change_url: str, rate: float, seconds: float, drain_s: float
) -> str:
    """Make all changes, and wait until everybody has seen the last ones; the line of figures."""
    changes = max(len(WATCHED), round(rate * seconds))
    wanted = last_changes(changes)
    changer = Changer(tally, change_url, rate, changes)
    await changer.run()
    deadline_s = time.perf_counter() + drain_s
    while any(stream.seen != wanted for stream in streams) and time.perf_counter() < deadline_s:
        if changer.failures or len(tally.broken) >= len(streams):
            break
        await asyncio.sleep(POLL_S)
    return _report(tally, changer, changes, behind=sum(stream.seen != wanted for stream in streams))


def _report(tally: Tally, changer: Changer, changes: int, behind: int) -> str:
    latencies = tally.latencies
    line = figures_line(
        latencies.count, max(tally.last_s - tally.sent_s[1], POLL_S),
        (latencies.percentile_s(50), latencies.percentile_s(99), latencies.longest_s),
        {"read_errors": len(tally.broken), "write_errors": len(changer.failures), "timeouts": behind},
        changes=changes, together=tally.together, parsed=tally.parsed,
        client_cpu_us=round(time.process_time() * 1e6), change_late_us=round(changer.latest_s * 1e6),
    )  # fmt: skip
    return "\n".join([*changer.failures[:REASONS_SHOWN_MAX], *tally.broken[:REASONS_SHOWN_MAX], line])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry_watch_client")
    parser.add_argument("--side", choices=tuple(SIDES), required=True)
    parser.add_argument("--url", action="append", required=True, help="of a member; repeat it for more")
    parser.add_argument("--change-url", required=True, help="of the member that takes the changes")
    parser.add_argument("--watchers", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="changes a second")
    parser.add_argument("--go", type=Path, required=True, help="file that says for how long, once it is there")
    given = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < given.watchers + FILES_BESIDE:
        parser.error(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    work = measure_when_told(SIDES[given.side], given.url, given.change_url, given.watchers, given.rate, given.go)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except (FanOutFailed, HttpFailed, OSError, TimeoutError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

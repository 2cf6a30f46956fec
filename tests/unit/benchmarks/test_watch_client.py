"""The watchers of the benchmark: what they count, and that nothing which goes wrong is counted as if it were right.

The server here is a few lines that keep no data: it tells every stream of every put, but for what a test has it do
wrong.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.load_figures import LoadFigures, parse_figures
from benchmarks.watch_client import Latencies, Tally, WatchFailed, WatchStream, measure, values_of

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
VALUES = values_of(4)


def chunk(line: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(line), line)


def created() -> bytes:
    return chunk(b'{"result":{"header":{"revision":"1"},"created":true}}\n')


def message(*events: tuple[int, bytes]) -> bytes:
    """One chunk that tells of values by their revisions."""
    said = [{"kv": {"key": "aw==", "mod_revision": str(n), "value": base64.b64encode(v).decode()}} for n, v in events]
    return chunk(json.dumps({"result": {"header": {"revision": "9"}, "events": said}}).encode() + b"\n")


def tally() -> Tally:
    return Tally(VALUES, sent_s=[0.0] * len(VALUES))


def stream(seen: Tally, *received: bytes) -> WatchStream:
    found = WatchStream(seen, b"")
    for data in (HEAD, created(), *received):
        found.data_received(data)
    return found


async def test_events_are_counted_however_their_bytes_come_in() -> None:
    whole = message((2, VALUES[0])) + message((3, VALUES[1]), (5, VALUES[2]))
    for step in (1, 5, 100, len(whole)):
        seen = tally()
        pieces = [whole[at : at + step] for at in range(0, len(whole), step)]
        assert stream(seen, *pieces).count == 3
        assert seen.broken == []
        assert seen.puts_of == {2: 0, 3: 1, 5: 2}
        assert seen.latencies.count == 3


async def test_what_another_stream_has_parsed_is_known_by_its_bytes() -> None:
    seen, told = tally(), message((2, VALUES[0]))
    first, second = stream(seen, told), stream(seen)
    parsed = seen.parsed
    second.data_received(told)
    assert (first.count, second.count) == (1, 1)
    assert seen.parsed == parsed
    assert seen.latencies.count == 2


async def test_known_bytes_in_the_middle_of_a_message_are_not_taken_for_one() -> None:
    told, other = message((2, VALUES[0])), message((3, VALUES[1]))
    seen = tally()
    stream(seen, told)
    cut = stream(seen, other[:7])
    cut.data_received(told)
    assert cut.count == 0
    assert len(seen.broken) == 1


@pytest.mark.parametrize(
    ("received", "said"),
    [
        ([message((2, VALUES[0])), message((2, VALUES[0]))], "revision 2 came after 2"),
        ([message((3, VALUES[1]), (2, VALUES[0]))], "revision 2 came after 3"),
        ([message((2, VALUES[0])), message((3, VALUES[0]))], "told of as put 0"),
        ([message((2, b"000000000 is not what was put"))], "nobody has put"),
        ([message((2, b"000000007" + bytes(247)))], "nobody has put"),
        ([chunk(b'{"result":{"canceled":true,"compact_revision":"7"}}\n')], "ended"),
        ([chunk(b'{"error":{"code":14}}\n')], "ended"),
        ([b"nonsense\r\n"], "no size of a chunk"),
    ],
    ids=["twice", "out of order", "put twice", "another value", "never put", "cancelled", "error", "no chunk"],
)
async def test_what_a_watcher_must_not_be_told_breaks_its_stream(received: list[bytes], said: str) -> None:
    seen = tally()
    stream(seen, *received)
    assert len(seen.broken) == 1
    assert said in seen.broken[0]


async def test_two_watchers_that_are_told_of_different_puts_at_one_revision_are_told_apart() -> None:
    seen = tally()
    stream(seen, message((2, VALUES[0])))
    stream(seen, message((2, VALUES[1])))
    assert len(seen.broken) == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", HEAD + message((2, VALUES[0]))])
async def test_a_watch_that_is_not_created_is_no_watcher(answer: bytes) -> None:
    seen = tally()
    found = WatchStream(seen, b"")
    found.data_received(answer)
    with pytest.raises(WatchFailed):
        await found.created


def test_percentiles_of_latencies_are_right_to_a_tenth_of_a_millisecond() -> None:
    latencies = Latencies()
    assert latencies.percentile_s(99) == 0.0
    for number in range(1, 1_001):
        latencies.add(number / 1000)
    assert latencies.percentile_s(50) == pytest.approx(0.5, abs=0.0002)
    assert latencies.percentile_s(99) == pytest.approx(0.99, abs=0.0002)
    assert latencies.percentile_s(100) == latencies.longest_s == 1.0
    latencies.add(1_000_000.0)
    assert latencies.percentile_s(100) == 1_000_000.0


Spoil = Callable[[int, int, bytes], bytes]
"""What a stream (by its number) is told of a put (by its number) instead of this message."""


@asynccontextmanager
async def server(spoil: Spoil = lambda _stream, _put, told: told, status: int = 200) -> AsyncIterator[str]:
    """The URL of a server whose revisions are one for each put. `status` answers puts."""
    streams: list[asyncio.StreamWriter] = []
    served: list[asyncio.Task[None] | None] = []
    puts = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        await serve(reader, writer)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal puts
        while head := await _read_head(reader):
            body = json.loads(await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0])))
            if b"/v3/watch" in head:
                writer.write(HEAD + created())
                streams.append(writer)
                continue
            told = message((puts + 2, base64.b64decode(body["value"])))
            for number, each in enumerate(streams):
                each.write(spoil(number, puts, told))
            puts += 1
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % status)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await asyncio.gather(*filter(None, served))  # all of its clients have hung up, or a test waits here for ever


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""  # the client has hung up


async def run_against(url: str, drain_s: float = 10.0) -> LoadFigures:
    """Twenty watchers, ten events."""
    return parse_figures(await measure([url + "/v3/watch"], url + "/v3/kv/put", 20, 500.0, 0.02, drain_s))


async def test_every_event_that_reaches_every_watcher_is_counted() -> None:
    async with server() as url:
        figures = await run_against(url)
    assert (figures.requests, figures.failed, figures.extra["puts"]) == (200, 0, 10)
    assert 0 < figures.p50_ms <= figures.p99_ms <= figures.max_ms


async def test_an_event_that_misses_one_watcher_is_a_failure() -> None:
    async with server(lambda stream, put, told: b"" if (stream, put) == (7, 3) else told) as url:
        figures = await run_against(url, drain_s=0.05)
    assert (figures.requests, figures.failed) == (199, 1)


async def test_an_event_that_comes_twice_to_one_watcher_is_a_failure() -> None:
    async with server(lambda stream, put, told: told * 2 if (stream, put) == (7, 9) else told) as url:
        figures = await run_against(url, drain_s=0.05)
    assert figures.failed >= 1


async def test_a_put_that_is_refused_is_a_failure() -> None:
    async with server(status=503) as url:
        assert (await run_against(url)).failed == 10

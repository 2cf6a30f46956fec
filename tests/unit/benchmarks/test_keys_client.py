"""How a store is filled with many keys, and how the stream of a snapshot is read."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.keys_client import (
    TRANSACTION_PUTS,
    VALUE_BYTES,
    fill,
    key_of,
    save_snapshot,
    transactions,
    value_of,
)
from benchmarks.load_figures import parse_figures
from benchmarks.raw_http import HttpFailed

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CONTENT = bytes(range(256)) * 40


def test_a_value_follows_from_key_and_generation_and_no_two_are_the_same() -> None:
    assert value_of(7, 1) == value_of(7, 1)
    assert len({value_of(number, generation) for number in range(50) for generation in (1, 2)}) == 100
    assert {len(value_of(number, 1)) for number in range(50)} == {VALUE_BYTES}


def test_every_key_is_in_one_transaction_with_its_value() -> None:
    keys = 2 * TRANSACTION_PUTS + 7
    found = list(transactions(keys, 3))
    assert [count for count, _ in found] == [TRANSACTION_PUTS, TRANSACTION_PUTS, 7]
    puts = [each["request_put"] for _, body in found for each in json.loads(body)["success"]]
    assert [(base64.b64decode(each["key"]), base64.b64decode(each["value"])) for each in puts] == [
        (key_of(number), value_of(number, 3)) for number in range(keys)
    ]


@asynccontextmanager
async def server(pieces: Sequence[bytes]) -> AsyncIterator[str]:
    """The URL of a server that answers each request with these pieces, and hangs up when the client does or none are
    left for a stream."""
    served: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                if CHUNKED in pieces:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has hung up
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v3/path"
        await asyncio.gather(*filter(None, served))


def stream_of(*parts: tuple[bytes, int], ends: bool = True) -> list[bytes]:
    """Of each message the bytes, and how many are still to come."""
    said = [
        json.dumps({"result": {"blob": base64.b64encode(blob).decode(), "remaining_bytes": str(left)}}).encode() + b"\n"
        for blob, left in parts
    ]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in said) + (b"0\r\n\r\n" if ends else b"")
    return [CHUNKED, *(chunks[at : at + 1000] for at in range(0, len(chunks), 1000))]


async def test_a_snapshot_is_written_as_it_was_sent(tmp_path: Path) -> None:
    file, half = tmp_path / "saved", len(CONTENT) // 2
    async with server(stream_of((CONTENT[:half], half), (CONTENT[half:], 0))) as url:
        figures = parse_figures(await save_snapshot(url, file))
    assert file.read_bytes() == CONTENT
    assert (figures.requests, figures.extra["bytes"]) == (2, len(CONTENT))


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (stream_of((CONTENT, 0), ends=False), "broke off after 1 messages"),
        (stream_of((CONTENT, 5)), "5 bytes still to come"),
        (stream_of(), "still to come"),
        ([CHUNKED, b'1d\r\n{"error":{"message":"full"}}\n\r\n', b"0\r\n\r\n"], "was ended with.*full"),
        ([b"HTTP/1.1 501 No\r\nContent-Length: 2\r\n\r\n{}", CHUNKED], "501"),
    ],
    ids=["cut off", "short", "empty", "error", "refused"],
)
async def test_a_snapshot_that_does_not_end_well_is_no_snapshot(pieces: list[bytes], said: str, tmp_path: Path) -> None:
    async with server(pieces) as url:
        with pytest.raises(HttpFailed, match=said):
            await save_snapshot(url, tmp_path / "saved")


async def test_all_keys_are_counted_when_each_transaction_succeeds() -> None:
    body = b'{"succeeded":true}'
    async with server([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)]) as url:
        figures = parse_figures(await fill(url, 1_050, 1))
    assert (figures.requests, figures.failed) == (1_050, 0)


@pytest.mark.parametrize(("status", "body"), [(200, b"{}"), (429, b'{"error":"etcdserver: too many requests"}')])
async def test_a_transaction_that_does_not_succeed_ends_the_filling(status: int, body: bytes) -> None:
    async with server([b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)]) as url:
        with pytest.raises(HttpFailed, match=str(status)):
            await fill(url, 1_000, 1)

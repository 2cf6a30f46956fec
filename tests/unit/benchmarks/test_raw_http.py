"""The HTTP of our load generators, against bytes and against a server that sends what it is told to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from benchmarks.raw_http import ChunkedBody, Connection, Head, HttpFailed, parse_head, request_of

CHUNKED = b"5\r\nhello\r\n1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"


def test_chunks_come_out_whole_however_their_bytes_come_in() -> None:
    for step in (1, 2, 3, 7, len(CHUNKED)):
        body = ChunkedBody()
        found = [chunk for at in range(0, len(CHUNKED), step) for chunk in body.feed(CHUNKED[at : at + step])]
        assert found == [b"hello", b"x" * 26]
        assert body.has_ended


def test_a_body_is_between_chunks_only_when_all_bytes_were_whole_chunks() -> None:
    body = ChunkedBody()
    assert body.is_between_chunks
    assert body.feed(b"5\r\nhel") == []
    assert not body.is_between_chunks
    assert body.feed(b"lo\r\n") == [b"hello"]
    assert body.is_between_chunks


@pytest.mark.parametrize(("data", "said"), [(b"zz\r\n", "no size"), (b"2\r\nhello\r\n", "longer than it says")])
def test_what_is_no_chunk_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(HttpFailed, match=said):
        ChunkedBody().feed(data)


def test_a_head_says_its_status_and_how_long_the_body_is() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 12") == Head(200, 12)
    assert parse_head(b"HTTP/1.1 503 No\r\ntransfer-encoding: Chunked") == Head(503, None)


@pytest.mark.parametrize(
    "head", [b"SSH-2.0", b"HTTP/1.1 abc", b"HTTP/1.1 200 OK\r\nContent-Length: -1", b"HTTP/1.1 200 OK"]
)
def test_what_is_no_head_is_refused(head: bytes) -> None:
    with pytest.raises(HttpFailed):
        parse_head(head)


@asynccontextmanager
async def server(answers: Sequence[Sequence[bytes]]) -> AsyncIterator[str]:
    """The URL of a server that gives the next of `answers` to each request, piece by piece, and then hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for pieces in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            assert await reader.readexactly(length) == b"{}"
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v3/kv/put"


async def test_a_connection_is_kept_for_one_request_after_the_other() -> None:
    answers = [
        [b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 5\r\n\r\nhel", b"lo"],
        [b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNKED[:9], CHUNKED[9:]],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
    ]
    async with server(answers) as url:
        connection = await Connection.connect(url)
        assert await connection.send(request_of(url, b"{}")) == (200, b"hello")
        assert await connection.send(request_of(url, b"{}")) == (400, b"hello" + b"x" * 26)
        assert await connection.send(request_of(url, b"{}")) == (200, b"")
        connection.close()


async def test_a_connection_that_is_closed_in_the_middle_fails_whoever_waits_and_whoever_comes() -> None:
    async with server([[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"]]) as url:
        connection = await Connection.connect(url)
        with pytest.raises(HttpFailed, match="closed"):
            await connection.send(request_of(url, b"{}"))
        with pytest.raises(HttpFailed, match="closed"):
            await connection.send(request_of(url, b"{}"))


async def test_more_than_was_asked_for_ends_the_connection() -> None:
    async with server([[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n"]]) as url:
        connection = await Connection.connect(url)
        with pytest.raises(HttpFailed):
            await connection.send(request_of(url, b"{}"))


async def test_nobody_there_is_told_as_such() -> None:
    async with server([]) as url:
        pass
    with pytest.raises(HttpFailed, match=r"127\.0\.0\.1"):
        await Connection.connect(url)

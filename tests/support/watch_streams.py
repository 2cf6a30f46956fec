"""A client of `/v3/watch` that speaks while it listens: a chunk of the body a request, a line an answer."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 20.0
LINE_BYTES_MAX = 64 * 1024 * 1024


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def create(key: bytes, range_end: bytes = b"", **fields: Any) -> dict[str, Any]:
    return {"create_request": {"key": b64(key), **({"range_end": b64(range_end)} if range_end else {}), **fields}}


class WatchStream:
    """One open stream. Headers of answers are checked for what every answer has, and left out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lines = bytearray()
        self.revision = 0
        """Of the newest answer that has named one."""

    async def say(self, *requests: dict[str, Any] | bytes) -> None:
        for request in requests:
            data = request if isinstance(request, bytes) else json.dumps(request).encode()
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()

    def end_body(self) -> None:
        self._writer.write(b"0\r\n\r\n")

    async def line(self) -> dict[str, Any]:
        """The next line, as it is. Raises EOFError at the end of the answer."""
        async with asyncio.timeout(PATIENCE_S):
            while b"\n" not in self._lines:
                size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
                chunk = await self._reader.readexactly(size + 2)
                if size == 0:
                    raise EOFError
                self._lines += chunk[:-2]
        line, _, rest = bytes(self._lines).partition(b"\n")
        self._lines = bytearray(rest)
        found: dict[str, Any] = json.loads(line)
        return found

    async def result(self) -> dict[str, Any]:
        """The next answer, without its header."""
        line = await self.line()
        assert set(line) == {"result"}, line
        result: dict[str, Any] = line["result"]
        header = result.pop("header")
        assert {"cluster_id", "member_id", "raft_term"} <= set(header)
        self.revision = int(header.get("revision", 0)) or self.revision
        return result

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next `count` events of one watch, from as many answers as it takes."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += (await self.result())["events"]
        return found


@asynccontextmanager
async def watch_stream(url: str, *, pauses: bool = False) -> AsyncIterator[WatchStream]:
    """`pauses`: the client's buffers are so small that a stream soon waits for it."""
    parts = urlsplit(url)
    limit = 1024 if pauses else LINE_BYTES_MAX
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=limit)
    try:
        writer.write(b"POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        stream = WatchStream(reader, writer)
        yield stream
    finally:
        writer.close()


async def read_head(stream: WatchStream) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer, which come with its first line."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await stream._reader.readuntil(b"\r\n\r\n")).decode()
    status_line, *fields = head.strip().split("\r\n")
    headers = dict(field.lower().split(": ", 1) for field in fields)
    return int(status_line.split()[1]), headers

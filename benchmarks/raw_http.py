"""HTTP/1.1 from the client's side, with no more than load generators need, which must be cheap.

A connection carries one request at a time. An answer has a length, or is chunked; anything else is refused. Nothing is
read that was not asked for, and a head, a chunk or an answer over its limit ends the connection.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024
STATUS_OK = 200


class HttpFailed(Exception):
    """The connection broke, or what came is no answer; the message says which."""


@dataclass(frozen=True)
class Head:
    """Of an answer. `length` is None when the body is chunked."""

    status: int
    length: int | None


def request_of(url: str, body: bytes, method: str = "POST") -> bytes:
    """A request with a body of JSON, as it goes out."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise HttpFailed(f"{url} names no host and port")
    return parts.hostname, parts.port


def parse_head(head: bytes) -> Head:
    """`head` is up to the empty line. Raises HttpFailed."""
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise HttpFailed(f"{first[:80]!r} is no status line")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        return Head(int(words[1]), None)
    length = fields.get(b"content-length", b"")
    if not length.isdigit():
        raise HttpFailed("an answer without a length that is not chunked")
    return Head(int(words[1]), int(length))


class ChunkedBody:
    """The chunks of a body, as its bytes come in."""

    def __init__(self) -> None:
        self._pending = b""
        self.has_ended = False

    @property
    def is_between_chunks(self) -> bool:
        """Whether all that came was whole chunks."""
        return not self._pending

    def feed(self, data: bytes) -> list[bytes]:
        """The chunks that are whole now. Raises HttpFailed."""
        data = self._pending + data if self._pending else data
        found: list[bytes] = []
        position = 0
        while not self.has_ended:
            size_ends = data.find(b"\r\n", position, position + HEAD_BYTES_MAX)
            if size_ends < 0:
                break
            size = _chunk_size(data[position:size_ends])
            ends = size_ends + 2 + size
            if len(data) < ends + 2:
                break
            if data[ends : ends + 2] != b"\r\n":
                raise HttpFailed("a chunk is longer than it says")
            self.has_ended = size == 0
            if size:
                found.append(data[size_ends + 2 : ends])
            position = ends + 2
        self._pending = data[position:]
        if len(self._pending) > BODY_BYTES_MAX:
            raise HttpFailed(f"a chunk of over {BODY_BYTES_MAX} bytes")
        return found


def _chunk_size(text: bytes) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise HttpFailed(f"{text[:20]!r} is no size of a chunk") from None


class Connection(asyncio.Protocol):
    """One kept connection, on which requests are sent one after the other. Make it with `connect`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = b""
        self._head: Head | None = None
        self._chunks = ChunkedBody()
        self._body: list[bytes] = []

    @classmethod
    async def connect(cls, url: str) -> "Connection":
        """To the host and port of `url`. Raises HttpFailed."""
        host, port = address_of(url)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        except OSError as error:
            raise HttpFailed(f"{host}:{port}: {error}") from error
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport is one that can write

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(HttpFailed(f"the connection was closed: {error or 'by the other side'}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """The status and body that answer it. Raises HttpFailed."""
        if self._transport is None or self._answer is not None:
            raise HttpFailed("the connection is closed, or has a request on its way")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def data_received(self, data: bytes) -> None:
        try:
            self._take(data)
        except HttpFailed as error:
            self._fail(error)
            self.close()

    def _take(self, data: bytes) -> None:
        self._received += data
        if self._head is None:
            head, separator, rest = self._received.partition(b"\r\n\r\n")
            if len(head) > HEAD_BYTES_MAX:
                raise HttpFailed(f"a head of over {HEAD_BYTES_MAX} bytes")
            if not separator:
                return
            self._head, self._received = parse_head(head), rest
        if self._head.length is None:
            self._body += self._chunks.feed(self._received)
            self._received = b""
            if self._chunks.has_ended:
                self._finish(self._head.status, self._body)
        elif self._head.length > BODY_BYTES_MAX:
            raise HttpFailed(f"an answer of {self._head.length} bytes")
        elif len(self._received) >= self._head.length:
            body, self._received = self._received[: self._head.length], self._received[self._head.length :]
            self._finish(self._head.status, [body])

    def _finish(self, status: int, body: Sequence[bytes]) -> None:
        answer = (status, b"".join(body))
        self._head, self._chunks, self._body = None, ChunkedBody(), []
        if self._received or self._answer is None:
            raise HttpFailed("more came than was asked for")
        if not self._answer.done():
            self._answer.set_result(answer)

    def _fail(self, error: HttpFailed) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

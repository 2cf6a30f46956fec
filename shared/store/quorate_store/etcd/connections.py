"""HTTP/1.1 connections to one endpoint: one request at a time on each, kept for the next, and bounded in number.

It does what calls to a store need and no more, because it is what their rate hangs on: answers are parsed by httptools
as they arrive, the body is handed on in the chunks in which it comes, and reading pauses while nobody takes them.

What matters to a write is told apart by two errors: `NotSent`, when surely not a byte of the request has left, and
`Broken`, when some may have. A kept connection that its server closes as we write to it is the latter, though it hardly
ever means that something was done; so connections are kept for less time than servers do.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import httptools
from quorate_core.settings import HostPort

CONNECT_TIMEOUT_S = 1.0
CONNECTIONS_MAX = 64
"""To one endpoint, for calls."""
STREAMS_MAX = 256
"""To one endpoint, beside those."""
PLACE_TIMEOUT_S = 1.0
"""For one of these to become free. It is worth trying another endpoint then: this one may stand still."""
IDLE_S_MAX = 30.0
"""A kept connection is used again for so long; etcd keeps them for ever, Quorate's nodes for 75 s."""
HEAD_BYTES_MAX = 64 * 1024
BUFFER_BYTES_MAX = 1024 * 1024
"""Of a body, arrived and not taken yet; then reading pauses."""


class NotSent(Exception):
    """Nothing of the request was sent."""


class Broken(Exception):
    """The request, or some of it, was sent, and is not answered, or not to its end."""


class Connection(asyncio.Protocol):
    """States: *idle* between answers; *busy* from `send` until the answer is whole; *lost*, which is for ever."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser: Any = httptools.HttpResponseParser(self)
        self._is_busy = False
        self._has_head = False
        self._is_whole = False
        self._is_lost = False
        self._is_kept = False
        """The server means to take another request after this one."""
        self._head_bytes = 0
        self._status = 0
        self._chunks: deque[bytes] = deque()
        self._chunks_bytes = 0
        self._is_paused = False
        self._wakeup: asyncio.Future[None] | None = None
        self.headers: dict[bytes, bytes] = {}
        """Of the answer; their names are in lower case."""

    @property
    def can_be_used(self) -> bool:
        return not (self._is_lost or self._is_busy or self._transport.is_closing())

    def send(self, request: bytes) -> None:
        """Raises NotSent when the connection is lost."""
        if not self.can_be_used:
            raise NotSent("the connection was closed")
        self._is_busy, self._has_head, self._is_whole = True, False, False
        self._head_bytes = 0
        self.headers = {}
        self._transport.write(request)

    async def status(self) -> int:
        """Of the answer, when its head has come. Raises Broken."""
        while not self._has_head:
            self._require_connected()
            await self._wait()
        return self._status

    async def chunk(self) -> bytes:
        """The next of the body; empty at its end, and the connection is idle again. Raises Broken."""
        while not self._chunks:
            if self._is_whole:
                self._is_busy = False
                return b""
            self._require_connected()
            await self._wait()
        chunk = self._chunks.popleft()
        self._chunks_bytes -= len(chunk)
        if self._is_paused and self._chunks_bytes < BUFFER_BYTES_MAX:
            self._is_paused = False
            self._transport.resume_reading()
        return chunk

    def close(self) -> None:
        """At once, whatever is under way."""
        self._is_lost = True
        self._transport.abort()
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # as asyncio promises for TCP and TLS

    def data_received(self, data: bytes) -> None:
        if not self._is_busy or self._is_whole:
            self.close()  # it answers what nobody has asked
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
        if not self._has_head and self._head_bytes > HEAD_BYTES_MAX:
            self.close()
        self._wake()

    def eof_received(self) -> None:
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._wake()

    def on_message_begin(self) -> None:
        if self._is_whole:
            self.close()  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # and not in a trailer
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._is_whole:
            return
        self._has_head = True
        self._status = self._parser.get_status_code()
        self._is_kept = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self._is_whole:
            return
        self._chunks.append(body)
        self._chunks_bytes += len(body)
        if self._chunks_bytes > BUFFER_BYTES_MAX and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._is_whole = True
        if not self._is_kept:
            self._is_lost = True

    def _require_connected(self) -> None:
        if self._is_lost:
            raise Broken("the connection was closed before the answer's end")

    async def _wait(self) -> None:
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class Connections:
    """To one endpoint. Calls take kept connections; a stream opens one, which ends with it."""

    def __init__(
        self, address: HostPort, headers: Mapping[str, str], tls: ssl.SSLContext | None, now_s: Callable[[], float]
    ) -> None:
        self._address = address
        self._tls = tls
        self._now_s = now_s
        fields = {"host": str(address), **headers, "content-type": "application/json", "accept-encoding": "identity"}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._places = {False: asyncio.Semaphore(CONNECTIONS_MAX), True: asyncio.Semaphore(STREAMS_MAX)}
        self._kept: deque[tuple[Connection, float]] = deque()
        """With the time since when; the newest last."""
        self._open: set[Connection] = set()

    @asynccontextmanager
    async def sent(self, path: str, body: bytes, *, is_stream: bool = False) -> AsyncIterator[Connection]:
        """A connection on which this request was sent just now. Raises NotSent."""
        head = f"POST {path} HTTP/1.1\r\n{self._fields}content-length: {len(body)}\r\n\r\n"
        places = self._places[is_stream]
        await self._acquire(places)
        try:
            connection = await (self._connect() if is_stream else self._take())
            try:
                connection.send(head.encode() + body)
                yield connection
            finally:
                if is_stream:
                    self._drop(connection)  # always: streams open their own, so those they left would pile up
                else:
                    self._give_back(connection)
        finally:
            places.release()

    def close(self) -> None:
        """All of them, at once."""
        for connection in tuple(self._open):
            self._drop(connection)
        self._kept.clear()

    async def _acquire(self, places: asyncio.Semaphore) -> None:
        if not places.locked():
            await places.acquire()  # at once
            return
        try:
            async with asyncio.timeout(PLACE_TIMEOUT_S):
                await places.acquire()
        except TimeoutError:
            raise NotSent(f"all connections have been busy for {PLACE_TIMEOUT_S:g} s") from None

    async def _take(self) -> Connection:
        """A kept connection, the one used last, or a new one."""
        while self._kept:
            connection, since_s = self._kept.pop()
            if self._is_good(connection, since_s):
                return connection
            self._drop(connection)
        return await self._connect()

    def _is_good(self, connection: Connection, since_s: float) -> bool:
        return connection.can_be_used and self._now_s() - since_s < IDLE_S_MAX

    async def _connect(self) -> Connection:
        host, port = self._address.host, self._address.port
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, host, port, ssl=self._tls
                )
        except TimeoutError:
            raise NotSent(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise NotSent(str(error) or type(error).__name__) from error
        self._open.add(connection)
        return connection

    def _give_back(self, connection: Connection) -> None:
        """Kept, if its answer was taken to its end, and it can be used again. Those that were not for too long go."""
        if connection.can_be_used:
            self._kept.append((connection, self._now_s()))
        else:
            self._drop(connection)
        while self._kept and not self._is_good(*self._kept[0]):
            self._drop(self._kept.popleft()[0])

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._open.discard(connection)

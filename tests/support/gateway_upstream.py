"""A small upstream whose answers a test writes, down to the byte, on a real socket."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

WAIT_S_MAX = 10.0
"""Bound of every wait in these tests: far above what any of them needs."""


@dataclass
class Received:
    """One request as the upstream got it. `fields` are in order, names in lower case."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    connection: int = 0
    """Which connection it came by, from 1."""

    def field(self, name: str) -> str | None:
        """The one value of this name. Fails when there are several."""
        values = [value for found, value in self.fields if found == name]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


@dataclass
class Exchange:
    """A handler's side of one request."""

    request: Received
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, body: bytes = b"hello", status: str = "200 OK", fields: bytes = b"") -> None:
        head = b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n" % (status.encode(), fields, len(body))
        await self.send(head + (b"" if self.request.method == "HEAD" else body))

    async def read_body(self) -> bytes:
        self.request.body = await read_body(self.reader, self.request)
        return self.request.body

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close at once, with a reset."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        """Until the gateway has closed the connection."""
        async with asyncio.timeout(WAIT_S_MAX):
            while await self.reader.read(65_536):
                pass


Handler = Callable[[Exchange], Awaitable[None]]


async def say_hello(exchange: Exchange) -> None:
    await exchange.read_body()
    await exchange.reply()


@dataclass
class Upstream:
    """Serves while it is entered. `requests` are those whose head has come; `connections` counts those accepted."""

    handler: Handler = say_hello
    requests: list[Received] = field(default_factory=list)
    keeps_requests: bool = True
    """Not for one that serves millions of them."""
    connections: int = 0
    open_connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    errors: list[BaseException] = field(default_factory=list)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the listener and every connection, as the end of a process does."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close_idle(self) -> None:
        """Close every connection, in order, and go on listening."""
        for writer in self._writers:
            writer.close()
        await self.until(lambda: self.open_connections == 0)

    async def __aenter__(self) -> "Upstream":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        assert self.errors == [], self.errors

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; looked at whenever a request comes or a connection opens or closes."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        self.connections += 1
        self.open_connections += 1
        number = self.connections
        self._writers.add(writer)
        self._changed.set()
        try:
            while not writer.is_closing():
                request = await read_head(reader, number)
                if self.keeps_requests:
                    self.requests.append(request)
                self._changed.set()
                await self.handler(Exchange(request, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            self._writers.discard(writer)
            self.open_connections -= 1
            self._changed.set()
            writer.close()
            if task is not None:
                self._tasks.discard(task)
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()


async def read_head(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head[:-4].split("\r\n")
    method, target, version = line.split(" ")
    assert version == "HTTP/1.1"
    pairs = [text.partition(":") for text in rest]
    return Received(method, target, [(name.lower(), value.strip(" \t")) for name, _, value in pairs], b"", connection)


async def read_body(reader: asyncio.StreamReader, request: Received) -> bytes:
    if request.field("transfer-encoding") == "chunked":
        pieces = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append(await reader.readexactly(size))
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
        return b"".join(pieces)
    return await reader.readexactly(int(request.field("content-length") or 0))


_HELD: dict[int, socket.socket] = {}
"""Bound and never listening, to the end of the process, so that nobody else gets their ports meanwhile."""


def unused_port() -> int:
    """A port that refuses connections."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    port = int(holder.getsockname()[1])
    _HELD[port] = holder
    return port


def give_back(port: int) -> None:
    """Let somebody listen on an `unused_port`."""
    _HELD.pop(port).close()


class SilentListener:
    """A port whose connections are never made: its queue is full, so that a SYN gets no answer."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = int(self._listener.getsockname()[1])
        self._filling: list[socket.socket] = []

    def __enter__(self) -> "SilentListener":
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", self.port))
            self._filling.append(client)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._filling:
            client.close()
        self._listener.close()

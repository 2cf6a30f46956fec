"""A server of HTTP/1.1 on a free port of loopback that answers as a test tells it to, byte for byte.

    async with scripted_store(answer) as server: ...

`answer` gets each request, and writes what it likes; when it returns, the connection goes on, unless it was closed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def answer(self, body: object, status: int = 200, headers: str = "") -> None:
        """JSON; `headers` are whole lines."""
        data = msgspec.json.encode(body)
        head = f"HTTP/1.1 {status} so\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
        self.writer.write(head.encode() + data)

    def begin_stream(self) -> None:
        self.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    def send(self, data: bytes) -> None:
        """A chunk of a stream that has begun."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_result(self, result: object) -> None:
        self.send(msgspec.json.encode({"result": result}) + b"\n")

    def hang_up(self) -> None:
        self.writer.close()

    async def until_client_has_gone(self) -> None:
        """To be awaited by one."""
        await self.reader.read()


Answer = Callable[[Request], Awaitable[None]]


@dataclass
class ScriptedStore:
    endpoint: str
    requests: list[Request] = field(default_factory=list)


@asynccontextmanager
async def scripted_store(answer: Answer) -> AsyncIterator[ScriptedStore]:
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            while not writer.is_closing():
                request = await _read(reader, writer)
                store.requests.append(request)
                await answer(request)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the server is closed
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    store = ScriptedStore(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield store
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(line.split()[1], headers, body, reader, writer)

"""Servers of loopback that behave as a test tells them, for checks and probes to meet."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import trustme
from quorate_core.tasks import TaskOwner

LOOP_TURNS = 4
"""As many as asyncio takes from accepting a connection to telling of it."""

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted_server(
    script: Script, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a server that runs `script` for each connection; what is still running at the end is cancelled."""
    tasks = TaskOwner("scripted server")
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(reader, writer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.start(serve(reader, writer), "connection")

    server = await asyncio.start_server(accept, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await _turns()  # what was accepted a moment ago is handed to `accept`
        await tasks.close()
        for writer in writers:
            writer.transport.abort()
        await _turns()  # transports close in the loop's next turn


async def _turns() -> None:
    for _ in range(LOOP_TURNS):
        await asyncio.sleep(0)


def answering(answer: bytes) -> Script:
    """Reads the head of a request, and sends just this."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return script


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes the connection, and never says a word."""
    await asyncio.Event().wait()


def tls_of(name: str, alpn: str = "") -> ssl.SSLContext:
    """A server's, with a certificate for `name` by an authority that nobody knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(name).configure_cert(context)
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def stalling(seconds: float) -> Script:
    """Reads the head of a request, and holds the event loop, and so whoever has asked on it, for so long."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        time.sleep(seconds)  # noqa: ASYNC251 - it is what this is for

    return script


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def full_listener() -> Iterator[int]:
    """A port whose queue of connections is full: another connection is neither taken nor refused."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for connection in (first, second):
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(address)
        yield int(address[1])

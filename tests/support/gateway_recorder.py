"""An upstream that records what reaches it: every byte, and the requests that llhttp reads in them.

llhttp is not the gateway's own parser, so that what it sees is what many a real service would see.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
from support.gateway_upstream import WAIT_S_MAX


@dataclass
class Reached:
    """One request as llhttp read it. `is_whole` once its body has ended."""

    method: str
    target: str
    is_whole: bool = False


@dataclass
class Recorder:
    """Serves while it is entered. Every whole request is answered with its own target."""

    requests: list[Reached] = field(default_factory=list)
    unreadable: list[bytes] = field(default_factory=list)
    """What llhttp refused: must stay empty."""
    port: int = 0
    _server: asyncio.Server | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[asyncio.Transport] = field(default_factory=set)
    """Open now."""

    async def __aenter__(self) -> "Recorder":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.abort()
        await self.until(lambda: not self.connections)

    def changed(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; looked at whenever something has come."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class _Connection(asyncio.Protocol):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._parser: Any = httptools.HttpRequestParser(self)
        self._target = b""
        self._current: Reached | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio gives a stream's protocol a Transport
        self._recorder.connections.add(self._transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._recorder.connections.discard(self._transport)
        self._recorder.changed()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._recorder.unreadable.append(data)
            self._transport.abort()
        self._recorder.changed()

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_headers_complete(self) -> None:
        self._current = Reached(self._parser.get_method().decode(), self._target.decode("latin-1"))
        self._recorder.requests.append(self._current)

    def on_message_complete(self) -> None:
        if self._current is None:
            return
        self._current.is_whole = True
        body = json.dumps({"target": self._current.target}).encode()
        self._current, self._target = None, b""
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

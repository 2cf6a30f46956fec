"""Serving an ASGI application on a socket that is already bound, with streams that end before the server does."""

import asyncio
import errno
import socket
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from quorate_core.direct_protocol import DirectHttpProtocol
from quorate_core.errors import SettingsError
from quorate_core.http_protocol import CONNECTIONS_MAX, BoundedHttpProtocol
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_core.websocket_protocol import AbortableWebSocket

BACKLOG = 2048
DRAIN_S = 5
WEBSOCKET_MESSAGE_BYTES_MAX = 3 * 1024 * 1024
"""As much as a request may have where requests are largest."""


def open_listener(address: HostPort, what: str) -> socket.socket:
    """A listening socket on `address`; port 0 takes a free one (read it by `bound_address`).

    Raises SettingsError naming `what` and the way out when the port is taken or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"{what}: {address} is in use; stop what listens there, or choose another port"
            ) from error
        raise SettingsError(f"{what}: cannot listen on {address}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def bound_address(listener: socket.socket) -> HostPort:
    """Where `listener` really listens."""
    host, port, *_ = listener.getsockname()
    return HostPort(host, port)


class HttpServer:
    """One application on one listener. `stop` ends streams first, then requests, then connections. A connection above
    `connections_max` is aborted."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        stopping: asyncio.Event,
        tasks: TaskOwner,
        protocol: type[BoundedHttpProtocol] = DirectHttpProtocol,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        bounded: Any = partial(protocol, connections_max=connections_max)  # uvicorn only calls it
        config = uvicorn.Config(
            app, loop="none", http=bounded, lifespan="on", log_config=None, access_log=False,
            ws=AbortableWebSocket, ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX, ws_per_message_deflate=False,
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=DRAIN_S, timeout_keep_alive=75,
        )  # fmt: skip
        self._server = _Server(config)
        self._listener = listener
        self._stopping = stopping
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once requests are answered. Raises what the application's start-up raised."""
        self._task = self._tasks.start(self._server.serve(sockets=[self._listener]), "http")
        started = self._tasks.start(self._server.started_event.wait(), "http-started")
        await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
        if not self._server.started_event.is_set():
            started.cancel()
            await self._task
            raise SettingsError("the HTTP server did not start; the log above says why")

    async def stop(self) -> None:
        """Drain: no new connection, streams ended, running requests finished within DRAIN_S seconds."""
        self._stopping.set()
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait({self._task})


class _Server(uvicorn.Server):
    """uvicorn's server without its own signal handling, and with an event for having started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.started_event = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self.started_event.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)  # NB: serve() itself would capture the process's signals

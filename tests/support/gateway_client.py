"""A data plane on a loopback socket, and a client that says exactly what a test tells it to."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httptools
from quorate_core.clock import Clock
from quorate_core.serving import bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_gateway.proxy.limits import DEFAULT_LIMITS, ConnectionLimits
from quorate_gateway.proxy.plane import DataPlane
from quorate_gateway.proxy.refusals import encode_welcome
from quorate_gateway.proxy.tls import Certificate
from support.gateway_snapshots import instance, snapshot
from support.gateway_upstream import WAIT_S_MAX, Upstream

TLS_NAME = "shop.example"
ROUTES = "  - {name: orders, match: {path_prefix: /orders}, service: order}\n"
IN_TURN = ROUTES.replace("service: order", "service: order, balance: {policy: round_robin}")
"""The same, with instances that are asked in turn and not by chance."""


@dataclass
class Answer:
    """A response as llhttp reads it: an oracle that is not the gateway's own parser."""

    status: int = 0
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False

    def field(self, name: str) -> str | None:
        values = [value for found, value in self.fields if found == name]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._left = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(WAIT_S_MAX):
            await self.writer.drain()

    async def get(self, path: str = "/orders", fields: str = "", method: str = "GET") -> Answer:
        """One request without a body, and its answer."""
        await self.send(f"{method} {path} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n".encode("latin-1"))
        return await self.answer(to_head_request=method == "HEAD")

    async def post(self, body: bytes, path: str = "/orders", fields: str = "") -> Answer:
        head = f"POST {path} HTTP/1.1\r\nHost: shop\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        await self.send(head.encode() + body)
        return await self.answer()

    async def answer(self, *, to_head_request: bool = False) -> Answer:
        """The next final response. Raises EOFError when the connection ends before it is complete."""
        while True:
            found = await self._response(to_head_request)
            if found.status >= 200 or found.status == 101:
                return found

    async def _response(self, to_head_request: bool) -> Answer:
        head = await self.until(b"\r\n\r\n")
        answer = Answer()
        parser: Any = httptools.HttpResponseParser(answer)
        parser.feed_data(head)
        answer.status = parser.get_status_code()
        answer.complete = answer.complete or to_head_request or answer.status in (204, 304) or answer.status < 200
        while not answer.complete:
            await self._feed_body(answer, parser)
        return answer

    async def _feed_body(self, answer: Answer, parser: Any) -> None:
        length = answer.field("content-length")
        if length is not None:
            answer.body = await self.exactly(int(length))
            answer.complete = True
        elif answer.field("transfer-encoding") is not None:
            line = await self.until(b"\r\n")
            parser.feed_data(line + await self.exactly(int(line, 16) + 2))
        else:
            answer.body = await self.rest()
            answer.complete = True

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(WAIT_S_MAX):
            while end not in self._left:
                await self._more()
        found, _, self._left = self._left.partition(end)
        return found + end

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(WAIT_S_MAX):
            while len(self._left) < count:
                await self._more()
        found, self._left = self._left[:count], self._left[count:]
        return found

    async def rest(self) -> bytes:
        """Everything until the gateway closes. A reset raises ConnectionResetError."""
        async with asyncio.timeout(WAIT_S_MAX):
            found = self._left + await self.reader.read()
        self._left = b""
        return found

    async def _more(self) -> None:
        data = await self.reader.read(65_536)
        if not data:
            raise EOFError(f"the gateway closed the connection after {self._left!r}")
        self._left += data

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


@dataclass
class Gateway:
    """A running data plane."""

    plane: DataPlane
    port: int
    _clients: list[Client] = field(default_factory=list)

    async def client(self, receive_bytes: int | None = None, tls: ssl.SSLContext | None = None) -> Client:
        """A new connection. `receive_bytes` makes the kernel hold little of what it does not read."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        except OSError:
            connection.close()
            raise
        name = None if tls is None else TLS_NAME
        client = Client(*await asyncio.open_connection(sock=connection, limit=1 << 20, ssl=tls, server_hostname=name))
        self._clients.append(client)
        return client

    def serve(self, routes: str, services: Mapping[str, Sequence[Upstream | int]]) -> None:
        """Swap to these routes and the ports of these upstreams."""
        ports = {name: [one if isinstance(one, int) else one.port for one in found] for name, found in services.items()}
        instances = {
            name: [instance(name, f"{name}-{number}", port) for number, port in enumerate(found, 1)]
            for name, found in ports.items()
        }
        self.plane.swap(snapshot(routes, instances))

    async def until(self, condition: Any) -> None:
        """Until `condition` holds; the loop runs on in between."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():  # noqa: ASYNC110 - what is waited for is plain state of the gateway
                await asyncio.sleep(0)

    def close(self) -> None:
        for client in self._clients:
            client.reset()


@asynccontextmanager
async def running_gateway(
    *upstreams: Upstream | int,
    routes: str = ROUTES,
    clock: Clock | None = None,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    trusted_proxies: Sequence[str] = (),
    certificate: Certificate | None = None,
) -> AsyncIterator[Gateway]:
    """A data plane that serves `routes`, with `upstreams` as the instances of service `order`. A failure of one of its
    tasks, or an exception in a callback of the loop, fails the test."""
    failures: list[BaseException] = []

    def on_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(context.get("exception") or RuntimeError(context["message"]))

    asyncio.get_running_loop().set_exception_handler(on_exception)
    async with TaskOwner("gateway", failures.append) as tasks:
        plane = DataPlane(tasks, encode_welcome("gateway", "http://127.0.0.1:8090"), clock, limits, trusted_proxies)
        listener = open_listener(HostPort("127.0.0.1", 0), "test gateway")
        gateway = Gateway(plane, bound_address(listener).port)
        gateway.serve(routes, {"order": upstreams})
        await plane.start(listener, certificate)
        try:
            yield gateway
        finally:
            gateway.close()
            await plane.drain(WAIT_S_MAX)
    assert failures == [], failures

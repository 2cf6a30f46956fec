"""Serving: a port in use is named, and stopping finishes what runs and ends what streams."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, add_raw_endpoint, create_app
from quorate_core.errors import SettingsError
from quorate_core.http_protocol import HEAD_BYTES_MAX, HEAD_FIELDS_MAX, BoundedHttpProtocol
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.sse import EventStream, encode_event
from quorate_core.tasks import TaskOwner
from starlette.types import ASGIApp, Receive, Scope, Send
from support import plain_http

ANY_PORT = HostPort("127.0.0.1", 0)


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    listener = open_listener(ANY_PORT, "the node's HTTP address")
    try:
        with pytest.raises(SettingsError, match=r"the node's HTTP address: 127.0.0.1:\d+ is in use"):
            open_listener(bound_address(listener), "the node's HTTP address")
    finally:
        listener.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot listen on"):
        open_listener(HostPort("192.0.2.1", 0), "x")


async def test_a_connection_too_many_is_cut_off_and_another_is_let_in_once_one_has_gone() -> None:
    listener = open_listener(ANY_PORT, "test")
    api = create_app(Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None)))
    host, port = listener.getsockname()[:2]
    async with asyncio.timeout(20), TaskOwner("test") as tasks:
        server = HttpServer(api, listener, asyncio.Event(), tasks, connections_max=2)
        await server.start()
        first, second, third = [await admitted(host, port) for _ in range(3)]
        assert first is not None
        assert second is not None
        assert third is None
        first.close()
        while (third := await admitted(host, port)) is None:
            pass
        second.close()
        third.close()
        await server.stop()


async def admitted(host: str, port: int) -> asyncio.StreamWriter | None:
    """A connection that was served; None when it was ended instead."""
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n")
        if await reader.read(12) == b"HTTP/1.1 200":
            return writer
    writer.close()
    return None


async def test_stopping_ends_streams_and_finishes_running_requests() -> None:
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None))
    api = create_app(surface)
    entered, release = asyncio.Event(), asyncio.Event()

    @api.get("/slow")
    async def slow() -> str:
        entered.set()
        await release.wait()
        return "done"

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        async def events() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        await EventStream(events(), surface.stopping)(scope, receive, send)

    api.mount("/stream", stream)
    listener = open_listener(ANY_PORT, "test")
    base_url = f"http://{bound_address(listener)}"
    async with asyncio.timeout(20), TaskOwner("test") as tasks, plain_http.async_client(base_url=base_url) as client:
        server = HttpServer(api, listener, surface.stopping, tasks)
        await server.start()
        async with client.stream("GET", "/stream/") as streaming:
            chunks = streaming.aiter_bytes()
            assert await anext(chunks) == b": keep-alive\n\n"
            running = tasks.start(client.get("/slow"), "slow")
            await entered.wait()
            stopped = tasks.start(server.stop(), "stop")
            assert [chunk async for chunk in chunks] == []
            release.set()
            assert (await running).json() == "done"
            await stopped
    listener.close()


class Impatient(BoundedHttpProtocol):
    """The same bounds, with timeouts that a test can wait for."""

    head_timeout_s = 0.05
    unread_body_timeout_s = 0.05


@asynccontextmanager
async def served(app: object, protocol: type[BoundedHttpProtocol] = BoundedHttpProtocol) -> AsyncIterator[HostPort]:
    listener = open_listener(ANY_PORT, "test")
    try:
        async with asyncio.timeout(20), TaskOwner("test") as tasks:
            server = HttpServer(app, listener, asyncio.Event(), tasks, protocol)  # type: ignore[arg-type]
            await server.start()
            try:
                yield bound_address(listener)
            finally:
                await server.stop()
    finally:
        listener.close()


async def answer_to(address: HostPort, *parts: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return await reader.read()
    finally:
        writer.close()


OPENING = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ((OPENING, b"x-a: ", *[b"a" * 8192] * (HEAD_BYTES_MAX // 8192 + 1)), b"431"),
        ((OPENING + b"x-a: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n",), b"431"),
        ((OPENING + b"x-a: 1\r\n" * HEAD_FIELDS_MAX + b"\r\n",), b"431"),
        ((b"this is no HTTP\r\n\r\n",), b"400"),
        ((OPENING,), b"408"),
        ((), b"408"),
    ],
    ids=["endless field", "large head at once", "too many fields", "no HTTP", "half a head", "nothing"],
)
async def test_a_head_is_bounded_in_bytes_fields_and_time(parts: tuple[bytes, ...], status: bytes) -> None:
    api = create_app(Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None)))
    async with served(api, Impatient if status == b"408" else BoundedHttpProtocol) as address:
        answer = await answer_to(address, *parts)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"application/problem+json" in answer


async def test_requests_one_after_the_other_each_have_a_head_of_their_own() -> None:
    api = create_app(Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None)))
    field = b"x-a: " + b"a" * (HEAD_BYTES_MAX // 2) + b"\r\n"
    last = OPENING + field + b"connection: close\r\n\r\n"
    async with served(api) as address:
        answer = await answer_to(address, OPENING + field + b"\r\n", OPENING + field + b"\r\n", last)
    assert answer.count(b"HTTP/1.1 200") == 3


def with_endpoints(surface: Surface) -> FastAPI:
    """Three ways to take a body: a raw endpoint, FastAPI's, and none at all."""
    api = create_app(surface)

    async def echo(body: bytes) -> bytes:
        return body

    @api.put("/parsed")
    async def parsed(body: dict[str, int]) -> dict[str, int]:
        return body

    @api.get("/stream")
    async def stream() -> EventStream:
        async def events() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        return EventStream(events(), surface.stopping)

    add_raw_endpoint(api, "/raw", echo, "Echo", {})
    return api


CHUNKED = b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
COUNTED = b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize("head", [CHUNKED + b"2\r\n{}\r\n", COUNTED + b"{}"], ids=["chunked", "counted"])
@pytest.mark.parametrize("opening", [b"POST /raw", b"PUT /parsed"])
async def test_a_body_that_never_ends_is_answered_in_time_and_its_connection_is_closed(
    opening: bytes, head: bytes
) -> None:
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None), body_timeout_s=0.05)
    async with served(with_endpoints(surface), Impatient) as address:
        answer = await answer_to(address, opening + head)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"a body must be complete within 0.05 s" in answer
    assert b'"retry": "safe"' in answer


@pytest.mark.parametrize("opening", [b"POST /raw", b"PUT /parsed"])
async def test_a_chunked_body_over_the_limit_is_refused_and_its_connection_is_closed(opening: bytes) -> None:
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None), body_bytes_max=8)
    async with served(with_endpoints(surface), Impatient) as address:
        answer = await answer_to(address, opening + CHUNKED + b'9\r\n{"a":  1}\r\n')
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"over the limit of 8 bytes" in answer


@pytest.mark.parametrize("opening", [b"GET /nowhere", b"DELETE /raw", b"GET /livez"])
async def test_an_answer_that_waits_for_no_body_does_not_wait_for_its_end_for_ever(opening: bytes) -> None:
    api = with_endpoints(Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None)))
    async with served(api, Impatient) as address:
        answer = await answer_to(address, opening + CHUNKED)
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_body_that_comes_after_the_answer_is_thrown_away_and_the_connection_goes_on() -> None:
    api = with_endpoints(Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None)))
    async with served(api) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"POST /nowhere" + CHUNKED)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404")
        writer.write(b"2\r\n{}\r\n0\r\n\r\nPOST /raw" + COUNTED + b"[1,2,3,4]")
        writer.write_eof()
        rest = await reader.readuntil(b"[1,2,3,4]")
        assert b"HTTP/1.1 200" in rest
        writer.close()


async def test_a_stream_ends_for_a_client_that_sends_a_body_without_an_end_nobody_wants() -> None:
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None), body_timeout_s=0.05)
    async with served(with_endpoints(surface), Impatient) as address:
        answer = await answer_to(address, b"GET /stream" + CHUNKED)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n0\r\n\r\n"), "the answer has an orderly end"


async def test_a_client_that_does_not_read_its_stream_is_cut_off() -> None:
    ended = asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield encode_event("delta", b"x" * 1_000_000, 1)
        finally:
            ended.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await EventStream(events(), asyncio.Event(), stall_s=0.05)(scope, receive, send)

    gone = asyncio.Event()

    class Watched(BoundedHttpProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            gone.set()

    async with served(app, Watched) as address:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (address.host, address.port))
            await loop.sock_sendall(client, OPENING + b"\r\n")
            await ended.wait()
            await gone.wait()  # the client has read nothing, and has not gone away either


STREAM = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
ECHO = b"POST /raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
ENDLESS_TRAILER = b"POST /raw" + CHUNKED + b"2\r\n{}\r\n0\r\nx: "


def mounted(application: ASGIApp) -> FastAPI:
    api = create_app(Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None)))
    api.mount("/", application)
    return api


@asynccontextmanager
async def with_its_endpoints(protocol: type[BoundedHttpProtocol] = BoundedHttpProtocol) -> AsyncIterator[HostPort]:
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None))
    async with served(with_endpoints(surface), protocol) as address:
        yield address


MUCH = 2**20
"""More than is read at once, and a trailer that begins in one read is only counted from the next one on."""


async def test_the_fields_of_a_trailer_are_bounded_as_those_of_a_head_are() -> None:
    trailer = b"1\r\n" + b"x: 1\r\n" * HEAD_FIELDS_MAX
    async with with_its_endpoints() as address:
        assert (await answer_to(address, ENDLESS_TRAILER + trailer)).startswith(b"HTTP/1.1 431")


async def test_a_trailer_without_an_end_ends_the_connection() -> None:
    async with with_its_endpoints() as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(ENDLESS_TRAILER + b"a" * MUCH)
        with contextlib.suppress(ConnectionError):  # the server does not wait for what is still on its way
            assert (await reader.read()).startswith(b"HTTP/1.1 431")
        writer.close()


async def test_what_a_trailer_says_is_no_header_of_the_request() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        seen.append(list(scope["headers"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    request = (
        b"POST /" + CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + b"2\r\n{}\r\n0\r\nx: 1\r\n\r\n"
    )
    async with served(mounted(application)) as address:
        assert (await answer_to(address, request)).startswith(b"HTTP/1.1 204")
    assert b"x" not in dict(seen[0])


async def test_empty_lines_between_requests_hold_no_connection() -> None:
    async with with_its_endpoints(Impatient) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(ECHO)
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
        writer.write(b"\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_many_requests_at_once_are_no_large_head() -> None:
    count = 4 * HEAD_BYTES_MAX // len(ECHO)
    last = ECHO.replace(b"Host", b"Connection: close\r\nHost")
    async with with_its_endpoints() as address:
        answer = await answer_to(address, ECHO * count, last)
    assert answer.count(b"HTTP/1.1 200") == count + 1


async def test_nonsense_behind_a_request_that_is_answered_does_not_take_its_answer_s_place() -> None:
    async with with_its_endpoints() as address:
        answer = await answer_to(address, ECHO + b"nonsense\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


async def test_nothing_is_written_into_a_stream_and_its_client_s_end_is_seen() -> None:
    """Whatever comes behind its request."""
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None))
    ended = asyncio.Event()
    api = create_app(surface)

    @api.get("/stream")
    async def stream() -> EventStream:
        async def events() -> AsyncIterator[bytes]:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            yield b""

        return EventStream(events(), surface.stopping)

    async with asyncio.timeout(20), served(api, Impatient) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(STREAM)
        head = await reader.readuntil(b": keep-alive\n\n")
        writer.write(STREAM + b"P")
        writer.write_eof()
        await ended.wait()
        assert head.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1" not in await reader.read()
        writer.close()


async def test_a_request_for_two_hosts_is_refused() -> None:
    async with with_its_endpoints() as address:
        answer = await answer_to(
            address, b"POST /raw HTTP/1.1\r\nHost: evil\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_client_that_reads_nothing_of_an_answer_is_cut_off() -> None:
    lost: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Hasty(BoundedHttpProtocol):
        """Looks after unsent answers soon."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.timeout_keep_alive = 0.05

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(self.transport.get_write_buffer_size())
            super().connection_lost(exc)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % 2**26)]})
        await send({"type": "http.response.body", "body": bytes(2**26)})

    async with served(mounted(application), Hasty) as address:
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall(OPENING + b"\r\n")
            await lost

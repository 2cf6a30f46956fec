"""Streams both ways: what is said while the other side still speaks, and how a stream ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from quorate_core.asgi import Protection, Surface, add_headed_endpoint, add_raw_stream, create_app
from quorate_core.errors import Conflict, QuorateError
from quorate_core.plain_requests import Headers
from quorate_core.raw_streams import BODY_BUFFER_BYTES, PostChannel, RawStream, StreamSession, as_exchange
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from starlette.responses import Response
from starlette.types import Message

ANY_PORT = HostPort("127.0.0.1", 0)
PATIENCE_S = 20.0
HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Seen:
    """What the handlers of the application below have come to."""

    entered: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


async def echo(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Says each chunk back at once, in upper case; "early" and "boom" are errors."""
    async for chunk in body:
        if chunk.strip() == b"early":
            raise Conflict("it cannot be")
        if chunk.strip() == b"boom":
            raise ZeroDivisionError("secret detail")
        yield chunk.strip().upper() + b"\n"


def application(seen: Seen | None = None) -> tuple[Any, Surface]:
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None))
    api = create_app(surface)

    async def wait(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        assert seen is not None
        try:
            yield b"begun\n"
            seen.entered.set()
            await asyncio.Event().wait()
        finally:
            seen.ended.set()

    async def mute(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        assert seen is not None
        seen.entered.set()
        await asyncio.Event().wait()
        yield b"never\n"

    async def headed(body: bytes, headers: Headers) -> bytes:
        return dict(headers).get(b"quorate-request-id", b"none")

    add_raw_stream(api, "/echo", echo, "Echo", {"responses": {"200": {"description": "the same"}}})
    add_raw_stream(api, "/wait", wait, "Wait", {})
    add_raw_stream(api, "/mute", mute, "Say nothing", {})
    add_headed_endpoint(api, "/headed", headed, "Say a header", {})
    return api, surface


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


@asynccontextmanager
async def served(seen: Seen | None = None) -> AsyncIterator[tuple[HttpServer, HostPort]]:
    api, surface = application(seen)
    listener = open_listener(ANY_PORT, "test")
    async with TaskOwner("test") as tasks:
        server = HttpServer(api, listener, surface.stopping, tasks)
        await server.start()
        yield server, bound_address(listener)
        await server.stop()


@asynccontextmanager
async def connected(address: HostPort, path: bytes) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection(address.host, address.port))
    try:
        client.writer.write(HEAD % path)
        yield client
    finally:
        client.writer.close()


async def test_each_chunk_is_answered_while_the_body_is_still_open() -> None:
    async with served() as (_, address), connected(address, b"/echo") as client:
        await client.chunk(b"one")
        assert b"200 OK" in await client.until(b"ONE\n\r\n")
        await client.chunk(b"two")
        assert await client.until(b"TWO\n\r\n") == b"4\r\nTWO\n\r\n"
        client.writer.write(b"0\r\n\r\n")
        assert await client.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        # The connection is as good as before.
        client.writer.write(HEAD % b"/echo" + b"5\r\nagain\r\n0\r\n\r\n")
        assert b"AGAIN\n" in await client.until(b"0\r\n\r\n")


async def test_an_error_before_the_first_chunk_is_an_answer_of_its_own() -> None:
    async with served() as (_, address), connected(address, b"/echo") as client:
        await client.chunk(b"early")
        head = await client.until(b"\r\n\r\n")
        assert b"409 Conflict" in head
        assert b"application/problem+json" in head
        assert b"x-request-id" in head


async def test_an_error_after_the_first_chunk_is_the_last_line() -> None:
    async with served() as (_, address), connected(address, b"/echo") as client:
        await client.chunk(b"one")
        await client.until(b"ONE\n\r\n")
        await client.chunk(b"early")
        line = (await client.until(b"0\r\n\r\n")).split(b"\r\n")[1]
        assert line.endswith(b"\n")
        assert json.loads(line)["detail"] == "it cannot be"


async def test_an_unexpected_error_shows_no_detail() -> None:
    async with served() as (_, address), connected(address, b"/echo") as client:
        await client.chunk(b"one")
        await client.until(b"ONE\n\r\n")
        await client.chunk(b"boom")
        answer = await client.until(b"0\r\n\r\n")
        assert b"internal error" in answer
        assert b"secret detail" not in answer


async def test_a_client_that_goes_away_cancels_the_handler() -> None:
    seen = Seen()
    async with served(seen) as (_, address), asyncio.timeout(PATIENCE_S):
        async with connected(address, b"/wait"):
            await seen.entered.wait()
        await seen.ended.wait()


async def test_the_surfaces_end_ends_a_stream_in_order() -> None:
    seen = Seen()
    async with served(seen) as (server, address), connected(address, b"/wait") as client:
        await client.until(b"begun\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            await server.stop()
        assert await client.rest() == b"0\r\n\r\n"
        assert seen.ended.is_set()


async def test_the_surfaces_end_is_an_error_where_nothing_was_said_yet() -> None:
    seen = Seen()
    async with served(seen) as (server, address), connected(address, b"/mute") as client:
        async with asyncio.timeout(PATIENCE_S):
            await seen.entered.wait()
            await server.stop()
        assert b"503 Service Unavailable" in await client.rest()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /wait HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n", b"403 Forbidden"),
        (b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405 Method Not Allowed"),
    ],
)
async def test_a_stream_is_protected_as_everything_is(head: bytes, status: bytes) -> None:
    async with served() as (_, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(head)
        async with asyncio.timeout(PATIENCE_S):
            assert status in await reader.readuntil(b"\r\n\r\n")
        writer.close()


class Exchange:
    """The two callables of ASGI, as a client that says what is in `incoming` and takes chunks when `takes` is set."""

    def __init__(self, *incoming: Message, takes: bool = True) -> None:
        self.incoming = list(incoming)
        self.received = 0
        self.sent: list[Message] = []
        self.takes = asyncio.Event()
        self.aborted = asyncio.Event()
        if takes:
            self.takes.set()

    async def receive(self) -> Message:
        if self.received == len(self.incoming):
            await asyncio.Event().wait()
        self.received += 1
        return self.incoming[self.received - 1]

    async def send(self, message: Message) -> None:
        if message.get("more_body", False):
            await self.takes.wait()
        self.sent.append(message)

    def scope(self, kind: str = "http", path: str = "/echo", **more: Any) -> dict[str, Any]:
        extensions = {"quorate.abort": {"abort": self.aborted.set}}
        headers = [(b"host", b"localhost")]
        return {"type": kind, "path": path, "method": "POST", "headers": headers, "extensions": extensions, **more}

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]


async def run(stream: RawStream, exchange: Exchange, stall_s: float = PATIENCE_S) -> None:
    channel = PostChannel(exchange.scope(), exchange.receive, exchange.send, [])

    def hide(error: Exception) -> QuorateError:
        raise error

    await StreamSession(stream, channel, asyncio.Event(), hide, stall_s).run()


def problem(error: QuorateError) -> Response:
    return Response(error.detail, error.kind.status)


def line(error: QuorateError) -> bytes:
    return error.detail.encode()


async def turns() -> None:
    """Let everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_no_more_of_a_body_is_received_than_its_buffer_holds_until_the_handler_reads() -> None:
    piece = b"x" * (BODY_BUFFER_BYTES // 4)
    exchange = Exchange(*[{"type": "http.request", "body": piece, "more_body": True}] * 100)
    reading = asyncio.Event()
    read: list[int] = []

    async def slow(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        await reading.wait()
        async for chunk in body:
            read.append(len(chunk))
            if len(read) == 100:
                break
        yield b"done\n"

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        group.create_task(run(RawStream(as_exchange(slow), problem, line), exchange))
        await turns()
        assert exchange.received == 5
        reading.set()
    assert sum(read) == 100 * len(piece)
    assert exchange.sent[1]["body"] == b"done\n"


async def test_no_chunk_is_made_before_the_one_before_it_has_left() -> None:
    made = 0

    async def eager(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        nonlocal made
        for made in range(1, 6):  # noqa: B007 - what it has come to is looked at from outside
            yield b"chunk\n"

    exchange = Exchange(takes=False)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        group.create_task(run(RawStream(as_exchange(eager), problem, line), exchange))
        await turns()
        assert made == 1
        exchange.takes.set()
    assert [message.get("body") for message in exchange.sent] == [None, *[b"chunk\n"] * 5, b""]


async def test_a_client_that_takes_nothing_is_hung_up_on_and_the_handler_cleans_up() -> None:
    ended = asyncio.Event()

    async def eager(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"chunk\n"
        finally:
            ended.set()

    exchange = Exchange(takes=False)
    async with asyncio.timeout(PATIENCE_S):
        await run(RawStream(as_exchange(eager), problem, line), exchange, stall_s=0.01)
    assert exchange.aborted.is_set()
    assert ended.is_set()


async def test_a_handler_that_is_silent_is_not_taken_for_a_client_that_takes_nothing() -> None:
    waits = asyncio.Event()

    async def silent(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"first\n"
        await waits.wait()

    exchange = Exchange()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        task = group.create_task(run(RawStream(as_exchange(silent), problem, line), exchange, stall_s=0.001))
        for _ in range(20):  # several times as long as a stall may be
            await asyncio.wait({task}, timeout=0.001)
        waits.set()
    assert not exchange.aborted.is_set()
    assert exchange.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_websocket_carries_a_line_a_message() -> None:
    api, _ = application()
    exchange = Exchange(
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "one"},
        {"type": "websocket.receive", "bytes": b"two"},
        {"type": "websocket.receive", "text": "early"},
    )
    async with asyncio.timeout(PATIENCE_S):
        await api(exchange.scope("websocket"), exchange.receive, exchange.send)
    assert exchange.sent[0]["type"] == "websocket.accept"
    assert exchange.texts[:2] == ["ONE", "TWO"]
    assert json.loads(exchange.texts[2])["detail"] == "it cannot be"
    assert exchange.sent[-1]["type"] == "websocket.close"


async def test_a_websockets_client_that_goes_away_cancels_the_handler() -> None:
    seen = Seen()
    api, _ = application(seen)
    exchange = Exchange({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006})
    async with asyncio.timeout(PATIENCE_S):
        await api(exchange.scope("websocket", "/wait"), exchange.receive, exchange.send)
    assert seen.ended.is_set() or not seen.entered.is_set()


@pytest.mark.parametrize("can_answer", [True, False])
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/echo", [(b"host", b"evil.example")], 403),
        ("/echo", [(b"host", b"localhost"), (b"origin", b"http://evil.example")], 403),
        ("/livez", [(b"host", b"localhost")], 404),
        ("/nothing", [(b"host", b"localhost")], 404),
    ],
)
async def test_a_websocket_from_a_stranger_or_to_nothing_is_refused(
    path: str, headers: list[tuple[bytes, bytes]], status: int, *, can_answer: bool
) -> None:
    api, _ = application()
    exchange = Exchange({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "one"})
    scope = exchange.scope("websocket", path)
    scope["headers"] = headers
    if can_answer:
        scope["extensions"]["websocket.http.response"] = {}
    await api(scope, exchange.receive, exchange.send)
    if can_answer:
        assert exchange.sent[0]["type"] == "websocket.http.response.start"
        assert exchange.sent[0]["status"] == status
    else:
        assert [message["type"] for message in exchange.sent] == ["websocket.close"]


async def test_an_endpoint_may_see_the_headers_on_either_way() -> None:
    async with served() as (_, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        plain = b"POST /headed HTTP/1.1\r\nHost: localhost\r\nQuorate-Request-Id: %b\r\nContent-Length: 2\r\n%b\r\n{}"
        for name, more in ((b"direct", b""), (b"usual", b"Expect: nothing\r\n")):
            writer.write(plain % (name, more))
            async with asyncio.timeout(PATIENCE_S):
                assert (await reader.readuntil(name)).endswith(name)
        writer.close()


async def test_streams_are_in_the_openapi_document() -> None:
    api, _ = application()
    assert api.openapi()["paths"]["/echo"]["post"]["summary"] == "Echo"

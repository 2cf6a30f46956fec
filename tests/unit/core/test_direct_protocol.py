"""Direct answers beside the usual way: two servers of one application, which must say the same to the same bytes."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.asgi import (
    DirectEndpoint,
    DirectGet,
    GetResponder,
    Protection,
    Surface,
    add_direct_gets,
    add_raw_endpoint,
    create_app,
)
from quorate_core.direct_protocol import DirectHttpProtocol
from quorate_core.errors import Conflict, NotFound
from quorate_core.http_protocol import BoundedHttpProtocol
from quorate_core.plain_requests import (
    HEADS_KEPT_MAX,
    PLAIN_HEAD_BYTES_MAX,
    Headers,
    PlainRequest,
    PlainRequests,
    parse_plain_head,
)
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from starlette.responses import Response

ANY_PORT = HostPort("127.0.0.1", 0)
PATIENCE_S = 20.0
BODY_BYTES_MAX = 4096
BODY_TIMEOUT_S = 0.1
"""A changed length may announce more than ever comes; a server waits for that, and not for long here."""
HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"


def request(body: bytes, more: bytes = b"") -> bytes:
    return HEAD % (len(body), more) + body


class Usual(BoundedHttpProtocol):
    unread_body_timeout_s = BODY_TIMEOUT_S


class Counting(DirectHttpProtocol):
    """Counts what it answers directly."""

    unread_body_timeout_s = BODY_TIMEOUT_S
    answered = 0

    def _begin(self, request: PlainRequest[DirectEndpoint | DirectGet], body: bytes) -> None:
        type(self).answered += 1
        super()._begin(request, body)


class Server:
    """One server, and what it says to bytes."""

    def __init__(self, address: HostPort, server: HttpServer) -> None:
        self._address = address
        self.http = server

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._address.host, self._address.port)

    async def say(self, *parts: bytes) -> bytes:
        """All that comes back until the server hangs up, or would wait for more from a client that has no more: each
        part after the answer to the one before. Ids and dates are taken out."""
        reader, writer = await self.open()
        try:
            answer = b""
            for part in parts:
                writer.write(part)
                answer += await self._until_quiet(reader, writer)
            return normal(answer)
        finally:
            writer.close()

    async def _until_quiet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """A request of our own is told apart by its path, and answered when all before it has been."""
        writer.write(b"GET /end-of-answer HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        async with asyncio.timeout(PATIENCE_S):
            while b"/end-of-answer is not served" not in answer:
                chunk = await reader.read(65_536)
                if not chunk:
                    break
                answer += chunk
        return answer


def normal(answer: bytes) -> bytes:
    return re.sub(rb"(date|x-request-id): [^\r]*\r\n", b"", re.sub(rb"under [0-9a-f]+", b"under ID", answer))


@dataclass
class Gate:
    """What `/wait` waits for, and whether it has begun to."""

    entered: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


def application(gate: Gate) -> tuple[Any, Surface]:
    surface = Surface(
        "test", Protection.for_address(ANY_PORT, ANY_PORT, None),
        body_bytes_max=BODY_BYTES_MAX, body_timeout_s=BODY_TIMEOUT_S,
    )  # fmt: skip
    api = create_app(surface)

    async def echo(body: bytes) -> bytes:
        return b'{"got":%d}' % len(body)

    async def refuse(body: bytes) -> bytes:
        raise Conflict("it is there already")

    async def fail(body: bytes) -> bytes:
        raise ZeroDivisionError

    async def wait(body: bytes) -> bytes:
        gate.entered.set()
        await gate.released.wait()
        return b'"waited"'

    endpoints: dict[str, Callable[[bytes], Awaitable[bytes]]] = {
        "/echo": echo, "/refuse": refuse, "/fail": fail, "/wait": wait,
    }  # fmt: skip
    for path, handler in endpoints.items():
        add_raw_endpoint(api, path, handler, "test", {})
    offer_gets(api)
    return api, surface


def offer_gets(api: FastAPI) -> None:
    """Routes of FastAPI's, and the short way to the same answers."""

    async def thing(name: str, how: str = "well") -> Response:
        if name == "missing":
            raise NotFound("there is no such thing")
        if name == "broken":
            raise ZeroDivisionError
        if name == "same":
            return Response(status_code=304, headers={"etag": '"7"'})
        return Response(f'{{"name":"{name}","how":"{how}"}}', headers={"etag": '"7"'}, media_type="application/json")

    api.get("/things/{name}")(thing)

    def resolve(path: str, query: str, headers: Headers) -> GetResponder | None:
        found = re.fullmatch(r"/things/([a-z]+)", path)
        if found is None or query not in ("", "how=badly"):
            return None
        return lambda: thing(found[1], query.removeprefix("how=") or "well")

    add_direct_gets(api, resolve)


@asynccontextmanager
async def servers(gate: Gate | None = None) -> AsyncIterator[tuple[Server, Server]]:
    """The usual way, and the direct one."""
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(TaskOwner("test"))
        made: list[Server] = []
        for protocol in (Usual, Counting):
            api, surface = application(gate or Gate())
            listener = open_listener(ANY_PORT, "test")
            server = HttpServer(api, listener, surface.stopping, tasks, protocol)
            await server.start()
            stack.push_async_callback(server.stop)
            made.append(Server(bound_address(listener), server))
        Counting.answered = 0
        yield made[0], made[1]


def get(target: str, more: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n%b\r\n" % (target.encode(), more)


PLAIN = {
    "an answer": (request(b'{"a":1}'),),
    "no body": (request(b""),),
    "three, one after the other": (request(b"1"), request(b"22"), request(b"1")),
    "an error of the family": (request(b"1").replace(b"/echo", b"/refuse"),),
    "a defect": (request(b"1").replace(b"/echo", b"/fail"),),
    "kept alive": (request(b"1", b"Connection: keep-alive\r\n"),),
    "spaces around a value": (request(b"1", b"X-Note: \t two  words \t\r\n"),),
    "a GET": (get("/things/red"),),
    "a GET with a query": (get("/things/red?how=badly"),),
    "a GET with an empty query": (get("/things/red?"),),
    "a GET of what is not there": (get("/things/missing"),),
    "a GET with a defect": (get("/things/broken"),),
    "a GET of what has not changed": (get("/things/same", b'If-None-Match: "7"\r\n'),),
    "GETs and POSTs in turn": (get("/things/red"), request(b"1"), get("/things/blue"), get("/things/red")),
}
UNUSUAL = {
    "pipelined": (request(b"1") + request(b"22") + request(b"333"),),
    "cut in the head": (request(b"1")[:20], request(b"1")[20:]),
    "to be closed": (request(b"1", b"Connection: close\r\n"),),
    "two lengths": (request(b"1", b"Content-Length: 1\r\n"),),
    "two different lengths": (request(b"1", b"Content-Length: 2\r\n"),),
    "a length and chunks": (request(b"1", b"Transfer-Encoding: chunked\r\n"),),
    "chunks": (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",),
    "no host": (request(b"1").replace(b"Host: localhost\r\n", b""),),
    "two hosts": (request(b"1", b"Host: localhost\r\n"),),
    "a foreign host": (request(b"1").replace(b"localhost", b"example.org"),),
    "a foreign origin": (request(b"1", b"Origin: http://example.org\r\n"),),
    "an expectation": (request(b"1", b"Expect: 100-continue\r\n"),),
    "another method": (request(b"").replace(b"POST", b"PUT"),),
    "another path": (request(b"1").replace(b"/echo", b"/nothing"),),
    "a query": (request(b"1").replace(b"/echo", b"/echo?a=b"),),
    "a signed length": (request(b"1").replace(b"Length: 1", b"Length: +1"),),
    "an old version": (request(b"1").replace(b"HTTP/1.1", b"HTTP/1.0"),),
    "a folded field": (request(b"1", b"X-Note: a\r\n b\r\n"),),
    "a bare line feed": (request(b"1", b"X-Note: a\n"),),
    "a space before the colon": (request(b"1", b"X-Note : a\r\n"),),
    "too large a body": (request(bytes(BODY_BYTES_MAX + 1)),),
    "a long head": (request(b"1", b"X-Note: " + b"a" * PLAIN_HEAD_BYTES_MAX + b"\r\n"),),
    "a GET that is cut": (get("/things/red")[:30], get("/things/red")[30:]),
    "a GET with a body": (get("/things/red", b"Content-Length: 2\r\n") + b"{}",),
    "a GET with a length of nothing": (get("/things/red", b"Content-Length: 0\r\n"),),
    "a GET in chunks": (get("/things/red", b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",),
    "a GET to be closed": (get("/things/red", b"Connection: close\r\n"),),
    "a GET of another query": (get("/things/red?how=well&much=more"),),
    "a GET with an escape": (get("/things/r%65d"),),
    "a GET with a fragment": (get("/things/red#part"),),
    "a GET of nobody's path": (get("/things/red/of"),),
    "a GET of a foreign host": (get("/things/red").replace(b"localhost", b"example.org"),),
    "GETs in one write": (get("/things/red") + get("/things/blue") + request(b"1"),),
    "a HEAD": (get("/things/red").replace(b"GET", b"HEAD"),),
    "a POST where only a GET is": (request(b"1").replace(b"/echo", b"/things/red"),),
    "a GET where only a POST is": (get("/echo"),),
    "a body that is no part of it": (request(b"1") + b"garbage\r\n\r\n",),
}


@pytest.mark.parametrize("name", PLAIN)
async def test_a_plain_request_is_answered_directly_and_as_on_the_usual_way(name: str) -> None:
    async with servers() as (usual, direct):
        assert await direct.say(*PLAIN[name]) == await usual.say(*PLAIN[name])
        reader, writer = await direct.open()
        before = Counting.answered
        writer.write(PLAIN[name][0])
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"\r\n\r\n")
        assert Counting.answered == before + 1
        writer.close()


@pytest.mark.parametrize("name", UNUSUAL)
async def test_whatever_is_not_plain_is_answered_as_on_the_usual_way(name: str) -> None:
    async with servers() as (usual, direct):
        assert await direct.say(*UNUSUAL[name]) == await usual.say(*UNUSUAL[name])
        assert not Counting.answered or name in ("pipelined", "GETs in one write")


async def test_after_a_head_that_was_read_the_usual_way_a_plain_request_is_direct_again() -> None:
    async with servers() as (_, direct):
        reader, writer = await direct.open()
        async with asyncio.timeout(PATIENCE_S):
            for part, answer in (
                (request(b"1")[:9], b""),
                (request(b"1")[9:], b'{"got":1}'),
                (request(b"22"), b'{"got":2}'),
            ):
                writer.write(part)
                if answer:
                    await reader.readuntil(answer)
                else:
                    await writer.drain()
        assert Counting.answered <= 2
        writer.close()


async def test_what_comes_behind_a_request_under_way_waits_and_is_answered_in_order() -> None:
    gate = Gate()
    async with servers(gate) as (_, direct):
        reader, writer = await direct.open()
        writer.write(request(b"1").replace(b"/echo", b"/wait"))
        async with asyncio.timeout(PATIENCE_S):
            await gate.entered.wait()
            writer.write(request(b"22") + request(b"333"))
            await writer.drain()
            gate.released.set()
            answer = await reader.readuntil(b'{"got":3}')
        assert re.findall(rb"\r\n\r\n([^H]*)", answer) == [b'"waited"', b'{"got":2}', b'{"got":3}']
        writer.close()


async def test_stopping_finishes_a_direct_request_and_closes_its_connection() -> None:
    gate = Gate()
    async with servers(gate) as (_, direct), TaskOwner("stop") as tasks:
        reader, writer = await direct.open()
        writer.write(request(b"1").replace(b"/echo", b"/wait"))
        async with asyncio.timeout(PATIENCE_S):
            await gate.entered.wait()
            stopping = tasks.start(direct.http.stop(), "stop")
            await asyncio.sleep(0)  # it has begun to stop
            gate.released.set()
            answer = await reader.read()
            await stopping
        assert answer.endswith(b'"waited"')
        writer.close()


MUTATED = st.lists(
    st.tuples(
        st.integers(0, 140), st.sampled_from([b"", b"\r", b"\n", b" ", b"\t", b":", b"\0", b"a", b"0", b"9", b","])
    ),
    min_size=1,
    max_size=3,
)


def test_bytes_that_are_exchanged_or_put_in_never_make_a_difference() -> None:
    with asyncio.Runner() as runner:
        pair = servers()
        usual, direct = runner.run(pair.__aenter__())

        async def compare(data: bytes) -> None:
            assert await direct.say(data) == await usual.say(data)

        @settings(max_examples=150, deadline=None)
        @given(MUTATED, st.booleans(), st.booleans())
        def check(changes: list[tuple[int, bytes]], inserts: bool, gets: bool) -> None:
            data = get("/things/red?how=badly") if gets else request(b'{"key":"YQ=="}')
            for at, byte in changes:
                data = data[:at] + byte + data[at + (0 if inserts else 1) :]
            runner.run(compare(data))

        try:
            check()
        finally:
            runner.run(pair.__aexit__(None, None, None))


def test_heads_that_are_kept_are_bounded() -> None:
    found: PlainRequests[str] = PlainRequests(lambda path, _headers: path)
    for number in range(HEADS_KEPT_MAX + 5):
        assert found.find(request(b"1", b"X-Number: %d\r\n" % number)) is not None
    assert len(found._known) == 5


def test_a_plain_head_says_what_is_in_it() -> None:
    data = request(b"", b"X-Note:  two  words \r\nX-None:\r\n")
    head = parse_plain_head(data)
    assert head is not None
    assert (head.path, head.body_bytes) == ("/echo", 0)
    assert head.headers[-2:] == [(b"x-note", b"two  words"), (b"x-none", b"")]

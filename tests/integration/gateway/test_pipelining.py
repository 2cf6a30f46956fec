"""Requests that a client sends without waiting for answers (RFC 9112, section 9.3.2): answered one by one, in order."""

import asyncio
import json
import socket
import struct

import pytest
from quorate_gateway.proxy.tunnel import accept_of
from support.gateway_attacks import HANDSHAKE, KEY
from support.gateway_client import Answer, Client, running_gateway
from support.gateway_upstream import Exchange, Upstream

ROUTES = "  - {name: orders, match: {path_prefix: /orders}, service: order, request_bytes_max: 50}\n"


async def echo_target(exchange: Exchange) -> None:
    body = await exchange.read_body()
    await exchange.reply(exchange.request.target.encode() + b" " + body)


def get(path: str, method: str = "GET", fields: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


def chunked(path: str, body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
    return head + b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(body), body)


STREAM = [
    get("/orders/1"),
    b"\r\n",  # that old clients send behind a body
    post("/orders/2", b"GET /orders/smuggled HTTP/1.1\r\n\r\n"),
    chunked("/orders/3", b"hello"),
    get("/orders/4", "HEAD"),
    get("/nowhere"),
    get("/orders/5", fields="Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
    get("/orders/6", fields="Connection: close\r\n"),
    get("/orders/never"),
]  # fmt: skip
EXPECTED = [
    (200, b"/orders/1 "),
    (200, b"/orders/2 GET /orders/smuggled HTTP/1.1\r\n\r\n"),
    (200, b"/orders/3 hello"),
    (200, b""),
    (404, b"no-route"),
    (501, b"upgrade-refused"),
    (200, b"/orders/6 "),
]


def shown(answer: Answer) -> tuple[int, bytes]:
    is_own = answer.field("content-type") == "application/problem+json"
    return answer.status, json.loads(answer.body)["rule"].encode() if is_own else answer.body


async def answers_of(client: Client) -> list[tuple[int, bytes]]:
    found = [shown(await client.answer(to_head_request=number == 3)) for number in range(len(EXPECTED))]
    assert await client.rest() == b""
    return found


async def test_a_stream_of_requests_means_the_same_wherever_it_is_cut() -> None:
    stream = b"".join(STREAM)
    async with Upstream(echo_target) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        for cut in range(len(stream)):
            client = await gateway.client()
            upstream.requests.clear()
            await client.send(stream[:cut])
            for _ in range(3):
                await asyncio.sleep(0)
            await client.send(stream[cut:])
            assert await answers_of(client) == EXPECTED
            targets = [request.target for request in upstream.requests]
            assert targets == [f"/orders/{number}" for number in (1, 2, 3, 4, 6)]


async def test_the_next_request_is_sent_when_the_one_before_it_has_been_answered() -> None:
    release = asyncio.Event()

    async def wait_at_first(exchange: Exchange) -> None:
        if len(upstream.requests) == 1:
            await release.wait()
        await echo_target(exchange)

    async with Upstream(wait_at_first) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        await client.send(get("/orders/1") + get("/nowhere") + get("/orders/2"))
        await upstream.until(lambda: len(upstream.requests) == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(upstream.requests) == 1
        release.set()
        assert [(await client.answer()).status for _ in range(3)] == [200, 404, 200]


async def test_a_client_that_leaves_takes_what_it_has_pipelined_with_it() -> None:
    async with Upstream(Exchange.until_closed) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        await client.send(get("/orders/1") + get("/orders/2") * 10)
        await upstream.until(lambda: len(upstream.requests) == 1)
        client.close()
        await upstream.until(lambda: upstream.open_connections == 0)
        await gateway.until(lambda: not gateway.plane.clients)
        assert len(upstream.requests) == 1
        assert gateway.plane.counters.routes["orders"].active == 0


@pytest.mark.parametrize("websocket", [False, True], ids=["upload", "tunnel"])
async def test_a_client_that_is_reset_while_it_is_not_read_ends_its_upstream_at_the_next_sweep(websocket: bool) -> None:
    """The event loop says nothing of a connection that it is told not to read."""
    release = asyncio.Event()

    async def read_nothing(exchange: Exchange) -> None:
        if websocket:
            await exchange.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept_of(KEY) + b"\r\n\r\n"
            )
        await release.wait()
        await exchange.until_closed()

    routes = "  - {match: {path_prefix: /orders}, service: order, request_bytes_max: 500000000, websocket: true}\n"
    async with Upstream(read_nothing) as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        await client.send(
            HANDSHAKE if websocket else b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 400000000\r\n\r\n"
        )
        if websocket:
            await client.until(b"\r\n\r\n")
        client.writer.write(bytes(64 * 1024 * 1024))
        left = -1
        while left != client.writer.transport.get_write_buffer_size():
            left = client.writer.transport.get_write_buffer_size()
            for _ in range(500):
                await asyncio.sleep(0)
        gateway.plane.sweep()
        assert [one.transport.is_closing() for one in gateway.plane.clients] == [False]  # it is not gone yet
        connection = client.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.reset()
        gateway.plane.sweep()
        await gateway.until(lambda: not gateway.plane.clients)
        release.set()
        await upstream.until(lambda: upstream.open_connections == 0)


@pytest.mark.parametrize("length", [60, 1_000_000])
async def test_behind_a_body_that_is_refused_unread_nothing_is_a_request(length: int) -> None:
    """Where it would end is known, but the gateway does not wait for it: what follows may be anything."""
    async with Upstream(echo_target) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        head = b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % length
        await client.send(head + get("/orders/smuggled"))
        answer = await client.answer()
        assert (answer.status, answer.field("connection")) == (413, "close")
        assert await client.rest() == b""
        assert upstream.requests == []


async def test_an_expectation_in_the_middle_is_met_when_its_turn_has_come() -> None:
    async with Upstream(echo_target) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        expecting = b"POST /orders/2 HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        await client.send(get("/orders/1") + expecting)
        assert shown(await client.answer()) == (200, b"/orders/1 ")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello" + get("/orders/3"))
        assert [shown(await client.answer()) for _ in range(2)] == [(200, b"/orders/2 hello"), (200, b"/orders/3 ")]

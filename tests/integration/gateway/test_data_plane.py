"""The data plane on real sockets: what goes through, unchanged where nobody asked for a change."""

import asyncio
import hashlib
import json

import pytest
from support.gateway_attacks import ATTACKS, Attack
from support.gateway_client import running_gateway
from support.gateway_upstream import Exchange, Upstream


async def echo(exchange: Exchange) -> None:
    body = await exchange.read_body()
    await exchange.reply(body)


async def test_a_request_and_its_answer_go_through_as_they_came() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(b"\x00body\xff", "418 I'm a teapot", b"X-Odd:  1\r\nset-cookie: a\r\nset-cookie: b\r\n")

    async with Upstream(answer) as upstream, running_gateway(upstream) as gateway:
        found = await (await gateway.client()).get("/orders/7?a=%20b", "Accept: */*\r\nX-Odd: 2\r\n")
        assert (found.status, found.body) == (418, b"\x00body\xff")
        assert found.fields == [("x-odd", "1"), ("set-cookie", "a"), ("set-cookie", "b"), ("content-length", "6")]
        [request] = upstream.requests
        assert (request.method, request.target) == ("GET", "/orders/7?a=%20b")
        assert request.fields[:3] == [("host", "shop"), ("accept", "*/*"), ("x-odd", "2")]


async def test_the_client_is_described_by_its_address_alone() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        claims = (
            "X-Forwarded-For: 8.8.8.8\r\nForwarded: for=8.8.8.8\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 8.8.8.8\r\n"
        )
        await (await gateway.client()).get(fields=claims)
        [request] = upstream.requests
        assert request.field("x-forwarded-for") == "127.0.0.1"
        assert request.field("x-forwarded-proto") == "http"
        assert request.field("x-forwarded-host") == "shop"
        assert request.field("forwarded") == 'for=127.0.0.1;host="shop";proto=http'
        assert request.field("x-real-ip") is None


async def test_request_id_and_trace_are_made_or_kept() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.get()
        await client.get()
        await client.get(fields=f"X-Request-Id: mine\r\ntraceparent: {trace}\r\n")
        first, second, third = upstream.requests
        assert (third.field("x-request-id"), third.field("traceparent")) == ("mine", trace)
        made = [first.field("x-request-id"), second.field("x-request-id")]
        assert len(set(made)) == 2
        assert all(one is not None and len(one) == 16 for one in made)
        traces = [(request.field("traceparent") or "").split("-") for request in (first, second)]
        assert [[len(part) for part in parts] for parts in traces] == [[2, 32, 16, 2]] * 2
        assert traces[0][1] != traces[1][1]


async def test_one_connection_each_way_serves_many_requests() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        for _ in range(20):
            assert (await client.get()).body == b"hello"
        assert upstream.connections == 1
        assert len(gateway.plane.clients) == 1


async def test_requests_take_turns_over_the_endpoints() -> None:
    async with Upstream() as one, Upstream() as two, running_gateway(one, two) as gateway:
        client = await gateway.client()
        for _ in range(10):
            await client.get()
        assert (len(one.requests), len(two.requests)) == (5, 5)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with Upstream(echo) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        posts = [
            b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            for body in (b"%d" % number * number for number in range(60))
        ]
        unrouted = b"GET /nowhere HTTP/1.1\r\nHost: shop\r\n\r\n"
        await client.send(b"".join([*posts[:30], unrouted, *posts[30:]]))
        bodies = [(await client.answer()).body for _ in range(61)]
        assert bodies[:30] + bodies[31:] == [b"%d" % number * number for number in range(60)]
        assert json.loads(bodies[30])["rule"] == "no-route"


async def test_a_thousand_pipelined_requests_that_the_gateway_answers_itself_do_not_fill_its_stack() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /nowhere HTTP/1.1\r\nHost: shop\r\n\r\n" * 2_000)
        assert [(await client.answer()).status for _ in range(2_000)] == [404] * 2_000


async def test_a_chunked_request_goes_through_without_extensions_and_trailers() -> None:
    async with Upstream(echo) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"5;a=b\r\nhel", b"lo\r", b"\n1\r\n!\r\n0\r\nX-T: 1\r\n", b"\r\n"):
            await client.send(piece)
        assert (await client.answer()).body == b"hello!"
        assert upstream.requests[0].field("content-length") is None
        assert (await client.get()).status == 200


async def test_a_chunked_answer_arrives_piece_by_piece() -> None:
    more = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        await exchange.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with Upstream(stream) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await client.until(b"\r\n\r\n")
        assert await client.until(b"one\r\n") == b"3\r\none\r\n"  # before the upstream has gone on
        more.set()
        assert await client.until(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        assert (await client.get()).body == b"onetwo"
        assert upstream.connections == 1


async def test_a_body_that_ends_with_the_connection_goes_through_whole() -> None:
    async def until_close(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nall ")
        await exchange.send(b"of it")
        exchange.close()

    async with Upstream(until_close) as upstream, running_gateway(upstream) as gateway:
        found = await (await gateway.client()).get()
        assert (found.body, found.field("connection")) == (b"all of it", "close")


async def test_head_has_the_length_of_the_body_that_it_does_not_have() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        found = await client.get(method="HEAD")
        assert (found.status, found.field("content-length"), found.body) == (200, "5", b"")
        assert (await client.get(method="HEAD", path="/nowhere")).status == 404
        assert (await client.get()).body == b"hello"
        assert upstream.connections == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body_end_with_their_head(status: str) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/1.1 {status}\r\nETag: x\r\n\r\n".encode())

    async with Upstream(answer) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        for _ in range(3):
            found = await client.get()
            assert (found.status, found.body, found.field("etag")) == (int(status[:3]), b"", "x")
        assert upstream.connections == 1


async def test_early_hints_go_through_and_a_100_of_the_upstream_does_not() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        await exchange.reply()

    async with Upstream(answer) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        assert await client.until(b"hello") == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


async def test_who_expects_100_continue_gets_it_once_there_is_an_upstream() -> None:
    async with Upstream(echo) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert (await client.answer()).body == b"hello"
        assert upstream.requests[0].field("expect") is None
        await client.send(b"POST /nowhere HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.answer()).status == 404


async def test_http_1_0_gets_bare_bodies_and_keeps_its_connection_only_when_it_asks() -> None:
    async def chunked(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")

    async with Upstream(chunked) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.0\r\n\r\n")
        assert await client.rest() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nonetwo"
        upstream.handler = echo
        client = await gateway.client()
        for _ in range(2):
            await client.send(b"GET /orders HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert await client.until(b"\r\n\r\n") == (
                b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n"
            )
        await client.send(b"GET /orders HTTP/1.0\r\n\r\n")
        assert (await client.rest()).endswith(b"connection: close\r\n\r\n")


async def test_connection_close_is_honoured_both_ways() -> None:
    async def close_after(exchange: Exchange) -> None:
        await exchange.reply(fields=b"Connection: close\r\n")
        exchange.close()

    async with Upstream(close_after) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        for _ in range(3):
            assert (await client.get()).body == b"hello"
        assert upstream.connections == 3
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        assert (await client.rest()).endswith(b"connection: close\r\n\r\nhello")


async def test_a_prefix_is_rewritten() -> None:
    routes = "  - {match: {path_prefix: /orders}, service: order, rewrite: {path_prefix: /v2/all}}\n"
    async with Upstream() as upstream, running_gateway(upstream, routes=routes) as gateway:
        await (await gateway.client()).get("/orders/7?a")
        assert upstream.requests[0].target == "/v2/all/7?a"


async def test_a_large_body_is_streamed_both_ways() -> None:
    size, piece = 48 * 1024 * 1024, bytes(range(256)) * 1_024
    seen = hashlib.sha256()

    async def digest_and_send(exchange: Exchange) -> None:
        left = int(exchange.request.field("content-length") or 0)
        while left:
            data = await exchange.reader.read(min(left, 1 << 20))
            seen.update(data)
            left -= len(data)
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            await exchange.send(piece)

    routes = "  - {match: {path_prefix: /orders}, service: order, request_bytes_max: 100000000}\n"
    async with Upstream(digest_and_send) as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            await client.send(piece)
        await client.until(b"\r\n\r\n")
        received, left = hashlib.sha256(), size
        while left:
            data = await client.exactly(min(left, 1 << 20))
            received.update(data)
            left -= len(data)
        expected = hashlib.sha256(piece * (size // len(piece))).hexdigest()
        assert seen.hexdigest() == received.hexdigest() == expected


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.what)
async def test_an_attack_is_answered_and_never_becomes_a_request(attack: Attack) -> None:
    """A request may have begun when a later chunk turns out to be bad; none may have reached the upstream whole."""
    completed: list[bytes] = []

    async def note(exchange: Exchange) -> None:
        completed.append(await exchange.read_body())
        await exchange.reply()

    routes = "  - {match: {path_prefix: /}, service: order}\n"
    async with Upstream(note) as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        await client.send(attack.request)
        answer = await client.answer()
        assert answer.status == attack.status
        assert json.loads(answer.body)["rule"] == attack.rule
        assert answer.field("connection") == "close"
        assert await client.rest() == b""
        assert completed == []
        if attack.rule != "bad-chunk":
            assert upstream.requests == []

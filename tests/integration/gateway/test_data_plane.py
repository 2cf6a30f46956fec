"""The data plane on real sockets: what goes through, unchanged where nobody asked for a change."""

import asyncio
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from quorate_gateway.proxy.limits import ConnectionLimits
from support.gateway_attacks import ATTACKS, HANDSHAKE_UNROUTED, Attack
from support.gateway_client import running_gateway
from support.gateway_upstream import WAIT_S_MAX, Exchange, Upstream


async def echo(exchange: Exchange) -> None:
    body = await exchange.read_body()
    await exchange.reply(body)


ODD = b"X-Odd:  1\r\nset-cookie: a\r\nset-cookie: b\r\nDate: now\r\n"


async def test_a_request_and_its_answer_go_through_as_they_came() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(b"\x00body\xff", "418 I'm a teapot", ODD)

    async with Upstream(answer) as upstream, running_gateway(upstream) as gateway:
        found = await (await gateway.client()).get("/orders/7?a=%20b", "Accept: */*\r\nX-Odd: 2\r\n")
        assert (found.status, found.body) == (418, b"\x00body\xff")
        assert found.fields == [
            ("x-odd", "1"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("date", "now"),
            ("content-length", "6"),
        ]
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
    routes = "  - {match: {path_prefix: /orders}, service: order, balance: {policy: round_robin}}\n"
    async with Upstream() as one, Upstream() as two, running_gateway(one, two, routes=routes) as gateway:
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


async def test_a_chunked_request_goes_through_without_extensions() -> None:
    async with Upstream(echo) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"5;a=b\r\nhel", b"lo\r", b"\n1\r\n!\r\n0\r\n", b"\r\n"):
            await client.send(piece)
        assert (await client.answer()).body == b"hello!"
        assert upstream.requests[0].field("content-length") is None
        assert (await client.get()).status == 200


async def test_trailers_go_through_both_ways_save_those_that_would_change_the_head() -> None:
    trailers = b"0\r\nX-Checksum: abc\r\nAuthorization: root\r\nx-forwarded-for: 8.8.8.8\r\n\r\n"

    async def echo_trailers(exchange: Exchange) -> None:
        assert exchange.request.field("te") == "trailers"
        assert exchange.request.field("trailer") == "X-Checksum"
        assert await exchange.reader.readuntil(b"0\r\n") == b"5\r\nhello\r\n0\r\n"
        assert await exchange.reader.readuntil(b"\r\n\r\n") == b"X-Checksum: abc\r\n\r\n"
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n\r\n" + trailers)

    head = b"POST /orders HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Checksum\r\n"
    async with Upstream(echo_trailers) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        for _ in range(2):
            await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + trailers)
            assert b"\r\nTrailer: X-Checksum\r\n" in await client.until(b"\r\n\r\n")
            assert await client.until(b"\r\n\r\n") == b"0\r\nX-Checksum: abc\r\n\r\n"
        assert upstream.connections == 1


async def test_a_message_says_by_which_gateways_it_came() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.get(fields="Via: 1.0 edge\r\n")
        assert [value for name, value in upstream.requests[0].fields if name == "via"] == ["1.0 edge", "1.1 quorate"]
        await client.send(b"GET /orders HTTP/1.0\r\n\r\n")
        await client.rest()
        assert upstream.requests[1].field("via") == "1.0 quorate"


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Connection: close"])
async def test_events_of_a_server_arrive_one_by_one_and_a_client_that_leaves_ends_them(framing: str) -> None:
    more = asyncio.Event()

    async def events(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n".encode())
        for number in range(3):
            event = b"data: %d\n\n" % number
            await exchange.send(b"%x\r\n%b\r\n" % (len(event), event) if "chunked" in framing else event)
            await more.wait()
            more.clear()
        await exchange.until_closed()

    async with Upstream(events) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\nAccept: text/event-stream\r\n\r\n")
        await client.until(b"\r\n\r\n")
        for number in range(3):
            await client.until(b"data: %d\n\n" % number)  # before the upstream has gone on
            more.set()
        client.close()
        await upstream.until(lambda: upstream.open_connections == 0)


async def test_a_trusted_proxy_is_believed_and_limits_know_the_client_behind_it() -> None:
    routes = (
        "  - match: {path_prefix: /orders}\n    service: order\n"
        "    rate_limit: {requests_per_second: 0.001, burst: 1, key: client}\n"
    )
    limits = ConnectionLimits(connections_per_client_max=1)
    async with (
        Upstream() as upstream,
        running_gateway(upstream, routes=routes, limits=limits, trusted_proxies=("127.0.0.0/8",)) as gateway,
    ):
        client, other = await gateway.client(), await gateway.client()  # of a proxy, not counted as one client's
        for address, status in (
            ("192.0.2.1", 200),
            ("192.0.2.2", 200),
            ("192.0.2.1", 429),
            ("8.8.8.8, 192.0.2.2", 429),
        ):
            answer = await client.get(fields=f"X-Forwarded-For: {address}\r\nX-Forwarded-Proto: https\r\n")
            assert answer.status == status
        assert (await other.get(fields="Forwarded: for=192.0.2.3;proto=https\r\n")).status == 200
        assert [request.field("x-forwarded-for") for request in upstream.requests] == [
            f"192.0.2.{number}, 127.0.0.1" for number in (1, 2, 3)
        ]
        assert {request.field("x-forwarded-proto") for request in upstream.requests} == {"https"}


async def test_a_client_may_hold_so_many_connections_and_no_more() -> None:
    limits = ConnectionLimits(connections_per_client_max=2)
    async with Upstream() as upstream, running_gateway(upstream, limits=limits) as gateway:
        clients = [await gateway.client() for _ in range(3)]
        assert [(await client.get()).status for client in clients[:2]] == [200, 200]
        answer = await clients[2].answer()
        assert (answer.status, json.loads(answer.body)["rule"]) == (429, "too-many-connections-of-client")
        assert await clients[2].rest() == b""
        for client in clients:
            client.close()
        await gateway.until(lambda: gateway.plane.connections.total == 0)
        assert (await (await gateway.client()).get()).status == 200


async def test_limits_of_heads_are_the_gateways_own() -> None:
    limits = ConnectionLimits(head_bytes_max=200, head_fields_max=4)
    async with Upstream() as upstream, running_gateway(upstream, limits=limits) as gateway:
        assert (await (await gateway.client()).get(fields="A: 1\r\nB: 2\r\nC: 3\r\n")).status == 200
        for fields, rule in (("A: 1\r\n" * 4, "too-many-fields"), (f"A: {'a' * 200}\r\n", "head-too-large")):
            answer = await (await gateway.client()).get(fields=fields)
            assert (answer.status, json.loads(answer.body)["rule"]) == (431, rule)


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
        await exchange.reply(fields=b"Date: now\r\n")

    async with Upstream(answer) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        assert await client.until(b"hello") == b"HTTP/1.1 200 OK\r\nDate: now\r\ncontent-length: 5\r\n\r\nhello"


async def test_who_expects_100_continue_gets_it_once_there_is_an_upstream() -> None:
    async with Upstream(echo) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert (await client.answer()).body == b"hello"
        assert upstream.requests[0].field("expect") is None


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("/nowhere", 5, 404), ("/orders", 100, 413), ("/empty", 5, 503), ("/limited", 5, 429)],
)
async def test_who_expects_100_continue_and_is_refused_hears_so_before_the_body(
    path: str, length: int, status: int
) -> None:
    routes = (
        "  - {match: {path_prefix: /orders}, service: order, request_bytes_max: 50}\n"
        "  - {match: {path_prefix: /empty}, service: nobody}\n"
        "  - {match: {path_prefix: /limited}, service: order, rate_limit: {requests_per_second: 0.001, burst: 1}}\n"
    )
    async with Upstream(echo) as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        await client.get("/limited")
        await client.send(
            f"POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in await client.rest()
        assert len(upstream.requests) == 1


async def test_http_1_0_gets_bare_bodies_and_keeps_its_connection_only_when_it_asks() -> None:
    async def chunked(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nDate: now\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.send(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")

    async def empty(exchange: Exchange) -> None:
        await exchange.reply(b"", fields=b"Date: now\r\n")

    async with Upstream(chunked) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.0\r\n\r\n")
        assert await client.rest() == b"HTTP/1.1 200 OK\r\nDate: now\r\nconnection: close\r\n\r\nonetwo"
        upstream.handler = empty
        client = await gateway.client()
        for _ in range(2):
            await client.send(b"GET /orders HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert await client.until(b"\r\n\r\n") == (
                b"HTTP/1.1 200 OK\r\nDate: now\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n"
            )
        await client.send(b"GET /orders HTTP/1.0\r\n\r\n")
        assert (await client.rest()).endswith(b"connection: close\r\n\r\n")
        client = await gateway.client()
        await client.send(b"GET /nowhere HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"\r\nconnection: close\r\n" in await client.rest()


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


STREAM_BYTES = 256 * 1024 * 1024
HELD_BYTES_MAX = 48 * 1024 * 1024
"""Of memory, in this process: the client, the gateway, the upstream and what the allocator keeps."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Zeros:
    """STREAM_BYTES of them; `sent` counts those that the writer's own buffer has left."""

    def __init__(self) -> None:
        self.sent = 0

    async def write(self, writer: asyncio.StreamWriter) -> None:
        piece = bytes(1 << 18)
        while self.sent < STREAM_BYTES:
            writer.write(piece)
            async with asyncio.timeout(WAIT_S_MAX):
                await writer.drain()
            self.sent += len(piece)

    async def read_late(self, reader: asyncio.StreamReader) -> int:
        """Begins when the writer is stuck. The most memory that was held meanwhile."""
        before = -1
        while before != self.sent or not self.sent:
            before = self.sent
            for _ in range(500):
                await asyncio.sleep(0)
        most, left = resident_bytes(), STREAM_BYTES
        while left:
            async with asyncio.timeout(WAIT_S_MAX):
                data = await reader.read(1 << 17)
            assert data
            left -= len(data)
            most = max(most, resident_bytes())
        return most


async def test_a_slow_client_of_a_fast_upstream_takes_bounded_memory() -> None:
    zeros = Zeros()

    async def send(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % STREAM_BYTES)
        await zeros.write(exchange.writer)

    async with Upstream(send) as upstream, running_gateway(upstream) as gateway:
        before = resident_bytes()
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        assert await zeros.read_late(client.reader) < before + HELD_BYTES_MAX
        assert (await client.get("/nowhere")).status == 404  # in its place behind the body


async def test_a_fast_client_of_a_slow_upstream_takes_bounded_memory() -> None:
    zeros = Zeros()
    held = 0

    async def receive(exchange: Exchange) -> None:
        nonlocal held
        held = await zeros.read_late(exchange.reader)
        await exchange.reply(b"all")

    routes = "  - {match: {path_prefix: /orders}, service: order, request_bytes_max: 300000000}\n"
    async with Upstream(receive) as upstream, running_gateway(upstream, routes=routes) as gateway:
        before = resident_bytes()
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % STREAM_BYTES)
        await zeros.write(client.writer)
        assert (await client.answer()).body == b"all"
        assert held < before + HELD_BYTES_MAX


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


@pytest.mark.parametrize("attack", [*ATTACKS, HANDSHAKE_UNROUTED], ids=lambda attack: attack.what)
async def test_what_stands_behind_an_attack_never_reaches_the_upstream(attack: Attack) -> None:
    """Never two requests where one was meant."""
    routes = "  - {match: {path_prefix: /}, service: order}\n"
    async with Upstream(echo) as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        await client.send(attack.request + b"GET /admin HTTP/1.1\r\nHost: admin.example\r\nConnection: close\r\n\r\n")
        answers = len(re.findall(rb"HTTP/1\.1 [1-5][0-9]{2} ", await client.rest()))
        meant = 1 if attack is HANDSHAKE_UNROUTED else 0  # it is refused, and whole: the next request is one
        assert answers == 1 + meant
        targets = [request.target for request in upstream.requests]
        assert targets in ([], ["/orders"]) if not meant else targets == ["/admin"]

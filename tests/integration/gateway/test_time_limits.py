"""Every time limit, by a clock that the test drives: what it ends, and what it leaves alone."""

import asyncio
import json

import pytest
from quorate_core.clock import ManualClock
from quorate_gateway.proxy.downstream import LINGER_S
from quorate_gateway.proxy.limits import HEAD_TIMEOUT_S, IDLE_TIMEOUT_S
from quorate_gateway.proxy.upstream import AVOID_S, IDLE_S_MAX
from support.gateway_client import IN_TURN, Client, Gateway, running_gateway
from support.gateway_upstream import Exchange, Upstream, give_back, unused_port

ROUTES = (
    "  - {name: orders, match: {path_prefix: /orders}, service: order, timeout_ms: 3000, idle_timeout_ms: 5000}\n"
    "  - {name: total, match: {path_prefix: /total}, service: order, total_timeout_ms: 7000}\n"
)
GET = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"


async def never(exchange: Exchange) -> None:
    await exchange.until_closed()


def pass_time(gateway: Gateway, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    gateway.plane.sweep()


async def refusal(client: Client) -> tuple[int, str]:
    answer = await client.answer()
    return answer.status, json.loads(answer.body)["rule"]


async def test_an_upstream_that_does_not_answer_in_time_is_a_gateway_timeout() -> None:
    clock = ManualClock()
    async with Upstream(never) as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await gateway.client()
        await client.send(GET)
        await upstream.until(lambda: len(upstream.requests) == 1)
        pass_time(gateway, clock, 2.9)
        assert upstream.open_connections == 1
        pass_time(gateway, clock, 0.1)
        assert await refusal(client) == (504, "upstream-timeout")
        await upstream.until(lambda: upstream.open_connections == 0)
        assert len(upstream.requests) == 1  # and it is not tried again: it may be at work
        assert (await client.get("/nowhere")).status == 404


async def test_the_limit_counts_from_the_end_of_the_request() -> None:
    clock = ManualClock()
    async with Upstream() as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\n")
        await upstream.until(lambda: len(upstream.requests) == 1)
        for _ in range(2):
            pass_time(gateway, clock, 4)
            await client.send(b"x")
            await gateway.until(
                lambda: all(one._exchange._progress_s == clock.monotonic_s() for one in gateway.plane.clients)
            )
        await client.send(b"x")
        assert (await client.answer()).status == 200


async def test_a_request_whose_body_stops_coming_is_a_request_timeout() -> None:
    clock = ManualClock()
    async with Upstream() as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\nx")
        await upstream.until(lambda: len(upstream.requests) == 1)
        pass_time(gateway, clock, 5)
        assert await refusal(client) == (408, "request-timeout")
        await upstream.until(lambda: upstream.open_connections == 0)


async def test_an_answer_that_stops_coming_is_cut_short() -> None:
    clock = ManualClock()

    async def stall(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await exchange.until_closed()

    async with Upstream(stall) as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await gateway.client()
        await client.send(GET)
        await client.until(b"half")
        pass_time(gateway, clock, 4.9)
        assert upstream.open_connections == 1
        pass_time(gateway, clock, 0.2)
        with pytest.raises((EOFError, ConnectionResetError)):
            await client.until(b"never")


async def test_an_answer_that_goes_on_may_take_as_long_as_it_likes() -> None:
    clock = ManualClock()
    go_on = asyncio.Semaphore(0)

    async def slow_stream(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            await go_on.acquire()
            await exchange.send(b"1\r\nx\r\n")
        await exchange.send(b"0\r\n\r\n")

    async with Upstream(slow_stream) as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await gateway.client()
        await client.send(GET)
        await client.until(b"\r\n\r\n")
        for _ in range(10):
            pass_time(gateway, clock, 4)
            go_on.release()
            assert await client.until(b"x\r\n") == b"1\r\nx\r\n"
        await client.until(b"0\r\n\r\n")


async def test_a_total_limit_ends_even_what_goes_on() -> None:
    clock = ManualClock()

    async def begin(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await exchange.until_closed()

    async with Upstream(begin) as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await gateway.client()
        await client.send(b"GET /total HTTP/1.1\r\nHost: shop\r\n\r\n")
        await client.until(b"x\r\n")
        pass_time(gateway, clock, 7)
        with pytest.raises((EOFError, ConnectionResetError)):
            await client.until(b"never")


async def test_a_head_must_come_within_its_time() -> None:
    clock = ManualClock()
    async with running_gateway(clock=clock) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nX-Slow: ")
        await gateway.until(lambda: any(one.state == "reading" for one in gateway.plane.clients))
        for _ in range(3):
            pass_time(gateway, clock, HEAD_TIMEOUT_S / 4)
            await client.send(b"x")  # a byte now and then does not help
            await gateway.until(lambda: all(one._scanned == len(one._buffer) for one in gateway.plane.clients))
        pass_time(gateway, clock, HEAD_TIMEOUT_S / 4)
        assert await refusal(client) == (408, "request-timeout")
        assert await client.rest() == b""


async def test_a_connection_without_requests_is_closed_after_its_idle_time() -> None:
    clock = ManualClock()
    async with Upstream() as upstream, running_gateway(upstream, clock=clock) as gateway:
        client = await gateway.client()
        assert (await client.get()).status == 200
        pass_time(gateway, clock, IDLE_TIMEOUT_S - 1)
        assert (await client.get()).status == 200
        pass_time(gateway, clock, IDLE_TIMEOUT_S)
        assert await client.rest() == b""


async def test_idle_upstream_connections_are_dropped_before_the_upstream_would() -> None:
    clock = ManualClock()
    async with Upstream() as upstream, running_gateway(upstream, clock=clock) as gateway:
        client = await gateway.client()
        await client.get()
        pass_time(gateway, clock, IDLE_S_MAX - 0.1)
        await client.get()
        assert upstream.connections == 1
        pass_time(gateway, clock, IDLE_S_MAX)
        await upstream.until(lambda: upstream.open_connections == 0)
        await client.get()
        assert upstream.connections == 2


async def test_a_client_that_goes_on_sending_after_its_answer_is_cut_off() -> None:
    clock = ManualClock()
    async with running_gateway(clock=clock) as gateway:
        client = await gateway.client()
        await client.send(b"nonsense\r\n\r\n")
        assert (await client.answer()).status == 400
        assert [one.state for one in gateway.plane.clients] == ["lingering"]
        pass_time(gateway, clock, LINGER_S)
        await gateway.until(lambda: not gateway.plane.clients)


async def test_an_endpoint_that_refused_is_asked_again_after_a_while() -> None:
    clock = ManualClock()
    port = unused_port()
    async with Upstream() as upstream, running_gateway(port, upstream, routes=IN_TURN, clock=clock) as gateway:
        client = await gateway.client()
        for _ in range(4):
            assert (await client.get()).status == 200
        pool = gateway.plane.pools[f"127.0.0.1:{port}"]
        assert pool.connect_failures == 1
        clock.advance(AVOID_S)
        give_back(port)
        async with Upstream(port=port) as back:
            for _ in range(4):
                assert (await client.get()).status == 200
            assert len(back.requests) == 2


async def test_a_request_that_waits_for_a_connection_is_bounded_in_time() -> None:
    clock = ManualClock()
    async with Upstream(never) as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        [endpoint] = gateway.plane.snapshot.endpoints["order"]
        gateway.plane.pool(endpoint).connections_max = 1
        first, second = await gateway.client(), await gateway.client()
        await first.send(b"GET /total HTTP/1.1\r\nHost: shop\r\n\r\n")
        await upstream.until(lambda: len(upstream.requests) == 1)
        await second.send(GET)
        await gateway.until(lambda: gateway.plane.pool(endpoint).waiting == 1)
        pass_time(gateway, clock, 3)
        assert await refusal(second) == (504, "upstream-timeout")
        assert gateway.plane.pool(endpoint).waiting == 0

"""Retries against real sockets: what is tried again, on what connection, and what a client never hears of."""

import asyncio
import json
import os
import socket

import pytest
from support.gateway_client import Answer, Gateway, running_gateway
from support.gateway_upstream import Exchange, Upstream, unused_port

STATUSES = "  - {name: orders, match: {path_prefix: /orders}, service: order, retry: {attempts: 2, statuses: [503]}}\n"
PER_TRY = (
    "  - {name: orders, match: {path_prefix: /orders}, service: order, balance: {policy: round_robin},"
    " retry: {attempts: 1, per_try_timeout_ms: 40}}\n"
)
ONE_RETRY = (
    "  - {name: orders, match: {path_prefix: /orders}, service: order, retry: {attempts: 1, budget_percent: 0}}\n"
)


def rule(answer: Answer) -> str:
    return str(json.loads(answer.body)["rule"])


def retries(gateway: Gateway) -> int:
    return gateway.plane.counters.routes["orders"].retries


async def busy(exchange: Exchange) -> None:
    await exchange.read_body()
    await exchange.reply(b"busy", "503 Service Unavailable")


async def die(exchange: Exchange) -> None:
    exchange.reset()


async def test_a_status_that_the_route_retries_is_not_what_the_client_gets() -> None:
    async with Upstream(busy) as one, Upstream() as two, running_gateway(one, two, routes=STATUSES) as gateway:
        client = await gateway.client()
        assert [(await client.get()).body for _ in range(6)] == [b"hello"] * 6
        assert (one.connections, two.connections) == (1, 1), "an answer that was thrown away leaves its connection"
        assert (await client.post(b"{}")).status in (200, 503)


async def test_a_body_goes_with_every_try() -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.reply(await exchange.read_body())

    async with Upstream(busy) as one, Upstream(echo) as two, running_gateway(one, two, routes=STATUSES) as gateway:
        client = await gateway.client()
        for number in range(6):
            body = b"%d" % number * 1_000
            await client.send(b"PUT /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert (await client.answer()).body == body


def end_behind_the_loop(upstream: Upstream) -> None:
    """The upstream ends its connections now: the kernel knows, and no event loop has come to it yet."""
    for writer in upstream._writers:
        copy = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
        copy.shutdown(socket.SHUT_WR)
        copy.close()


@pytest.mark.parametrize("method", [b"POST", b"PATCH"])
async def test_a_connection_whose_end_is_just_there_is_not_used_for_what_must_not_be_sent_twice(method: bytes) -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        assert (await client.get()).status == 200
        [connection] = gateway.plane.clients
        # From here to the request not a turn of the loop passes: the pool still takes its connection for idle.
        end_behind_the_loop(upstream)
        connection.data_received(b"%b /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n{}" % method)
        assert (await client.answer()).status == 200
        assert (len(upstream.requests), upstream.connections) == (2, 2)
        assert upstream.requests[1].body == b"{}"


async def test_an_upstream_that_closes_after_each_answer_is_no_error_however_fast_clients_ask() -> None:
    async def close_after(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.reply()
        exchange.close()

    async with Upstream(close_after) as upstream, running_gateway(upstream) as gateway:

        async def ask() -> None:
            client = await gateway.client()
            for _ in range(30):
                assert (await client.get()).status == 200

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
        assert gateway.plane.counters.routes["orders"].ended[5] == 0


async def test_a_try_that_hangs_is_given_up_in_its_own_time_and_its_connection_with_it() -> None:
    async def hang(exchange: Exchange) -> None:
        await exchange.until_closed()

    async with Upstream(hang) as hanging, Upstream() as well, running_gateway(hanging, well, routes=PER_TRY) as gateway:
        client = await gateway.client()
        assert [(await client.get()).body for _ in range(2)] == [b"hello"] * 2
        assert len(hanging.requests) >= 1
        await hanging.until(lambda: hanging.open_connections == 0)
        assert retries(gateway) == len(hanging.requests)


async def test_a_route_in_an_outage_is_tried_again_as_its_budget_allows() -> None:
    async with Upstream(die) as one, Upstream(die) as two, running_gateway(one, two, routes=ONE_RETRY) as gateway:
        client = await gateway.client()
        # The breaker would end this before the budget does: an operator keeps it closed.
        [route] = gateway.plane.snapshot.routes
        assert route.breaker is not None
        route.breaker.force_closed(gateway.plane.monotonic_s())
        answers = [await client.get() for _ in range(30)]
        assert {(answer.status, rule(answer)) for answer in answers} == {(502, "upstream-failed")}
        assert retries(gateway) == 10
        assert len(one.requests) + len(two.requests) == 40


async def test_endpoints_that_flap_are_no_error_that_a_client_sees() -> None:
    """One of two instances comes and goes as fast as it can, under load."""
    async with Upstream() as steady, Upstream() as flapping, running_gateway(steady, flapping) as gateway:
        done = asyncio.Event()

        async def flap() -> None:
            for _ in range(12):
                seen = len(steady.requests)
                await flapping.stop()
                await steady.until(lambda seen=seen: len(steady.requests) > seen + 5)  # type: ignore[misc]
                await flapping.start()
                seen = len(steady.requests)
                await steady.until(lambda seen=seen: len(steady.requests) > seen + 5)  # type: ignore[misc]
            done.set()

        async def ask() -> int:
            client, count = await gateway.client(), 0
            while not done.is_set():
                assert (await client.get()).status == 200
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask()) for _ in range(6)]
            group.create_task(flap())
        assert sum(task.result() for task in asking) > 100
        counters = gateway.plane.counters.routes["orders"]
        assert (counters.active, gateway.plane.load.active) == (0, 0)


async def test_no_retry_goes_where_nobody_listens_twice() -> None:
    async with running_gateway(unused_port(), unused_port(), unused_port()) as gateway:
        answer = await (await gateway.client()).post(b"{}")
        assert (answer.status, rule(answer)) == (502, "upstream-unreachable")
        assert retries(gateway) == 2
        assert sum(pool.connect_failures for pool in gateway.plane.pools.values()) == 3

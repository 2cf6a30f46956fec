"""The data plane under more than it can take at once: what waits, what is held back, and what is refused."""

import asyncio
import json
import socket

import pytest
from quorate_gateway.proxy.downstream import PIPELINED_BYTES_MAX
from quorate_gateway.proxy.limits import ConnectionLimits
from quorate_gateway.proxy.upstream import EndpointPool
from support.gateway_client import Answer, Gateway, running_gateway
from support.gateway_upstream import Exchange, Upstream, say_hello


def rule(answer: Answer) -> str:
    return str(json.loads(answer.body)["rule"])


def only_pool(gateway: Gateway) -> EndpointPool:
    [pool] = gateway.plane.pools.values()
    return pool


async def test_connections_over_the_limit_are_answered_and_closed() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        gateway.plane.connections.limits = ConnectionLimits(client_connections_max=2)
        clients = [await gateway.client() for _ in range(3)]
        assert [(await client.get()).status for client in clients[:2]] == [200, 200]
        answer = await clients[2].answer()
        assert (answer.status, rule(answer)) == (503, "too-many-connections")
        clients[0].close()
        await gateway.until(lambda: len(gateway.plane.clients) <= 2)
        clients[2].close()
        await gateway.until(lambda: len(gateway.plane.clients) == 1)
        assert (await (await gateway.client()).get()).status == 200


async def test_requests_over_the_connections_of_a_pool_wait_their_turn() -> None:
    release = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply()

    async with Upstream(wait) as upstream, running_gateway(upstream) as gateway:
        [endpoint] = gateway.plane.snapshot.endpoints["order"]
        gateway.plane.pool(endpoint).connections_max = 3
        clients = [await gateway.client() for _ in range(10)]
        answers = [asyncio.ensure_future(client.get()) for client in clients]  # noqa: TID251 - awaited below
        await gateway.until(lambda: only_pool(gateway).waiting == 7)
        assert only_pool(gateway).busy == 3
        release.set()
        assert [(await answer).status for answer in answers] == [200] * 10
        assert upstream.connections == 3


async def test_nothing_is_left_behind_by_a_storm_of_clients_that_come_and_leave() -> None:
    async def maybe(exchange: Exchange) -> None:
        body = await exchange.read_body()
        if len(body) % 3 == 0:
            exchange.reset()
        else:
            await exchange.reply(body)

    async def one(gateway: Gateway, number: int) -> None:
        client = await gateway.client()
        try:
            for turn in range(8):
                if (number + turn) % 5 == 0:
                    await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nhalf")
                    client.reset()
                    return
                await client.post(b"x" * (number + turn))
        except (EOFError, ConnectionError):
            pass
        client.close()

    async with Upstream(maybe) as upstream, running_gateway(upstream) as gateway:
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(one(gateway, number))
        await gateway.until(lambda: not gateway.plane.clients)
        counters = gateway.plane.counters.routes["orders"]
        assert counters.active == 0
        await gateway.until(lambda: (only_pool(gateway).busy, only_pool(gateway).waiting) == (0, 0))
        assert sum(counters.ended) == sum(counters.latency_buckets)


async def test_a_client_that_does_not_read_stops_the_upstream_and_not_the_gateway() -> None:
    sent = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1_000):
            await exchange.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            sent += 65_536

    async with Upstream(flood) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        client.writer.transport.pause_reading()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await gateway.until(lambda: any(one.hold_answer() for one in gateway.plane.clients))
        [held] = gateway.plane.clients
        assert held.transport.get_write_buffer_size() < 1_000_000
        assert sent < 64_000_000
        upstream.handler = say_hello
        assert (await (await gateway.client()).get()).status == 200
        client.writer.transport.resume_reading()
        await client.until(b"\r\n\r\n")


async def test_an_upstream_that_does_not_read_stops_the_client() -> None:
    read = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await read.wait()
        await exchange.reply(b"%d" % len(await exchange.read_body()))

    size = 32 * 1024 * 1024
    routes = f"  - {{match: {{path_prefix: /orders}}, service: order, request_bytes_max: {size}}}\n"
    async with Upstream(late) as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        head = b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % size
        sending = asyncio.ensure_future(client.send(head + b"x" * size))  # noqa: TID251 - awaited below
        await gateway.until(lambda: any(not one._reading for one in gateway.plane.clients))
        assert not sending.done()
        read.set()
        await sending
        assert (await client.answer()).body == b"%d" % size


async def test_an_answer_that_ends_just_as_the_client_stops_reading_frees_its_upstream_connection() -> None:
    # More than the gateway's write buffer holds, by less than one read of the upstream's connection.
    async def large(exchange: Exchange) -> None:
        await exchange.reply(b"x" * 310_000)

    async with Upstream(large) as upstream, running_gateway(upstream) as gateway:
        assert gateway.plane._server is not None
        gateway.plane._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        client = await gateway.client(receive_bytes=4_096)
        client.writer.transport.pause_reading()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n" * 2)
        await gateway.until(lambda: bool(gateway.plane.pools) and only_pool(gateway).idle == 1)
        [held] = gateway.plane.clients
        assert held.hold_answer()
        # The next request of the same client waits until it has read; others go on over the same connection.
        upstream.handler = say_hello
        assert (await (await gateway.client()).get()).body == b"hello"
        assert (len(upstream.requests), upstream.connections) == (2, 1)
        client.writer.transport.resume_reading()
        assert len((await client.answer()).body) == 310_000
        assert (await client.answer()).body == b"hello"


async def test_a_client_that_floods_with_requests_is_not_read_further() -> None:
    release = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply()

    async with Upstream(wait) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        request = b"GET /orders HTTP/1.1\r\nHost: shop\r\nX-Fill: " + b"x" * 8_000 + b"\r\n\r\n"
        sending = asyncio.ensure_future(client.send(request * 2_000))  # noqa: TID251 - awaited below
        await gateway.until(lambda: any(not one._reading for one in gateway.plane.clients))
        [held] = gateway.plane.clients
        assert len(held._buffer) < PIPELINED_BYTES_MAX + 1_000_000
        assert len(upstream.requests) <= 1
        release.set()
        assert [(await client.answer()).status for _ in range(2_000)] == [200] * 2_000
        await sending


async def test_a_client_that_floods_and_does_not_read_its_refusals_is_not_answered_further() -> None:
    async with running_gateway() as gateway:
        client = await gateway.client()
        client.writer.transport.pause_reading()
        request = b"GET /nowhere HTTP/1.1\r\nHost: shop\r\n\r\n"
        sending = asyncio.ensure_future(client.send(request * 200_000))  # noqa: TID251 - awaited below
        await gateway.until(lambda: any(one.hold_answer() and not one._reading for one in gateway.plane.clients))
        [held] = gateway.plane.clients
        assert held.transport.get_write_buffer_size() < 1_000_000
        assert not sending.done()
        client.reset()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_pool_whose_waiters_are_too_many_is_busy() -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.until_closed()

    async with Upstream(never) as upstream, running_gateway(upstream) as gateway:
        [endpoint] = gateway.plane.snapshot.endpoints["order"]
        pool = gateway.plane.pool(endpoint)
        pool.connections_max, pool.waiters_max = 1, 1
        clients = [await gateway.client() for _ in range(3)]
        for number, client in enumerate(clients[:2]):
            await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
            await gateway.until(lambda number=number: pool.busy + pool.waiting == number + 1 and pool.busy == 1)
        answer = await clients[2].get()
        assert (answer.status, rule(answer)) == (503, "upstream-busy")
        assert json.loads(answer.body)["retry"] == "safe"


async def test_what_goes_on_coming_after_a_refusal_is_bounded() -> None:
    async with running_gateway() as gateway:
        client = await gateway.client()
        with pytest.raises(ConnectionError):
            await client.send(b"nonsense\r\n\r\n" + b"x" * 64_000_000)
        await gateway.until(lambda: not gateway.plane.clients)

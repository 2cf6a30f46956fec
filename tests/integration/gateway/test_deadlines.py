"""Deadlines and priorities through a running data plane: who is told what is left, and who is refused first."""

import asyncio
import json

from quorate_resilience.shedding import LoadShedder
from support.gateway_client import Answer, Client, running_gateway
from support.gateway_upstream import Exchange, Upstream

HURRY = "X-Request-Timeout-Ms: %d\r\n"
PRIORITIES = "".join(
    f"  - {{name: {name}, match: {{path_prefix: /{name}}}, service: order, priority: {name}}}\n"
    for name in ("low", "normal", "high")
)


def rule(answer: Answer) -> str:
    return str(json.loads(answer.body)["rule"])


async def test_the_service_is_told_what_is_left_and_never_more_than_the_caller_gave() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        assert (await client.get(fields=HURRY % 5_000)).status == 200
        assert (await client.get()).status == 200
        told = [request.field("x-request-timeout-ms") for request in upstream.requests]
        assert told[0] is not None
        assert 4_000 < int(told[0]) <= 5_000
        assert told[1] is None


async def test_a_caller_that_no_longer_waits_costs_the_service_nothing() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        answer = await client.get(fields=HURRY % 0)
        assert (answer.status, rule(answer), json.loads(answer.body)["retry"]) == (504, "deadline-exceeded", "safe")
        assert (await client.get()).status == 200
        assert len(upstream.requests) == 1


async def test_a_deadline_ends_what_hangs_and_blames_nobody() -> None:
    async def hang(exchange: Exchange) -> None:
        await exchange.until_closed()

    async with Upstream(hang) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        for _ in range(12):
            answer = await client.get(fields=HURRY % 15)
            assert (answer.status, rule(answer), json.loads(answer.body)["retry"]) == (
                504, "deadline-exceeded", "unknown",
            )  # fmt: skip
        await upstream.until(lambda: upstream.open_connections == 0)
        upstream.handler = Upstream().handler
        assert (await client.get()).status == 200, "neither the breaker nor the ejection has taken it ill"


async def test_an_answer_that_has_begun_is_not_cut_by_a_deadline() -> None:
    go_on = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go_on.wait()
        await exchange.send(b"data: 2\n\n")
        exchange.close()

    async with Upstream(stream) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\nX-Request-Timeout-Ms: 60\r\n\r\n")
        await client.until(b"data: 1\n\n")
        [connection] = gateway.plane.clients
        exchange = connection._exchange
        assert exchange is not None
        exchange.expire(gateway.plane.monotonic_s() + 1)
        go_on.set()
        assert await client.rest() == b"data: 2\n\n"


async def test_a_saturated_gateway_refuses_lower_priorities_first_and_recovers() -> None:
    release = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply()

    async with Upstream(wait) as upstream, running_gateway(upstream, routes=PRIORITIES) as gateway:
        gateway.plane.load = LoadShedder(active_max=10)
        held: list[Client] = []

        async def fill_to(count: int) -> None:
            while len(held) < count:
                held.append(await gateway.client())
                await held[-1].send(b"GET /high HTTP/1.1\r\nHost: shop\r\n\r\n")
            await gateway.until(lambda: gateway.plane.load.active == count)

        async def refused(priority: str) -> bool:
            """Whether one more of this priority is; otherwise it is held too."""
            client = await gateway.client()
            await client.send(f"GET /{priority} HTTP/1.1\r\nHost: shop\r\n\r\n".encode())
            before = gateway.plane.load.active
            await gateway.until(
                lambda: (
                    gateway.plane.load.active > before or gateway.plane.counters.refusals.get("overloaded", 0) > seen
                )
            )
            if gateway.plane.load.active > before:
                held.append(client)
                return False
            answer = await client.answer()
            assert (answer.status, rule(answer), answer.field("retry-after")) == (503, "overloaded", "1")
            return True

        seen = 0
        await fill_to(8)
        assert await refused("low")
        seen = 1
        assert not await refused("normal")
        await fill_to(10)
        for priority in ("normal", "high"):
            assert await refused(priority)
            seen += 1
        assert gateway.plane.load.refused == [1, 1, 1]
        release.set()
        assert [(await client.answer()).status for client in held] == [200] * 10
        assert (await (await gateway.client()).get("/low")).status == 200
        assert gateway.plane.load.active == 0


QUEUED = (
    "  - {name: orders, match: {path_prefix: /orders}, service: order,"
    " rate_limit: {algorithm: leaky_bucket, requests_per_second: %s, queue: 10, queue_wait_ms: 60000}}\n"
)


async def test_requests_that_wait_in_a_leaky_bucket_go_to_the_service_one_by_one() -> None:
    async with Upstream() as upstream, running_gateway(upstream, routes=QUEUED % 50) as gateway:
        clients = [await gateway.client() for _ in range(4)]
        for number, client in enumerate(clients):
            await client.send(b"POST /orders/%d HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n{}" % number)
            await gateway.until(lambda number=number: gateway.plane.load.active + len(upstream.requests) > number)
        assert [(await client.answer()).status for client in clients] == [200] * 4
        assert [request.target for request in upstream.requests] == [f"/orders/{number}" for number in range(4)]


async def test_a_client_that_leaves_the_queue_leaves_its_place_to_the_next() -> None:
    # One a minute: who is behind the second would wait two.
    async with Upstream() as upstream, running_gateway(upstream, routes=QUEUED % 0.0167) as gateway:
        [route] = gateway.plane.snapshot.routes
        assert route.limit is not None
        first, second = await gateway.client(), await gateway.client()
        assert (await first.get()).status == 200
        await second.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await gateway.until(lambda: route.limit is not None and route.limit.waiting == 1)
        answer = await first.get()
        assert (answer.status, rule(answer)) == (429, "rate-limited")
        second.reset()
        await gateway.until(lambda: route.limit is not None and route.limit.waiting == 0)
        await first.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await gateway.until(lambda: route.limit is not None and route.limit.waiting == 1)
        first.reset()
        await gateway.until(lambda: gateway.plane.load.active == 0)
        assert len(upstream.requests) == 1

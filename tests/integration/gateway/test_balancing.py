"""Balancing on real sockets: who gets requests when upstreams are slow, fail, vanish and come back."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from quorate_core.clock import ManualClock
from support.gateway_client import Client, Gateway, running_gateway
from support.gateway_snapshots import instance, snapshot
from support.gateway_upstream import Exchange, Upstream, unused_port

TURNS = "  - {name: orders, match: {path_prefix: /orders}, service: order, balance: {policy: round_robin}}\n"
HASH = (
    "  - name: orders\n    match: {path_prefix: /orders}\n    service: order\n"
    "    balance: {policy: consistent_hash, key: 'header:x-user', virtual_nodes: 200}\n"
)


async def fail(exchange: Exchange) -> None:
    await exchange.read_body()
    await exchange.reply(b"no", "500 Internal Server Error")


async def statuses(client: Client, count: int) -> Counter[int]:
    return Counter([(await client.get()).status for _ in range(count)])


def requests(upstreams: Sequence[Upstream]) -> list[int]:
    return [len(upstream.requests) for upstream in upstreams]


async def test_an_instance_that_answers_with_errors_is_ejected_and_tried_again_later() -> None:
    clock = ManualClock()
    async with (
        Upstream(fail) as bad,
        Upstream() as good,
        Upstream() as well,
        running_gateway(bad, good, well, routes=TURNS, clock=clock) as gateway,
    ):
        client = await gateway.client()
        assert await statuses(client, 60) == {200: 55, 500: 5}
        assert len(bad.requests) == 5
        report = gateway.plane.balancing.report("order-1", f"127.0.0.1:{bad.port}")
        assert (report.failures, report.ejected_s) == (5, 10.0)
        clock.advance(10.0)
        assert await statuses(client, 30) == {200: 29, 500: 1}, "on trial, one failure is enough"


async def test_a_service_of_one_instance_is_asked_whatever_it_answers() -> None:
    async with Upstream(fail) as bad, running_gateway(bad) as gateway:
        client = await gateway.client()
        assert await statuses(client, 9) == {500: 9}


async def test_an_instance_that_hangs_gets_no_more_than_its_first_few() -> None:
    """Least request: what it has not answered counts against it."""
    release = asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply()

    async with (
        Upstream(hang) as hanging,
        Upstream() as one,
        Upstream() as two,
        running_gateway(hanging, one, two) as gateway,
    ):
        waiting: list[asyncio.Task[object]] = []
        while not hanging.requests:
            client = await gateway.client()
            asked = asyncio.ensure_future(client.get())  # noqa: TID251 - awaited below
            waiting.append(asked)
            await gateway.until(lambda asked=asked: asked.done() or hanging.requests)
        client = await gateway.client()
        assert await statuses(client, 100) == {200: 100}
        assert len(hanging.requests) == 1
        release.set()
        await asyncio.gather(*waiting)
        assert all(state.active == 0 for state in gateway.plane.balancing._states.values())


async def test_an_instance_that_vanishes_under_load_costs_no_client_an_error() -> None:
    async with Upstream() as one, Upstream() as two, running_gateway(unused_port(), one, two) as gateway:
        found = await asyncio.gather(*[ask(gateway, 25) for _ in range(8)])
        assert sum(found, Counter()) == {200: 200}
        assert sum(requests([one, two])) == 200


async def ask(gateway: Gateway, count: int) -> Counter[int]:
    return await statuses(await gateway.client(), count)


async def test_a_key_stays_with_its_instance_and_only_some_move_to_a_new_one() -> None:
    async with Upstream() as one, Upstream() as two, Upstream() as three, Upstream() as new:
        former = [one, two, three]
        async with running_gateway(*former, routes=HASH) as gateway:
            client = await gateway.client()

            async def homes(upstreams: Sequence[Upstream]) -> list[int]:
                found = []
                for number in range(60):
                    before = requests(upstreams)
                    await client.get(fields=f"X-User: user-{number}\r\n")
                    found.append([b - a for a, b in zip(before, requests(upstreams), strict=True)].index(1))
                return found

            first = await homes(former)
            assert await homes(former) == first
            gateway.serve(HASH, {"order": [*former, new]})
            later = await homes([*former, new])
            moved = [(was, became) for was, became in zip(first, later, strict=True) if was != became]
            assert 3 <= len(moved) <= 30
            assert {became for _, became in moved} == {3}
            assert len({was for was, _ in moved}) > 1


async def test_a_canary_takes_its_share_from_its_version_alone() -> None:
    routes = (
        "  - {name: orders, match: {path_prefix: /orders}, split: "
        "[{service: order, version: v1, weight: 9}, {service: order, version: v2}]}\n"
    )
    async with Upstream() as old, Upstream() as canary, running_gateway(old) as gateway:
        found = [
            instance("order", "order-1", old.port, version="v1"),
            instance("order", "order-2", canary.port, version="v2"),
        ]
        gateway.plane.swap(snapshot(routes, {"order": found}))
        await statuses(await gateway.client(), 400)
        assert len(canary.requests) == pytest.approx(40, abs=25)
        assert sum(requests([old, canary])) == 400


async def test_a_list_that_goes_empty_is_honoured_and_so_is_its_return() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        assert await statuses(client, 2) == {200: 2}
        gateway.serve(TURNS, {"order": []})
        assert await statuses(client, 2) == {503: 2}
        gateway.serve(TURNS, {"order": [upstream]})
        assert await statuses(client, 2) == {200: 2}


async def test_the_load_of_a_request_in_progress_is_known_over_swaps() -> None:
    release = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        if exchange.request.target == "/orders/slow":
            await release.wait()
        await exchange.reply()

    routes = TURNS.replace("round_robin", "least_request")
    async with Upstream(slow) as one, Upstream(slow) as two, running_gateway(one, routes=routes) as gateway:
        first, second = await gateway.client(), await gateway.client()
        waiting = asyncio.ensure_future(first.get("/orders/slow"))  # noqa: TID251 - awaited below
        await one.until(lambda: len(one.requests) == 1)
        gateway.serve(routes, {"order": [one, two]})
        assert await statuses(second, 20) == {200: 20}
        assert requests([one, two]) == [1, 20]
        release.set()
        await waiting
        await statuses(second, 40)
        assert len(one.requests) > 1

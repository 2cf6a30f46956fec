"""Routes on the wire: what a service is asked for, by which of its versions, and what the client sees of it."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.gateway_client import Gateway, running_gateway
from support.gateway_snapshots import instance, snapshot
from support.gateway_upstream import Exchange, Upstream

TEMPLATED = """\
  - name: lines
    match: {path_template: "/orders/{id}/lines/{rest...}", methods: [GET]}
    service: order
    rewrite: {path: "/v2/{rest}/of/{id}", host: order.internal}
    request_headers: {remove: [X-Debug], set: {x-from: gateway}, add: {x-tag: b}}
    response_headers: {remove: [Server], set: {cache-control: no-store}}
"""


async def test_a_service_is_asked_for_what_the_route_says_and_sees_the_changes_it_asks_for() -> None:
    async with Upstream() as upstream, running_gateway(upstream, routes=TEMPLATED) as gateway:
        client = await gateway.client()
        fields = "X-Debug: 1\r\nx-debug: 2\r\nX-From: client\r\nX-Tag: a\r\n"
        answer = await client.get("/orders/a%2Fb/lines/1/2?full=%31&x=/{id}", fields)
        assert answer.status == 200
        [request] = upstream.requests
        assert request.target == "/v2/1/2/of/a%2Fb?full=%31&x=/{id}"
        assert request.field("host") == "order.internal"
        assert request.field("x-forwarded-host") == "shop"
        assert request.field("x-from") == "gateway"
        assert request.field("x-debug") is None
        assert [value for name, value in request.fields if name == "x-tag"] == ["a", "b"]


@pytest.mark.parametrize("chunked", [False, True], ids=["in one piece", "in chunks"])
async def test_an_answer_is_changed_on_its_way_and_its_body_is_not(*, chunked: bool) -> None:
    async def answer(exchange: Exchange) -> None:
        if chunked:
            head = b"HTTP/1.1 200 OK\r\nServer: x\r\nCache-Control: public\r\nTransfer-Encoding: chunked\r\n\r\n"
            await exchange.send(head + b"5\r\nhello\r\n0\r\n\r\n")
        else:
            await exchange.reply(b"hello", fields=b"Server: x\r\nCache-Control: public\r\ncache-control: private\r\n")

    async with Upstream(answer) as upstream, running_gateway(upstream, routes=TEMPLATED) as gateway:
        client = await gateway.client()
        for _ in range(2):
            answered = await client.get("/orders/1/lines/1")
            assert answered.body == b"hello"
            assert (answered.field("cache-control"), answered.field("server")) == ("no-store", None)


async def test_what_the_gateway_answers_itself_is_its_own() -> None:
    async with Upstream() as upstream, running_gateway(upstream, routes=TEMPLATED) as gateway:
        gateway.plane.swap(snapshot(TEMPLATED))
        answer = await (await gateway.client()).get("/orders/1/lines/1")
        assert (answer.status, answer.field("cache-control")) == (503, None)
        assert upstream.requests == []


QUERIES = """\
  - {name: full, match: {path: /orders, query: {full: "1"}}, service: order, rewrite: {path_prefix: /full}}
  - {name: web, match: {path: /orders, headers: {x-channel: {prefix: web}}}, service: order, rewrite: {path_prefix: /web}}
  - {name: rest, match: {path_prefix: /}, service: order}
"""  # noqa: E501 - a document


async def test_requests_are_told_apart_by_query_and_header() -> None:
    async with Upstream() as upstream, running_gateway(upstream, routes=QUERIES) as gateway:
        client = await gateway.client()
        for path, fields in (
            ("/orders?a=b&full=1", ""), ("/orders?full=11", ""), ("/orders", "X-Channel: web2\r\n"), ("/orders/", ""),
        ):  # fmt: skip
            assert (await client.get(path, fields)).status == 200
        assert [request.target for request in upstream.requests] == [
            "/full?a=b&full=1",
            "/orders?full=11",
            "/web",
            "/orders/",
        ]


async def test_a_path_that_is_routed_for_other_methods_only_says_for_which() -> None:
    routes = QUERIES.replace("{path_prefix: /}", '{path_template: "/{x}", methods: [PUT, DELETE]}')
    async with Upstream() as upstream, running_gateway(upstream, routes=routes) as gateway:
        answer = await (await gateway.client()).get("/other")
        assert (answer.status, answer.field("allow")) == (405, "DELETE, PUT")


CANARY = """\
  - name: orders
    match: {path_prefix: /orders}
    split: [{service: order, version: v1, weight: %d}, {service: order, version: v2, weight: %d}]
    split_key: header:X-User
"""


@asynccontextmanager
async def canary(first: int, second: int) -> AsyncIterator[tuple[Gateway, Upstream, Upstream]]:
    """Two versions of a service behind a split with these weights."""
    async with Upstream() as one, Upstream() as two, running_gateway(one) as gateway:
        weigh(gateway, first, second, one, two)
        yield gateway, one, two


def weigh(gateway: Gateway, first: int, second: int, one: Upstream, two: Upstream) -> None:
    instances = [
        instance("order", "order-1", one.port, version="v1"), instance("order", "order-2", two.port, version="v2"),
    ]  # fmt: skip
    gateway.plane.swap(snapshot(CANARY % (first, second), {"order": instances}))


async def users_of(gateway: Gateway, upstream: Upstream) -> set[str]:
    """Of two hundred users, those that `upstream` gets now."""
    client = await gateway.client()
    before = len(upstream.requests)
    for number in range(200):
        assert (await client.get(fields=f"X-User: u{number}\r\n")).status == 200
    return {request.field("x-user") or "" for request in upstream.requests[before:]}


async def test_a_canary_that_grows_keeps_its_users_and_wins_others() -> None:
    async with canary(80, 20) as (gateway, one, two):
        had = await users_of(gateway, two)
        assert await users_of(gateway, two) == had
        assert 20 <= len(had) <= 60
        weigh(gateway, 60, 40, one, two)
        has = await users_of(gateway, two)
        assert had < has
        weigh(gateway, 0, 1, one, two)
        assert len(await users_of(gateway, two)) == 200
        weigh(gateway, 1, 0, one, two)
        assert await users_of(gateway, two) == set()


async def test_requests_without_the_key_of_a_split_are_spread() -> None:
    async with canary(1, 1) as (gateway, one, two):
        client = await gateway.client()
        for _ in range(100):
            assert (await client.get()).status == 200
        counted = Counter({"v1": len(one.requests), "v2": len(two.requests)})
        assert counted.total() == 100
        assert min(counted.values()) >= 20


async def test_the_share_of_a_version_that_is_not_there_goes_to_no_other() -> None:
    async with Upstream() as one, running_gateway(one) as gateway:
        instances = [instance("order", "order-1", one.port, version="v1")]
        gateway.plane.swap(snapshot(CANARY % (0, 1), {"order": instances}))
        answer = await (await gateway.client()).get()
        assert (answer.status, b"no-endpoint" in answer.body) == (503, True)
        assert one.requests == []

"""Rate limit and circuit breaker in the data plane, on sockets, by a clock that the test drives."""

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from quorate_core.clock import ManualClock
from quorate_gateway.proxy.plane import DataPlane
from quorate_gateway.routes import parse_routes
from quorate_gateway.snapshot import Revisions, build_snapshot
from quorate_resilience import BreakerState, CircuitBreaker
from support.gateway_client import Answer, Client, Gateway, running_gateway
from support.gateway_snapshots import instance
from support.gateway_upstream import Exchange, Handler, Upstream, say_hello, unused_port

LIMITED = "  - {name: orders, match: {path_prefix: /orders}, service: order, rate_limit: {%s}}\n"
ROUTE = "  - {name: orders, match: {path_prefix: /orders}, service: order, timeout_ms: 3000, idle_timeout_ms: 5000%s}\n"
CALLS_MIN, SLOW_S, OPEN_S, PROBES = 10, 1.0, 5.0, 5
GET = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"


def rule(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["rule"]


def breaker(gateway: Gateway) -> CircuitBreaker:
    found = gateway.plane.snapshot.routes[0].breaker
    assert found is not None
    return found


def serve(plane: DataPlane, routes: str, ports: Sequence[int]) -> None:
    """Swap as the control does: with what was served before."""
    instances = [instance("order", f"order-{number}", port) for number, port in enumerate(ports)]
    document = parse_routes(f"routes:\n{routes}")
    plane.swap(build_snapshot(document, lambda _service: instances, Revisions(1, 1, 1), plane.snapshot))


def pass_time(gateway: Gateway, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    gateway.plane.sweep()


async def fail(exchange: Exchange) -> None:
    await exchange.read_body()
    await exchange.reply(b"broken", "500 Internal Server Error")


async def never(exchange: Exchange) -> None:
    await exchange.until_closed()


class Held:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.released.wait()
        await exchange.reply()


@asynccontextmanager
async def protected(
    handler: Handler = say_hello, options: str = "", routes: str | None = None
) -> AsyncIterator[tuple[Gateway, Upstream, ManualClock]]:
    clock = ManualClock()
    async with (
        Upstream(handler) as upstream,
        running_gateway(upstream, routes=routes or ROUTE % options, clock=clock) as gateway,
    ):
        yield gateway, upstream, clock


async def in_flight(gateway: Gateway, upstream: Upstream, count: int) -> list[Client]:
    """So many clients whose requests have reached the upstream."""
    clients, before = [await gateway.client() for _ in range(count)], len(upstream.requests)
    for client in clients:
        await client.send(GET)
    await upstream.until(lambda: len(upstream.requests) == before + count)
    return clients


async def opened(gateway: Gateway, upstream: Upstream) -> Client:
    """Let the breaker open by failing answers; afterwards the upstream is well again."""
    upstream.handler = fail
    client = await gateway.client()
    assert [(await client.get()).status for _ in range(CALLS_MIN)] == [500] * CALLS_MIN
    assert breaker(gateway).state is BreakerState.OPEN
    upstream.handler = say_hello
    return client


# The rate limit.


async def test_over_the_limit_a_request_gets_429_with_its_limit_and_the_upstream_is_not_asked() -> None:
    routes = LIMITED % "requests_per_second: 0.5, burst: 2"
    async with protected(routes=routes) as (gateway, upstream, clock):
        client = await gateway.client()
        assert [(await client.get()).field("ratelimit") for _ in range(2)] == ['"orders";r=1;t=2', '"orders";r=0;t=4']
        limited = await client.get()
        assert limited.status == 429
        assert limited.field("content-type") == "application/problem+json"
        assert limited.field("retry-after") == "2"
        assert limited.field("ratelimit-policy") == '"orders";q=2;w=4'
        assert limited.field("ratelimit") == '"orders";r=0;t=2'
        assert json.loads(limited.body) == {
            "type": "urn:quorate:problem:rate-limited", "title": "Too Many Requests", "status": 429,
            "detail": "rate_limit of this route is 0.5 requests a second, 2 at once, by route",
            "rule": "rate-limited", "retry": "safe", "route": "orders", "violated-policies": ["orders"],
            "request_id": limited.field("x-request-id"),
        }  # fmt: skip
        clock.advance(1.9)
        assert (await client.get()).status == 429
        clock.advance(0.1)
        assert (await client.get()).status == 200
        assert len(upstream.requests) == 3
        assert gateway.plane.counters.routes["orders"].ended == [0, 0, 3, 0, 2, 0]


async def test_every_form_of_answer_says_what_is_left() -> None:
    async def answer(exchange: Exchange) -> None:
        chunked = exchange.request.target.endswith("chunked")
        if chunked:
            await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        else:
            await exchange.reply(fields=b'Keep-Alive: timeout=5\r\nRateLimit: "own";r=1\r\n')

    async with protected(answer, routes=LIMITED % "requests_per_second: 10") as (gateway, _, _):
        client = await gateway.client()
        assert (await client.get("/orders/chunked")).field("ratelimit") == '"orders";r=9;t=1'
        fields = (await client.get()).fields  # the upstream's own is a further item of the list
        assert [value for name, value in fields if name == "ratelimit"] == ['"own";r=1', '"orders";r=8;t=1']
        assert ("ratelimit", '"orders";r=7;t=1') in (await client.get(method="HEAD")).fields
        await client.send(b"GET /orders HTTP/1.0\r\n\r\n")
        assert b'\r\nratelimit: "orders";r=6;t=1\r\n' in await client.until(b"hello")
        serve(gateway.plane, LIMITED % "requests_per_second: 10", [])
        unrouted = await (await gateway.client()).get()
        assert rule(unrouted) == (503, "no-endpoint")
        assert unrouted.field("ratelimit") == '"orders";r=5;t=1'


async def test_keys_are_limited_apart_and_those_without_one_key_together() -> None:
    routes = LIMITED % "requests_per_second: 0.1, burst: 1, key: 'header:X-Api-Key'"
    async with protected(routes=routes) as (gateway, upstream, _):
        client = await gateway.client()

        async def status(*values: str) -> int:
            return (await client.get(fields="".join(f"x-api-KEY: {value}\r\n" for value in values))).status

        assert [await status("a"), await status("b"), await status("a"), await status(" a  ")] == [200, 200, 429, 429]
        assert [await status(), await status(), await status("c", "a"), await status("d", "e")] == [200, 429, 429, 429]
        assert [await status("k" * 5_000), await status("k" * 5_000), await status("k" * 5_001)] == [200, 429, 200]
        assert len(upstream.requests) == 5


async def test_a_client_is_known_by_its_address_over_all_its_connections() -> None:
    routes = LIMITED % "requests_per_second: 0.1, burst: 1, key: client"
    async with protected(routes=routes) as (gateway, _, _):
        assert (await (await gateway.client()).get()).status == 200
        again = await (await gateway.client()).get(fields="X-Forwarded-For: 192.0.2.1\r\n")
        assert rule(again) == (429, "rate-limited")


async def test_pipelined_requests_over_the_limit_are_answered_in_their_order() -> None:
    async with protected(routes=LIMITED % "requests_per_second: 0.1, burst: 3") as (gateway, upstream, _):
        client = await gateway.client()
        await client.send(GET * 400)
        answers = [await client.answer() for _ in range(400)]
        assert [answer.status for answer in answers] == [200] * 3 + [429] * 397
        assert len(upstream.requests) == 3


async def test_pipelined_requests_for_which_there_is_no_endpoint_do_not_fill_the_stack() -> None:
    async with running_gateway() as gateway:
        client = await gateway.client()
        await client.send(GET * 1_000)
        answers = [await client.answer() for _ in range(1_000)]
        assert {rule(answer) for answer in answers} == {(503, "no-endpoint")}


async def test_a_limited_request_whose_body_has_not_come_ends_the_connection() -> None:
    async with protected(routes=LIMITED % "requests_per_second: 0.1, burst: 1") as (gateway, _, _):
        client = await gateway.client()
        assert (await client.post(b"x")).status == 200
        assert (await client.post(b"x")).status == 429  # it had come whole
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.field("connection")) == (429, "close")


# The circuit breaker.


async def test_a_failing_upstream_is_not_asked_any_more_and_the_answer_names_the_rule_at_once() -> None:
    async with protected() as (gateway, upstream, clock):
        client = await opened(gateway, upstream)
        clock.advance(1.5)
        broken = await client.get()
        assert rule(broken) == (503, "circuit-open")
        assert broken.field("content-type") == "application/problem+json"
        assert broken.field("retry-after") == "4"
        body = json.loads(broken.body)
        assert (body["route"], body["retry"]) == ("orders", "safe")
        assert "open for 3.5 s more; opened by 10 calls, 10 failed, 0 slow" in body["detail"]
        assert len(upstream.requests) == CALLS_MIN
        assert gateway.plane.counters.routes["orders"].ended == [0, 0, 0, 0, 0, CALLS_MIN + 1]


async def test_it_closes_by_itself_after_its_probes() -> None:
    async with protected() as (gateway, upstream, clock):
        client = await opened(gateway, upstream)
        clock.advance(OPEN_S)
        assert [(await client.get()).status for _ in range(PROBES - 1)] == [200] * (PROBES - 1)
        assert breaker(gateway).state is BreakerState.HALF_OPEN
        assert (await client.get()).status == 200
        assert breaker(gateway).state is BreakerState.CLOSED
        assert breaker(gateway).entered[BreakerState.OPEN] == 1


async def test_half_open_exactly_five_of_many_concurrent_requests_reach_the_upstream() -> None:
    async with protected() as (gateway, upstream, clock):
        await opened(gateway, upstream)
        clock.advance(OPEN_S)
        upstream.handler = held = Held()
        probes = await in_flight(gateway, upstream, PROBES)
        for _ in range(20):
            assert rule(await (await gateway.client()).get()) == (503, "circuit-open")
        assert len(upstream.requests) == CALLS_MIN + PROBES
        held.released.set()
        assert [(await probe.answer()).status for probe in probes] == [200] * PROBES
        assert (await (await gateway.client()).get()).status == 200


async def test_a_client_that_leaves_gives_its_probe_back() -> None:
    async with protected() as (gateway, upstream, clock):
        await opened(gateway, upstream)
        clock.advance(OPEN_S)
        upstream.handler = never
        probes = await in_flight(gateway, upstream, PROBES)
        for probe in probes:
            probe.reset()
        await upstream.until(lambda: upstream.open_connections == 0)
        upstream.handler = say_hello
        client = await gateway.client()
        assert [(await client.get()).status for _ in range(PROBES + 1)] == [200] * (PROBES + 1)
        assert breaker(gateway).entered[BreakerState.OPEN] == 1


async def test_calls_are_slow_when_they_pass_the_mark_while_they_still_run() -> None:
    async with protected(Held()) as (gateway, upstream, clock):
        clients = await in_flight(gateway, upstream, CALLS_MIN)
        pass_time(gateway, clock, SLOW_S - 0.01)
        assert breaker(gateway).state is BreakerState.CLOSED
        pass_time(gateway, clock, 0.01)
        assert breaker(gateway).state is BreakerState.OPEN
        assert rule(await (await gateway.client()).get()) == (503, "circuit-open")
        assert isinstance(upstream.handler, Held)
        upstream.handler.released.set()
        assert [(await client.answer()).status for client in clients] == [200] * CALLS_MIN
        assert breaker(gateway).state is BreakerState.OPEN
        assert breaker(gateway).counts(clock.monotonic_s()) == (CALLS_MIN, 0, CALLS_MIN)


async def test_a_stream_whose_head_came_in_time_is_not_slow() -> None:
    go_on = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await go_on.wait()
        await exchange.send(b"0\r\n\r\n")

    async with protected(stream) as (gateway, upstream, clock):
        clients = await in_flight(gateway, upstream, CALLS_MIN)
        for client in clients:
            await client.until(b"x\r\n")
        pass_time(gateway, clock, SLOW_S)
        assert breaker(gateway).counts(clock.monotonic_s()) == (CALLS_MIN, 0, 0)
        go_on.set()
        for client in clients:
            await client.until(b"0\r\n\r\n")
        assert breaker(gateway).counts(clock.monotonic_s()) == (CALLS_MIN, 0, 0)


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def half_answer(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    exchange.close()


async def nonsense(exchange: Exchange) -> None:
    await exchange.send(b"SSH-2.0-nonsense\r\n\r\n")


@pytest.mark.parametrize("handler", [fail, reset, half_answer, nonsense], ids=lambda handler: handler.__name__)
async def test_what_an_upstream_does_wrong_is_a_failure(handler: Handler) -> None:
    async with protected(handler, ", retry: {attempts: 0}") as (gateway, _, clock):
        for _ in range(CALLS_MIN):
            client = await gateway.client()
            await client.send(GET)
            try:
                await client.rest() if handler is half_answer else await client.answer()
            except ConnectionResetError:
                assert handler is half_answer
        assert breaker(gateway).state is BreakerState.OPEN
        assert breaker(gateway).counts(clock.monotonic_s()) == (CALLS_MIN, CALLS_MIN, 0)


async def test_an_upstream_that_cannot_be_reached_is_a_failure() -> None:
    async with running_gateway(unused_port(), routes=ROUTE % "") as gateway:
        client = await gateway.client()
        answers = [rule(await client.get()) for _ in range(CALLS_MIN + 1)]
        assert answers == [(502, "upstream-unreachable")] * CALLS_MIN + [(503, "circuit-open")]


async def test_an_upstream_that_is_out_of_time_is_a_failure() -> None:
    async with protected(never, ", circuit_breaker: {slow_call_ms: 60000}") as (gateway, upstream, clock):
        clients = await in_flight(gateway, upstream, CALLS_MIN)
        pass_time(gateway, clock, 3)
        assert [rule(await client.answer()) for client in clients] == [(504, "upstream-timeout")] * CALLS_MIN
        assert breaker(gateway).counts(clock.monotonic_s()) == (CALLS_MIN, CALLS_MIN, 0)


async def test_what_the_client_does_wrong_counts_as_nothing_and_what_is_not_found_as_an_answer() -> None:
    async def not_found(exchange: Exchange) -> None:
        await exchange.reply(b"", "404 Not Found")

    async with protected(not_found) as (gateway, upstream, clock):
        client = await gateway.client()
        assert [(await client.get()).status for _ in range(CALLS_MIN)] == [404] * CALLS_MIN
        assert breaker(gateway).counts(clock.monotonic_s()) == (CALLS_MIN, 0, 0)
        upstream.handler = say_hello
        for body in (b"zz\r\n", b"5\r\nhelloXX"):
            client = await gateway.client()
            await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
            assert rule(await client.answer()) == (400, "bad-chunk")
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nx")
        await gateway.until(lambda: gateway.plane.counters.routes["orders"].active == 1)
        client.reset()
        await gateway.until(lambda: gateway.plane.counters.routes["orders"].active == 0)
        serve(gateway.plane, ROUTE % "", [])
        assert rule(await (await gateway.client()).get()) == (503, "no-endpoint")
        assert breaker(gateway).counts(clock.monotonic_s()) == (CALLS_MIN, 0, 0)


async def test_a_client_that_spoils_its_body_while_it_is_answered_counts_as_nothing() -> None:
    async def answer_early(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await exchange.until_closed()

    async with protected(answer_early) as (gateway, _, clock):
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await client.until(b"half")
        await client.send(b"zz\r\n")
        with pytest.raises((EOFError, ConnectionResetError)):
            await client.until(b"never")
        assert gateway.plane.counters.truncated == 1
        assert breaker(gateway).counts(clock.monotonic_s()) == (0, 0, 0)


async def test_each_change_of_a_breaker_is_logged_also_of_one_that_goes() -> None:
    def changes(entries: Sequence[MutableMapping[str, Any]]) -> list[tuple[str, str]]:
        return [(one["log_level"], one["state"]) for one in entries if one["event"] == "circuit_breaker"]

    async with protected() as (gateway, upstream, clock):
        with structlog.testing.capture_logs() as logged:
            client = await opened(gateway, upstream)
            pass_time(gateway, clock, OPEN_S)  # half-open by the time alone: nobody has asked
            assert breaker(gateway).state is BreakerState.HALF_OPEN
            assert changes(logged) == [("warning", "open"), ("info", "half-open")]
            for _ in range(PROBES):
                await client.get()
            serve(gateway.plane, OTHER, [upstream.port])
            assert changes(logged)[2:] == [("info", "closed")]
            assert [one["route"] for one in logged if one["event"] == "circuit_breaker"] == ["orders"] * 3


async def test_a_retry_that_succeeds_is_one_good_call() -> None:
    routes = ROUTE % ", balance: {policy: round_robin}"
    async with Upstream() as upstream, running_gateway(unused_port(), upstream, routes=routes) as gateway:
        client = await gateway.client()
        assert [(await client.get()).status for _ in range(CALLS_MIN)] == [200] * CALLS_MIN
        assert gateway.plane.counters.routes["orders"].retries > 0
        assert breaker(gateway).counts(gateway.plane.monotonic_s()) == (CALLS_MIN, 0, 0)


async def test_switched_off_nothing_is_broken() -> None:
    async with protected(fail, ", circuit_breaker: off") as (gateway, _, _):
        client = await gateway.client()
        assert {(await client.get()).status for _ in range(3 * CALLS_MIN)} == {500}


async def test_the_limit_comes_before_the_breaker_whose_answer_still_says_what_is_left() -> None:
    routes = ROUTE % ", rate_limit: {requests_per_second: 0.1, burst: 12}"
    async with protected(routes=routes) as (gateway, upstream, _):
        client = await opened(gateway, upstream)
        broken = await client.get()
        assert rule(broken) == (503, "circuit-open")
        assert broken.field("ratelimit") == '"orders";r=1;t=110'
        assert rule(await client.get()) == (503, "circuit-open")
        assert rule(await client.get()) == (429, "rate-limited")


# State and snapshots.

LIMIT_AND_BREAK = ", rate_limit: {requests_per_second: 0.1, burst: 20}"
OTHER = "  - {name: other, match: {path_prefix: /other}, service: order}\n"


async def test_what_does_not_concern_a_policy_does_not_reset_it() -> None:
    routes = ROUTE % LIMIT_AND_BREAK
    async with protected(routes=routes) as (gateway, upstream, _):
        client = await opened(gateway, upstream)
        changed = routes.replace("timeout_ms: 3000", "timeout_ms: 9000").replace("/orders", "/")
        for unrelated in (OTHER + routes, changed, routes):
            serve(gateway.plane, unrelated, [upstream.port, unused_port()])
            assert rule(await client.get()) == (503, "circuit-open")
        assert (await client.get()).field("ratelimit") == '"orders";r=6;t=140'


async def test_parameters_that_change_are_in_force_at_once_and_the_other_policy_goes_on() -> None:
    async with protected(routes=ROUTE % LIMIT_AND_BREAK) as (gateway, upstream, _):
        client = await opened(gateway, upstream)
        serve(gateway.plane, ROUTE % LIMIT_AND_BREAK.replace("burst: 20", "burst: 2"), [upstream.port])
        assert (await client.get()).field("ratelimit") == '"orders";r=1;t=10'
        assert rule(await client.get()) == (503, "circuit-open")
        assert rule(await client.get()) == (429, "rate-limited")
        serve(gateway.plane, ROUTE % ", circuit_breaker: {open_ms: 9000}", [upstream.port])
        answer = await client.get()
        assert (answer.status, answer.field("ratelimit")) == (200, None)


async def test_the_state_of_a_route_that_is_gone_is_gone() -> None:
    async with protected(routes=ROUTE % LIMIT_AND_BREAK) as (gateway, upstream, _):
        client = await opened(gateway, upstream)
        serve(gateway.plane, OTHER, [upstream.port])
        assert (await client.get()).status == 404
        serve(gateway.plane, ROUTE % LIMIT_AND_BREAK, [upstream.port])
        assert (await client.get()).field("ratelimit") == '"orders";r=19;t=10'


async def test_a_call_that_outlives_its_snapshot_settles_with_the_breaker_that_let_it_through() -> None:
    async with protected(Held(), ", circuit_breaker: {calls_min: 1}") as (gateway, upstream, clock):
        [client] = await in_flight(gateway, upstream, 1)
        former = breaker(gateway)
        serve(gateway.plane, ROUTE % "", [upstream.port])
        pass_time(gateway, clock, SLOW_S)
        assert former.state is BreakerState.OPEN
        assert breaker(gateway).counts(clock.monotonic_s()) == (0, 0, 0)
        assert isinstance(upstream.handler, Held)
        upstream.handler.released.set()
        assert (await client.answer()).status == 200

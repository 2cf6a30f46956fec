"""What metrics say of the policies, after real requests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from quorate_core.clock import ManualClock
from quorate_core.tasks import TaskOwner
from quorate_gateway.control import Control
from quorate_gateway.matching import CompileContext
from quorate_gateway.metrics import GatewayCollector
from quorate_gateway.policies.jwt_tokens import JwtVerifiers
from quorate_gateway.policies.key_source import RefreshTimes
from quorate_gateway.served import LocalPlane
from quorate_sdk import ControlPlane
from support.gateway_client import Gateway, running_gateway
from support.gateway_tokens import KeyServer, jwks, provider
from support.gateway_upstream import Exchange, Upstream

TURNS = "  - {name: orders, match: {path_prefix: /orders}, service: order, balance: {policy: round_robin}}\n"
NO_BUDGET = (
    "  - {name: orders, match: {path_prefix: /orders}, service: order, circuit_breaker: {enabled: false},"
    " retry: {attempts: 1, budget_percent: 0}}\n"
)
ONE_A_MINUTE = (
    "  - {name: orders, match: {path_prefix: /orders}, service: order,"
    " rate_limit: {algorithm: leaky_bucket, requests_per_second: 0.0167, queue: 10, queue_wait_ms: 60000}}\n"
)
OFTEN = RefreshTimes(interval_s=0.005, retry_s=0.002, retry_max_s=0.01)
ORDERS = {"route": "orders"}


class Metrics:
    """What a scrape of this gateway has."""

    def __init__(self, gateway: Gateway, control: Control) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(GatewayCollector(LocalPlane(gateway.plane), control))

    def __call__(self, name: str, labels: dict[str, str] | None = None) -> float | None:
        return self._registry.get_sample_value(f"quorate_gateway_{name}", labels or {})


@asynccontextmanager
async def scraped(gateway: Gateway, folder: Path, context: CompileContext | None = None) -> AsyncIterator[Metrics]:
    async with ControlPlane(["http://127.0.0.1:9"]) as control_plane:
        yield Metrics(gateway, Control(control_plane, "default", folder, gateway.plane.swap, context=context))


async def fail(exchange: Exchange) -> None:
    await exchange.reply(b"no", "500 Internal Server Error")


async def die(exchange: Exchange) -> None:
    exchange.reset()


async def test_an_endpoint_that_is_passed_over_is_counted_and_told_while_it_is(tmp_path: Path) -> None:
    clock = ManualClock()
    async with (
        Upstream(fail) as bad, Upstream() as good, Upstream() as well,
        running_gateway(bad, good, well, routes=TURNS, clock=clock) as gateway, scraped(gateway, tmp_path) as metric,
    ):  # fmt: skip
        client = await gateway.client()
        assert (metric("ejections_total"), metric("endpoints_ejected", {"service": "order"})) == (0, 0)
        for _ in range(15):
            await client.get()
        assert metric("endpoints", {"service": "order"}) == 3
        assert (metric("ejections_total"), metric("endpoints_ejected", {"service": "order"})) == (1, 1)
        clock.advance(10.0)
        assert (metric("ejections_total"), metric("endpoints_ejected", {"service": "order"})) == (1, 0)


async def test_tries_that_the_budget_does_not_allow_are_counted(tmp_path: Path) -> None:
    async with (
        Upstream(die) as one, Upstream(die) as two,
        running_gateway(one, two, routes=NO_BUDGET) as gateway, scraped(gateway, tmp_path) as metric,
    ):  # fmt: skip
        client = await gateway.client()
        for _ in range(30):
            assert (await client.get()).status == 502
        tried, refused = metric("retries_total", ORDERS), metric("retries_refused_total", ORDERS)
        assert tried is not None
        assert (len(one.requests) + len(two.requests), refused) == (30 + tried, 30 - tried)
        assert refused


async def test_requests_in_the_queue_of_a_leaky_bucket_are_told_while_they_wait(tmp_path: Path) -> None:
    async with (
        Upstream() as upstream, running_gateway(upstream, routes=ONE_A_MINUTE) as gateway,
        scraped(gateway, tmp_path) as metric,
    ):  # fmt: skip
        first, second = await gateway.client(), await gateway.client()
        assert (await first.get()).status == 200
        assert metric("rate_limit_waiting", ORDERS) == 0
        await second.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await gateway.until(lambda: metric("rate_limit_waiting", ORDERS) == 1)
        second.reset()
        await gateway.until(lambda: metric("rate_limit_waiting", ORDERS) == 0)


async def test_how_old_the_keys_of_a_provider_are_and_whether_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    staff = {"provider": "staff"}
    context = CompileContext(tokens=JwtVerifiers(times=OFTEN))
    async with (
        TaskOwner("test") as tasks, Upstream(KeyServer(jwks())) as server, running_gateway(server) as gateway,
        scraped(gateway, tmp_path, context) as metric,
    ):  # fmt: skip
        context.tokens.replace({"staff": provider(jwks_url=f"http://127.0.0.1:{server.port}/keys")})
        assert (metric("jwks_age_seconds", staff), metric("jwks_failing", staff)) == (None, 0)
        context.tokens.start(tasks)
        await gateway.until(lambda: metric("jwks_age_seconds", staff) is not None)
        assert (metric("jwks_failing", staff), metric("jwks_fetch_failures_total", staff)) == (0, 0)
        await server.stop()
        await gateway.until(lambda: metric("jwks_failing", staff) == 1)
        assert (metric("jwks_fetch_failures_total", staff) or 0) >= 1
        known = metric("jwks_age_seconds", staff)
        assert known is not None
        await gateway.until(lambda: (metric("jwks_age_seconds", staff) or 0) > known)

"""Limits in a real Redis: counted together, never waited for, and back by themselves."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from quorate_core.errors import SettingsError
from quorate_core.tasks import TaskOwner
from quorate_gateway.documents.limits import (
    FixedWindowLimit,
    LeakyBucketLimit,
    RouteRateLimit,
    SlidingWindowLimit,
    TokenBucketLimit,
)
from quorate_gateway.matching import CompileContext
from quorate_gateway.policies import shared_limit
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit import Checked, RouteLimit
from quorate_gateway.policies.shared_limit import BUDGET_S, Patience, SharedLimits, SharedRouteLimit
from quorate_gateway.proxy.framing import read_request_fields
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.routes import parse_routes
from quorate_gateway.snapshot import Revisions, build_snapshot
from support.gateway_client import Gateway, running_gateway
from support.gateway_snapshots import instance
from support.gateway_upstream import Upstream
from support.redis_server import RedisServer

FIELDS = read_request_fields(b"\r\nHost: shop")
HOUR_MS = 3_600_000
DUE_S = 15.0
"""Within which what happens by itself is to have happened."""
LATE_S = 0.5
"""A machine with more to do than cores may run us so much later than our timer was due."""

PATIENT = Patience(wait_s_max=DUE_S, silence_s_max=DUE_S)
"""For tests of what Redis says: it may have to wait for a core for longer than a request would for it."""

LIMITS: dict[str, RouteRateLimit] = {
    "token bucket": TokenBucketLimit(requests_per_second=0.01, burst=10, shared=True, key="client"),
    "fixed window": FixedWindowLimit(
        algorithm="fixed_window", requests=10, window_ms=24 * HOUR_MS, shared=True, key="client"
    ),
    "sliding window": SlidingWindowLimit(
        algorithm="sliding_window", requests=10, window_ms=HOUR_MS, shared=True, key="client"
    ),
    "leaky bucket": LeakyBucketLimit(
        algorithm="leaky_bucket", requests_per_second=0.01, queue=0, shared=True, key="client"
    ),
}


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


async def until(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(DUE_S):
        while not probe():  # noqa: ASYNC110 - what is waited for is plain state of the gateway
            await asyncio.sleep(0)


@asynccontextmanager
async def connected(url: str, *, up: bool = True, patience: Patience = PATIENT) -> AsyncIterator[SharedLimits]:
    failures: list[BaseException] = []
    async with TaskOwner("test", failures.append) as tasks:
        shared = SharedLimits(url, tasks, chance=random.Random(1), patience=patience)
        shared.start()
        try:
            if up:
                await until(lambda: shared.is_up)
            yield shared
        finally:
            await shared.close()
    assert failures == []


async def check(limit: RouteLimit, client: bytes = b"192.0.2.1") -> Checked | Refusal:
    answer = limit.check(FIELDS, Caller(client), time.monotonic())
    return await answer if isinstance(answer, asyncio.Future) else answer


def ask(limit: RouteLimit, client: bytes = b"192.0.2.1") -> "asyncio.Future[Checked | Refusal]":
    """One whose answer is not there at once."""
    answer = limit.check(FIELDS, Caller(client), time.monotonic())
    assert isinstance(answer, asyncio.Future)
    return answer


async def admitted(limit: RouteLimit, times: int, client: bytes = b"192.0.2.1") -> int:
    answers = await asyncio.gather(*(check(limit, client) for _ in range(times)))
    return sum(isinstance(answer, Checked) for answer in answers)


@pytest.mark.parametrize("name", LIMITS)
async def test_gateways_admit_together_what_one_would(redis: RedisServer, name: str) -> None:
    async with connected(redis.url) as one, connected(redis.url) as two:
        limits = [shared.limit("orders", LIMITS[name]) for shared in (one, two)]
        counts = await asyncio.gather(*(admitted(limit, 20) for limit in limits))
        assert sum(counts) == (1 if name == "leaky bucket" else 10)
        assert await admitted(limits[0], 1, b"192.0.2.2") == 1
        assert [limit.decided_locally for limit in limits] == [0, 0]


@pytest.mark.parametrize("name", LIMITS)
async def test_over_the_limit_the_answer_says_what_it_would_alone(redis: RedisServer, name: str) -> None:
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", LIMITS[name])
        first = await check(limit)
        await admitted(limit, 9)
        refusal = await check(limit)
    assert isinstance(first, Checked)
    assert first.answer_fields.startswith(b'\r\nratelimit: "orders";r=' + (b"0" if name == "leaky bucket" else b"9"))
    assert isinstance(refusal, Refusal)
    assert (refusal.rule, refusal.status) == ("rate-limited", 429)
    assert refusal.retry_after_s > 60
    assert [field for field, _ in refusal.fields] == ["ratelimit-policy", "ratelimit"]


async def test_many_questions_share_one_connection(redis: RedisServer) -> None:
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", TokenBucketLimit(requests_per_second=1e6, burst=1_000_000, shared=True))
        for _ in range(5):
            assert await admitted(limit, 500) == 500
        with redis.client() as client:
            assert len(client.client_list()) == 2, "the gateway's and this one"
        assert shared.in_flight == 0


async def test_a_paused_redis_costs_no_request_more_than_the_budget(redis: RedisServer) -> None:
    document = TokenBucketLimit(requests_per_second=0.01, burst=1_000, shared=True, local_share_percent=50)
    async with connected(redis.url, patience=Patience()) as shared:
        limit = shared.limit("orders", document)
        assert await admitted(limit, 1) == 1
        redis.pause()
        waited_s = []
        while shared.is_up:
            began_s = time.monotonic()
            assert isinstance(await check(limit), Checked)
            waited_s.append(time.monotonic() - began_s)
        assert max(waited_s) < BUDGET_S + LATE_S
        assert min(waited_s) <= BUDGET_S
        # Those that were late because this process was busy are no misses of Redis.
        missed = [one_s for one_s in waited_s if one_s < Patience().wait_s_max + shared_limit.OWN_PAUSE_S]
        assert len(missed) <= shared_limit.MISSES_MAX + 1, "one may be answered before it stands still"

        # From now on nobody asks, and so nobody waits; and what is admitted is the gateway's own share.
        assert not isinstance(limit.check(FIELDS, Caller(b""), time.monotonic()), asyncio.Future)
        assert len(waited_s) + 1 + await admitted(limit, 2_000) == 500
        redis.go_on()
        await until(lambda: shared.is_up)
        assert (shared.times_down, shared.down_reason) == (1, "")


async def test_a_killed_redis_is_noticed_at_once_and_a_new_one_is_found(redis: RedisServer) -> None:
    document = FixedWindowLimit(
        algorithm="fixed_window", requests=10, window_ms=24 * HOUR_MS, shared=True, local_share_percent=30
    )
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", document)
        assert await admitted(limit, 20) == 10
        redis.kill()
        await until(lambda: not shared.is_up)
        assert await admitted(limit, 20) == 3
        redis.start()
        await until(lambda: shared.is_up)
        assert await admitted(limit, 20) == 10


async def test_what_is_asked_when_the_connection_breaks_is_decided_here(redis: RedisServer) -> None:
    document = TokenBucketLimit(requests_per_second=0.01, burst=100, shared=True, local_share_percent=10)
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", document)
        redis.pause()
        asking = [ask(limit) for _ in range(50)]
        assert shared.in_flight == 50
        redis.kill()
        answers = await asyncio.gather(*asking)
        assert sum(isinstance(answer, Checked) for answer in answers) == 10
        assert limit.decided_locally == 50


async def test_silence_is_noticed_by_a_single_question(redis: RedisServer) -> None:
    async with connected(redis.url, patience=Patience()) as shared:
        limit = shared.limit("orders", LIMITS["token bucket"])
        redis.pause()
        assert isinstance(await ask(limit), Checked)
        await until(lambda: not shared.is_up)
        await until(lambda: shared.down_reason.startswith("silent for"))


async def test_what_is_no_redis_is_as_none() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            writer.write(b":nonsense\r\n" * 20)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connected(f"redis://127.0.0.1:{port}", up=False) as shared:
            await until(lambda: shared.times_down == 1)
            assert isinstance(await check(shared.limit("orders", LIMITS["token bucket"])), Checked)
            assert not shared.is_up


async def test_a_password_is_used_and_never_told(redis: RedisServer) -> None:
    with redis.client() as client:
        client.config_set("requirepass", "s3cret")
        async with connected(f"unix://:s3cret@{redis.socket}") as shared:
            assert await admitted(shared.limit("orders", LIMITS["token bucket"]), 20) == 10
        async with connected(f"unix://:wr0ng@{redis.socket}", up=False) as shared:
            await until(lambda: shared.times_down == 1)
            assert "wr0ng" not in shared.down_reason
            assert not shared.is_up


async def test_without_a_redis_from_the_start_the_own_share_counts(redis: RedisServer) -> None:
    redis.kill()
    document = SlidingWindowLimit(
        algorithm="sliding_window", requests=10, window_ms=HOUR_MS, shared=True, local_share_percent=1
    )
    async with connected(redis.url, up=False) as shared:
        limit = shared.limit("orders", document)
        assert await admitted(limit, 5) == 1
        assert "Redis is away, and 1 % of it are this gateway's" in limit.summary
        redis.start()
        await until(lambda: shared.is_up)
        assert await admitted(limit, 20) == 10


async def test_a_lost_script_is_loaded_again(redis: RedisServer) -> None:
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", LIMITS["fixed window"])
        with redis.client() as client:
            assert await admitted(limit, 1) == 1
            client.script_flush()
            assert await admitted(limit, 20) == 9
            assert client.script_exists(shared_limit.SCRIPTS[1].sha) == [True]
        assert (limit.decided_locally, shared.errors) == (0, 0)


async def test_a_redis_that_may_not_be_written_is_as_none(redis: RedisServer) -> None:
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", LIMITS["token bucket"])
        with redis.client() as client:
            client.config_set("maxmemory", "1")
            assert await admitted(limit, 20) == 5
            await until(lambda: shared.down_reason.startswith("Redis answers with an error"))
            # The probe writes too, so that it finds the same, and no request is asked to.
            await until(lambda: "OOM" in shared.down_reason and not shared.down_reason.startswith("Redis answers"))
            assert shared.times_down == 1
            client.config_set("maxmemory", "0")
        await until(lambda: shared.is_up)
        assert await admitted(limit, 20) == 10


async def test_the_questions_that_are_owed_are_bounded(redis: RedisServer) -> None:
    async with connected(redis.url, patience=Patience(DUE_S, DUE_S, in_flight_max=5)) as shared:
        limit = shared.limit("orders", TokenBucketLimit(requests_per_second=1_000, shared=True))
        answers = [limit.check(FIELDS, Caller(b""), time.monotonic()) for _ in range(8)]
        assert [isinstance(answer, asyncio.Future) for answer in answers] == [True] * 5 + [False] * 3
        assert limit.decided_locally == 3
        await until(lambda: shared.in_flight == 0)


async def test_a_shared_queue_lets_go_at_its_rate_whatever_gateway_they_came_by(redis: RedisServer) -> None:
    document = LeakyBucketLimit(algorithm="leaky_bucket", requests_per_second=20, queue=4, shared=True)
    async with connected(redis.url) as one, connected(redis.url) as two:
        limits = [shared.limit("orders", document) for shared in (one, two)]
        left_s: list[float] = []

        async def pass_by(limit: RouteLimit) -> None:
            if isinstance(await check(limit), Checked):
                left_s.append(time.monotonic())

        await asyncio.gather(*(pass_by(limits[number % 2]) for number in range(12)))
        assert len(left_s) >= 5
        # When we hear of the first may be late; by less than half of the time between two.
        assert max(left_s) - min(left_s) >= (len(left_s) - 1.5) / 20
        assert [limit.waiting for limit in limits] == [0, 0]


async def test_who_leaves_a_shared_queue_gives_the_place_back(redis: RedisServer) -> None:
    document = LeakyBucketLimit(
        algorithm="leaky_bucket", requests_per_second=0.1, queue=2, queue_wait_ms=60_000, shared=True
    )
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", document)
        await check(limit)
        places = [ask(limit) for _ in range(2)]
        await until(lambda: limit.waiting == 2)
        assert isinstance(await check(limit), Refusal)
        places[0].cancel()
        await until(lambda: limit.waiting == 1)
        another = ask(limit)
        await until(lambda: limit.waiting == 2)
        assert isinstance(await check(limit), Refusal)
        for place in (places[1], another):
            place.cancel()
        await until(lambda: limit.waiting == 0 and shared.in_flight == 0)


async def test_who_leaves_before_redis_has_given_a_place_gives_it_back_too(redis: RedisServer) -> None:
    document = LeakyBucketLimit(
        algorithm="leaky_bucket", requests_per_second=0.1, queue=1, queue_wait_ms=60_000, shared=True
    )
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", document)
        await check(limit)
        ask(limit).cancel()
        await until(lambda: shared.answered == 2 and shared.in_flight == 0)
        place = ask(limit)
        await until(lambda: limit.waiting == 1)
        place.cancel()
        await until(lambda: limit.waiting == 0 and shared.in_flight == 0)


async def test_who_leaves_while_redis_is_asked_hears_nothing(redis: RedisServer) -> None:
    async with connected(redis.url) as shared:
        limit = shared.limit("orders", LIMITS["token bucket"])
        ask(limit).cancel()
        await until(lambda: shared.in_flight == 0)
        assert await admitted(limit, 20) == 9


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", ""])
async def test_a_url_that_is_none_is_named_without_being_shown(url: str) -> None:
    async with TaskOwner("test") as tasks:
        with pytest.raises(SettingsError, match="redis://"):
            SharedLimits(url, tasks)


# Through the data plane.

ROUTE = "  - {name: orders, match: {path_prefix: /orders}, service: order, rate_limit: {%s}}\n"
POST = b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 6\r\n\r\nbody %d"


def serve(gateway: Gateway, upstream: Upstream, options: str, context: CompileContext) -> None:
    document = parse_routes("routes:\n" + ROUTE % options)
    instances = [instance("order", "order-1", upstream.port)]
    gateway.plane.swap(
        build_snapshot(document, lambda _service: instances, Revisions(1, 1, 1), gateway.plane.snapshot, context)
    )


async def ask_for(gateway: Gateway, times: int) -> tuple[list[int], list[float]]:
    """The statuses of so many requests of one connection, and how long each took."""
    client, statuses, took_s = await gateway.client(), [], []
    for _ in range(times):
        began_s = time.monotonic()
        statuses.append((await client.get()).status)
        took_s.append(time.monotonic() - began_s)
    return statuses, took_s


async def test_while_redis_is_paused_killed_and_comes_back_no_request_fails_or_waits(redis: RedisServer) -> None:
    options = "requests_per_second: 0.01, burst: 600, shared: true, local_share_percent: 50"
    async with (
        connected(redis.url, patience=Patience()) as shared,
        Upstream() as upstream,
        running_gateway(upstream) as gateway,
    ):
        serve(gateway, upstream, options, CompileContext(shared_limits=shared))

        async def load() -> list[int]:
            results = await asyncio.gather(*(ask_for(gateway, 25) for _ in range(4)))
            assert max(max(took_s) for _, took_s in results) < BUDGET_S + LATE_S
            return [status for statuses, _ in results for status in statuses]

        assert await load() == [200] * 100
        redis.pause()
        assert await load() == [200] * 100
        await until(lambda: not shared.is_up)
        redis.kill()
        assert await load() == [200] * 100
        redis.start()
        await until(lambda: shared.is_up)
        assert await load() == [200] * 100
        limit = gateway.plane.snapshot.routes[0].limit
        assert isinstance(limit, SharedRouteLimit)
        assert 200 <= limit.decided_locally < 300


async def test_a_request_waits_in_the_queue_with_its_body_and_leaves_it_with_its_client() -> None:
    options = "algorithm: leaky_bucket, requests_per_second: 20, queue: 2"
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        serve(gateway, upstream, options, CompileContext())
        clients = [await gateway.client() for _ in range(4)]
        limit = gateway.plane.snapshot.routes[0].limit
        assert limit is not None
        assert (await clients[0].post(b"first")).status == 200
        for number in (1, 2):
            await clients[number].send(POST % number)
        await gateway.until(lambda: limit.waiting == 2)
        assert (await clients[3].get()).status == 429
        clients[1].reset()
        await gateway.until(lambda: limit.waiting == 1)
        answer = await clients[2].answer()
        assert (answer.status, answer.field("ratelimit")) == (200, '"orders";r=0;t=1')
        assert [request.body for request in upstream.requests] == [b"first", b"body 2"]

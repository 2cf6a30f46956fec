"""The limiters' scripts in a real Redis: each decides as the limiter that it is the script of."""

import math
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quorate_resilience.adapters import redis_limiter
from quorate_resilience.adapters.redis_limiter import MICROSECONDS, Script, ScriptedLimit, decision, scripted
from quorate_resilience.limiters import Decision, FixedWindow, LeakyBucket, SlidingWindow, TabledTokenBucket
from redis import Redis
from support.redis_server import RedisServer

GIVEN_TIME = "local now = tonumber(ARGV[#ARGV])\n"
"""In the server's place, so that a test drives the clock."""
Limiter = TabledTokenBucket | FixedWindow | SlidingWindow | LeakyBucket

LIMITERS: dict[str, Callable[[], Limiter]] = {
    "token bucket": lambda: TabledTokenBucket(3.0, 4),
    "slow token bucket": lambda: TabledTokenBucket(0.07, 2),
    "fixed window": lambda: FixedWindow(5, 0.7),
    "sliding window": lambda: SlidingWindow(5, 1.0, 4),
    "sliding window of many": lambda: SlidingWindow(3, 0.7, 14),
    "leaky bucket": lambda: LeakyBucket(4.0, 5, 10.0),
    "leaky bucket of little patience": lambda: LeakyBucket(3.0, 50, 1.1),
    "leaky bucket without a queue": lambda: LeakyBucket(5.0, 0, 1.0),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(scope="module")
def client(server: RedisServer) -> Iterator[Redis]:
    with server.client() as connected:
        yield connected


def timed(limit: ScriptedLimit) -> Script:
    body = limit.script.text.removeprefix(redis_limiter.SERVER_TIME)
    return Script(body.removeprefix(redis_limiter.RECORD), GIVEN_TIME)


def ask(client: Redis, limit: ScriptedLimit, now_us: int, cost: int) -> Decision:
    arguments = (*limit.call(cost), b"%d" % now_us)
    answered = decision(limit, client.eval(timed(limit).text, 1, b"key", *arguments))
    assert answered is not None
    assert answered.now_s == now_us / MICROSECONDS
    return answered.decision


def assert_alike(client: Redis, limiter: Limiter, start_us: int, steps: list[tuple[int, int]]) -> None:
    """Each step: the microseconds that pass, and a cost."""
    limit, now_us = scripted(limiter), start_us
    client.flushall()
    for passed_us, cost in steps:
        now_us += passed_us
        ours, theirs = limiter.decide(b"key", now_us / MICROSECONDS, cost), ask(client, limit, now_us, cost)
        assert (theirs.admitted, theirs.remaining, theirs.limit) == (ours.admitted, ours.remaining, ours.limit)
        for told, expected in zip(theirs[2:4] + theirs[5:], ours[2:4] + ours[5:], strict=True):
            # The answer is in whole microseconds, rounded up.
            assert told == expected or math.isclose(told, expected, abs_tol=2e-6)


@pytest.mark.parametrize("name", LIMITERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(-100_000, 900_000), st.integers(0, 6)), max_size=40))
def test_a_script_decides_as_its_limiter(client: Redis, name: str, steps: list[tuple[int, int]]) -> None:
    assert_alike(client, LIMITERS[name](), 10_000_000, steps)


@pytest.mark.parametrize("name", ["token bucket", "sliding window", "leaky bucket"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(-1, 8), st.integers(0, 6)), max_size=40))
def test_it_does_at_the_times_of_a_server_too(client: Redis, name: str, steps: list[tuple[int, int]]) -> None:
    """Its seconds are so many that a float has no microseconds beside them: eighths of a second, which it has."""
    eighths = [(passed * 125_000, cost) for passed, cost in steps]
    assert_alike(client, LIMITERS[name](), 1_790_000_000_000_000, eighths)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.sampled_from([4.0, 3.0, 0.5]),
    steps=st.lists(st.tuples(st.integers(0, 400_000), st.booleans(), st.integers(0, 9)), max_size=40),
)
def test_places_are_given_back_alike(client: Redis, rate: float, steps: list[tuple[int, bool, int]]) -> None:
    """Each step: the microseconds that pass, whether somebody comes or one of those who wait leaves, and which."""
    limiter, now_us = LeakyBucket(rate, 5, 60.0), 10_000_000
    limit = scripted(limiter)
    give_back = timed(ScriptedLimit(redis_limiter.GIVE_BACK, limit.arguments, limit.limit))
    client.flushall()
    waiting: list[tuple[float, float]] = []
    """Departures by our account and by that of the script."""
    for passed_us, comes, which in steps:
        now_us += passed_us
        now_s = now_us / MICROSECONDS
        if comes:
            ours, theirs = limiter.decide(b"key", now_s), ask(client, limit, now_us, 1)
            assert (theirs.admitted, theirs.remaining) == (ours.admitted, ours.remaining)
            assert math.isclose(theirs.delay_s, ours.delay_s, abs_tol=4e-6)
            if ours.delay_s:
                waiting.append((now_s + ours.delay_s, now_s + theirs.delay_s))
        elif waiting:
            ours_s, theirs_s = waiting.pop(which % len(waiting))
            limiter.give_back(b"key", ours_s, now_s)
            client.eval(give_back.text, 1, b"key", *limit.give_back_call(theirs_s), b"%d" % now_us)


def test_in_redis_too_gaps_are_given_out_the_earliest_first(client: Redis) -> None:
    limit = scripted(LeakyBucket(rate_per_s=1, queue=5, queue_wait_s=10))
    give_back = timed(ScriptedLimit(redis_limiter.GIVE_BACK, limit.arguments, limit.limit))
    client.flushall()
    for _ in range(6):
        ask(client, limit, 10_000_000, 1)
    for departure_s in (13.0, 11.0):
        client.eval(give_back.text, 1, b"key", *limit.give_back_call(departure_s), b"10000000")
    assert [ask(client, limit, 10_000_000, 1).delay_s for _ in range(2)] == [1.0, 3.0]
    assert not ask(client, limit, 10_000_000, 1).admitted


def test_by_default_the_time_is_the_servers(client: Redis) -> None:
    limit = scripted(FixedWindow(2, 3_600.0))
    client.flushall()
    seconds, micros = client.time()
    answered = decision(limit, client.eval(limit.script.text, 1, b"key", *limit.call()))
    assert answered is not None
    assert 0 <= answered.now_s - (seconds + micros / MICROSECONDS) < 5
    assert answered.decision.admitted


def test_what_is_worth_nothing_any_more_is_not_kept(client: Redis) -> None:
    client.flushall()
    for number, make in enumerate(LIMITERS.values()):
        limit = scripted(make())
        client.eval(limit.script.text, 1, b"%d" % number, *limit.call())
        answered = decision(limit, client.eval(limit.script.text, 1, b"%d" % number, *limit.call(0)))
        assert answered is not None
        lives_s = client.pttl(b"%d" % number) / 1_000
        assert lives_s == pytest.approx(answered.decision.reset_s, abs=0.5)
        assert lives_s > 0


def test_a_cost_of_nothing_leaves_no_key(client: Redis) -> None:
    client.flushall()
    for make in LIMITERS.values():
        limit = scripted(make())
        client.eval(limit.script.text, 1, b"key", *limit.call(0))
    assert client.dbsize() == 0


def test_a_script_is_known_by_its_digest(client: Redis) -> None:
    assert [client.script_load(script.text) for script in redis_limiter.SCRIPTS] == [
        script.sha for script in redis_limiter.SCRIPTS
    ]


@pytest.mark.parametrize("reply", [None, b"OK", 1, [], [1, 2, 3], [b"1", 0, 0, 0, 0, 0]])
def test_an_answer_that_is_no_scripts_is_none(reply: object) -> None:
    assert decision(scripted(FixedWindow(2, 1.0)), reply) is None

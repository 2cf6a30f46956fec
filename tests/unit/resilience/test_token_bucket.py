"""The token bucket: what is admitted, what is told, and how much is remembered."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience import TokenBucket

# Times and rates that a float holds exactly, so that the reference may be exact too.
TICKS_A_SECOND = 256
STEPS = st.lists(st.tuples(st.integers(0, 3 * TICKS_A_SECOND), st.sampled_from([b"a", b"b"]), st.integers(0, 4)))


class Reference:
    """One key's bucket in exact arithmetic, filled step by step as the definition says."""

    def __init__(self, rate: Fraction, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.tokens, self.at = Fraction(burst), Fraction(0)

    def admits(self, now: Fraction, cost: int) -> bool:
        self.tokens = min(self.tokens + (now - self.at) * self.rate, Fraction(self.burst))
        self.at = now
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True


@given(st.sampled_from([0.25, 1.0, 2.0, 8.0, 64.0]), st.integers(1, 20), STEPS)
def test_it_decides_as_the_definition_says(rate: float, burst: int, steps: list[tuple[int, bytes, int]]) -> None:
    bucket, ticks = TokenBucket(rate, burst), 0
    references = {key: Reference(Fraction(rate), burst) for key in (b"a", b"b")}
    for passed, key, cost in steps:
        ticks += passed
        reference = references[key]
        decision = bucket.decide(key, ticks / TICKS_A_SECOND, cost)
        assert decision.admitted is reference.admits(Fraction(ticks, TICKS_A_SECOND), cost)
        assert decision.remaining == math.floor(reference.tokens)
        assert decision.reset_s == pytest.approx(float((burst - reference.tokens) / reference.rate))
        assert decision.limit == burst
        if decision.admitted:
            assert decision.retry_after_s == 0
        elif cost <= burst:
            assert decision.retry_after_s == pytest.approx(float((cost - reference.tokens) / reference.rate))
        else:
            assert decision.retry_after_s == math.inf


@given(
    st.floats(0.001, 1_000_000),
    st.integers(1, 1_000),
    st.floats(0, 10_000_000),
    st.lists(st.floats(0, 2) | st.just(0.0), max_size=200),
)
def test_no_more_than_the_burst_and_the_rate_are_admitted_in_any_time(
    rate: float, burst: int, start_s: float, passed_s: list[float]
) -> None:
    bucket, now_s, admitted_at = TokenBucket(rate, burst), start_s, []
    for step_s in passed_s:
        now_s += step_s
        if bucket.decide(b"", now_s).admitted:
            admitted_at.append(now_s)
    for first, begin_s in enumerate(admitted_at):
        for last in range(first, len(admitted_at)):
            # A clock reading so late has no more than nanoseconds.
            assert last - first + 1 <= burst + rate * (admitted_at[last] - begin_s + 1e-8)


@given(st.floats(0.001, 1_000_000), st.integers(1, 50), st.floats(0, 1_000_000))
def test_who_waits_as_long_as_was_said_is_admitted(rate: float, burst: int, now_s: float) -> None:
    bucket = TokenBucket(rate, burst)
    while (refused := bucket.decide(b"", now_s)).admitted:
        pass
    assert refused.remaining == 0
    # Such a time has no nanoseconds when it is large: the next one that there is.
    later_s = math.nextafter(now_s + refused.retry_after_s, math.inf)
    assert bucket.decide(b"", later_s).admitted


def test_a_full_bucket_admits_its_burst_at_once_and_then_one_by_one() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=3)
    assert [bucket.decide(b"", 5.0).remaining for _ in range(3)] == [2, 1, 0]
    assert bucket.decide(b"", 5.0) == (False, 0, 0.1, 0.3, 3, 0.0)
    assert bucket.decide(b"", 5.05).admitted is False
    assert bucket.decide(b"", 5.1).admitted is True
    assert bucket.decide(b"", 5.1).admitted is False


def test_what_is_refused_takes_nothing() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=1)
    assert bucket.decide(b"", 0.0).admitted
    for tenth in range(1, 10):
        assert not bucket.decide(b"", tenth / 10).admitted
    assert bucket.decide(b"", 1.0).admitted


def test_a_cost_of_nothing_only_looks() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=2)
    for _ in range(5):
        assert bucket.decide(b"a", 0.0, cost=0).remaining == 2
    assert len(bucket) == 0


def test_each_key_has_a_bucket_of_its_own() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=1)
    assert bucket.decide(b"a", 0.0).admitted
    assert bucket.decide(b"b", 0.0).admitted
    assert not bucket.decide(b"a", 0.0).admitted


def test_when_time_goes_back_nothing_is_filled_twice() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=1)
    assert bucket.decide(b"", 100.0).admitted
    assert not bucket.decide(b"", 50.0).admitted
    assert not bucket.decide(b"", 100.5).admitted
    assert bucket.decide(b"", 101.0).admitted


def test_a_key_whose_bucket_is_full_again_is_forgotten() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=1)
    for number in range(10):
        bucket.decide(b"old %d" % number, 0.0)
    assert len(bucket) == 10
    for number in range(5):
        bucket.decide(b"new %d" % number, 10.0)
    assert len(bucket) == 5
    assert bucket.forgotten_early == 0


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.5)), max_size=300))
def test_no_more_keys_than_the_limit_are_remembered(steps: list[tuple[int, float]]) -> None:
    bucket, now_s = TokenBucket(rate_per_s=1, burst=2, keys_max=8), 0.0
    for key, passed_s in steps:
        now_s += passed_s
        bucket.decide(b"%d" % key, now_s)
        assert len(bucket) <= 8


def test_a_full_bucket_is_forgotten_before_an_older_one_that_is_not() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=10, keys_max=3)
    bucket.decide(b"empty", 0.0, cost=10)
    bucket.decide(b"full", 0.0, cost=1)
    bucket.decide(b"used", 2.0, cost=5)
    bucket.decide(b"new", 2.0)
    assert bucket.forgotten_early == 0
    assert bucket.decide(b"empty", 2.0, cost=0).remaining == 2
    assert bucket.decide(b"used", 2.0, cost=0).remaining == 5


def test_without_a_full_one_the_longest_unused_is_forgotten_and_counted() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=100, keys_max=2)
    bucket.decide(b"a", 0.0, cost=100)
    bucket.decide(b"b", 0.0, cost=100)
    assert not bucket.decide(b"a", 1.0, cost=50).admitted  # in vain, and so it is the newest now
    bucket.decide(b"c", 1.0, cost=100)
    assert bucket.forgotten_early == 1
    assert bucket.decide(b"a", 1.0, cost=0).remaining == 1
    assert bucket.decide(b"b", 1.0, cost=0).remaining == 100


def test_room_is_looked_for_among_a_bounded_number() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=100, keys_max=30)
    for number in range(29):
        bucket.decide(b"%d" % number, 0.0, cost=100)
    bucket.decide(b"full soon, and far from the oldest", 0.0, cost=1)
    bucket.decide(b"new", 5.0)
    assert bucket.forgotten_early == 1
    assert bucket.decide(b"0", 5.0, cost=0).remaining == 100


def test_the_keys_nearest_to_their_limit_are_shown() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=10)
    for key, cost in ((b"a", 2), (b"b", 9), (b"c", 5)):
        bucket.decide(key, 0.0, cost)
    assert bucket.emptiest(1.0, 2) == [(b"b", 2.0), (b"c", 6.0)]
    assert bucket.emptiest(100.0, 9) == [(b"a", 10.0), (b"b", 10.0), (b"c", 10.0)]


@pytest.mark.parametrize("rate", [0, -1, math.inf, -math.inf, math.nan])
def test_a_rate_that_can_mean_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate_per_s"):
        TokenBucket(rate, 1)


@pytest.mark.parametrize(("burst", "keys_max"), [(0, 1), (-5, 1), (1, 0)])
def test_a_bucket_that_holds_nothing_is_refused(burst: int, keys_max: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TokenBucket(1, burst, keys_max)

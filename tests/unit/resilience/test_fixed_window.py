"""The fixed window counter: what is admitted, what is told, and the double burst at the edge of two windows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience.limiters import FixedWindow

# Times that a float holds exactly, so that the reference may count in whole numbers.
TICKS_A_SECOND = 256
STEPS = st.lists(st.tuples(st.integers(0, 300), st.sampled_from([b"a", b"b"]), st.integers(0, 4)), max_size=60)


@given(st.integers(1, 9), st.integers(1, 600), st.integers(0, 1_000_000), STEPS)
def test_it_decides_as_the_definition_says(
    limit: int, window: int, start: int, steps: list[tuple[int, bytes, int]]
) -> None:
    limiter, tick = FixedWindow(limit, window / TICKS_A_SECOND), start
    admitted: list[tuple[int, bytes, int]] = []
    for passed, key, cost in steps:
        tick += passed
        used = sum(spent for at, of, spent in admitted if of == key and at // window == tick // window)
        decision = limiter.decide(key, tick / TICKS_A_SECOND, cost)
        assert decision.admitted is (used + cost <= limit)
        if decision.admitted:
            admitted.append((tick, key, cost))
            used += cost
        until_end_s = (window - tick % window) / TICKS_A_SECOND
        assert (decision.remaining, decision.limit) == (limit - used, limit)
        if decision.admitted:
            assert decision.retry_after_s == 0
            assert decision.reset_s == (until_end_s if used else 0)
        else:
            assert decision.reset_s == until_end_s
            assert decision.retry_after_s == (until_end_s if cost <= limit else math.inf)


@given(st.integers(1, 5), st.floats(0.1, 100), st.floats(0, 1e7), st.lists(st.floats(0, 60), max_size=60))
def test_in_any_time_no_more_is_admitted_than_its_windows_allow(
    limit: int, window_s: float, start_s: float, passed_s: list[float]
) -> None:
    limiter, now_s, admitted_at = FixedWindow(limit, window_s), start_s, []
    for step_s in passed_s:
        now_s += step_s
        if limiter.decide(b"", now_s).admitted:
            admitted_at.append(now_s)
    for first, begin_s in enumerate(admitted_at):
        for last in range(first, len(admitted_at)):
            windows = math.floor((admitted_at[last] - begin_s) / window_s + 1e-6) + 2
            assert last - first + 1 <= limit * windows


@given(st.integers(1, 5), st.floats(0.1, 86_400), st.floats(0, 1e7))
def test_who_waits_as_long_as_was_said_is_admitted(limit: int, window_s: float, now_s: float) -> None:
    limiter = FixedWindow(limit, window_s)
    while (refused := limiter.decide(b"", now_s)).admitted:
        pass
    # The sum of two such times may be short by what a float cannot hold of it.
    assert limiter.decide(b"", math.nextafter(now_s + refused.retry_after_s, math.inf)).admitted


def test_around_the_edge_of_two_windows_twice_the_limit_comes_at_once() -> None:
    """The known weakness, which the sliding window has not."""
    limiter = FixedWindow(limit=100, window_s=60)
    assert sum(limiter.decide(b"", 59.999).admitted for _ in range(200)) == 100
    assert sum(limiter.decide(b"", 60.0).admitted for _ in range(200)) == 100


def test_when_time_goes_back_the_window_that_was_last_goes_on() -> None:
    limiter = FixedWindow(limit=1, window_s=10)
    assert limiter.decide(b"", 25.0).admitted
    refused = limiter.decide(b"", 12.0)
    assert (refused.admitted, refused.retry_after_s) == (False, 18.0)
    assert limiter.decide(b"", 30.0).admitted


def test_what_is_refused_takes_nothing() -> None:
    limiter = FixedWindow(limit=3, window_s=10)
    assert not limiter.decide(b"", 1.0, cost=4).admitted
    assert limiter.decide(b"", 1.0, cost=2).admitted
    assert not limiter.decide(b"", 1.0, cost=2).admitted
    assert limiter.decide(b"", 1.0).admitted


def test_the_keys_nearest_to_their_limit_are_shown() -> None:
    limiter = FixedWindow(limit=10, window_s=10)
    for key, cost in ((b"a", 2), (b"b", 9), (b"c", 5)):
        limiter.decide(key, 0.0, cost)
    assert limiter.emptiest(1.0, 2) == [(b"b", 1.0), (b"c", 5.0)]
    assert limiter.emptiest(10.0, 9) == [(b"a", 10.0), (b"b", 10.0), (b"c", 10.0)]


@pytest.mark.parametrize(("limit", "window_s"), [(0, 1), (-1, 1), (1, 0), (1, -1), (1, math.inf), (1, math.nan)])
def test_a_window_that_can_mean_nothing_is_refused(limit: int, window_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        FixedWindow(limit, window_s)

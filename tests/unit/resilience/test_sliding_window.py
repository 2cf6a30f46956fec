"""The sliding window of sub-windows: no window ever has more than the limit, and how coarse that is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience.limiters import SUB_WINDOWS_MAX, SlidingWindow

TICKS_A_SECOND = 256
STEPS = st.lists(st.tuples(st.integers(0, 200), st.sampled_from([b"a", b"b"]), st.integers(0, 4)), max_size=60)


@given(st.integers(1, 9), st.integers(1, 100), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1_000_000), STEPS)
def test_it_decides_as_the_definition_says(
    limit: int, sub: int, parts: int, start: int, steps: list[tuple[int, bytes, int]]
) -> None:
    """`sub`: a sub-window's ticks. The reference is a log of all that was admitted."""
    limiter, tick = SlidingWindow(limit, sub * parts / TICKS_A_SECOND, parts), start
    logs: dict[bytes, list[tuple[int, int]]] = {b"a": [], b"b": []}

    def used(key: bytes, at: int) -> int:
        return sum(cost for spent_at, cost in logs[key] if spent_at // sub >= at // sub - parts)

    for passed, key, cost in steps:
        tick += passed
        before = used(key, tick)
        decision = limiter.decide(key, tick / TICKS_A_SECOND, cost)
        assert decision.admitted is (before + cost <= limit)
        if decision.admitted:
            logs[key].append((tick, cost))
            assert decision.retry_after_s == 0
        elif cost > limit:
            assert decision.retry_after_s == math.inf
        else:
            due = tick + round(decision.retry_after_s * TICKS_A_SECOND)
            assert used(key, due) + cost <= limit
            assert used(key, due - 1) + cost > limit
        assert (decision.remaining, decision.limit) == (limit - used(key, tick), limit)
        reset = tick + round(decision.reset_s * TICKS_A_SECOND)
        assert used(key, reset) == 0
        assert reset == tick or used(key, reset - 1) > 0


@given(
    st.integers(1, 5), st.floats(0.1, 100), st.integers(1, SUB_WINDOWS_MAX), st.floats(0, 1e7),
    st.lists(st.floats(0, 30), max_size=60),
)  # fmt: skip
def test_no_window_wherever_it_begins_has_more_than_the_limit(
    limit: int, window_s: float, parts: int, start_s: float, passed_s: list[float]
) -> None:
    limiter, now_s, admitted_at = SlidingWindow(limit, window_s, parts), start_s, []
    for step_s in passed_s:
        now_s += step_s
        recent = [at for at in admitted_at if now_s - at < (window_s + window_s / parts) * (1 + 1e-6)]
        admitted = limiter.decide(b"", now_s).admitted
        assert admitted or len(recent) >= limit, "what it must admit"
        if admitted:
            admitted_at.append(now_s)
            assert sum(now_s - at < window_s * (1 - 1e-6) for at in admitted_at) <= limit, "what it must not"


@given(st.integers(1, 5), st.floats(0.1, 86_400), st.integers(1, SUB_WINDOWS_MAX), st.floats(0, 1e7))
def test_who_waits_as_long_as_was_said_is_admitted(limit: int, window_s: float, parts: int, now_s: float) -> None:
    limiter = SlidingWindow(limit, window_s, parts)
    while (refused := limiter.decide(b"", now_s)).admitted:
        pass
    assert limiter.decide(b"", math.nextafter(now_s + refused.retry_after_s, math.inf)).admitted


def test_there_is_no_double_burst() -> None:
    limiter = SlidingWindow(limit=100, window_s=60)
    assert sum(limiter.decide(b"", 59.999).admitted for _ in range(200)) == 100
    assert sum(limiter.decide(b"", 60.0).admitted for _ in range(200)) == 0


@pytest.mark.untraced
def test_who_uses_the_limit_to_the_full_has_it_once_in_a_window_and_a_sub_window() -> None:
    """The known weakness: the grain. With ten sub-windows, up to a tenth less than the limit."""
    limiter = SlidingWindow(limit=100, window_s=10, sub_windows=10)
    admitted = [second for second in range(1_100) for _ in range(100) if limiter.decide(b"", float(second)).admitted]
    assert len(admitted) == 100 * 1_100 // 11


def test_a_steady_client_under_the_limit_is_never_refused() -> None:
    limiter = SlidingWindow(limit=11, window_s=10, sub_windows=10)
    assert all(limiter.decide(b"", float(second)).admitted for second in range(500))


def test_when_time_goes_back_the_sub_window_that_was_newest_goes_on() -> None:
    limiter = SlidingWindow(limit=1, window_s=10, sub_windows=10)
    assert limiter.decide(b"", 25.0).admitted
    assert not limiter.decide(b"", 3.0).admitted
    assert not limiter.decide(b"", 35.9).admitted
    assert limiter.decide(b"", 36.0).admitted


def test_the_keys_nearest_to_their_limit_are_shown() -> None:
    limiter = SlidingWindow(limit=10, window_s=10)
    for key, cost in ((b"a", 2), (b"b", 9), (b"c", 5)):
        limiter.decide(key, 0.0, cost)
    assert limiter.emptiest(1.0, 2) == [(b"b", 1.0), (b"c", 5.0)]
    assert limiter.emptiest(11.0, 9) == [(b"a", 10.0), (b"b", 10.0), (b"c", 10.0)]


@pytest.mark.parametrize("parts", [0, -1, SUB_WINDOWS_MAX + 1])
def test_sub_windows_that_no_record_holds_are_refused(parts: int) -> None:
    with pytest.raises(ValueError, match="sub_windows"):
        SlidingWindow(1, 1.0, parts)


@pytest.mark.parametrize(("limit", "window_s"), [(0, 1), (1, 0), (1, math.inf), (1, math.nan)])
def test_a_window_that_can_mean_nothing_is_refused(limit: int, window_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        SlidingWindow(limit, window_s)

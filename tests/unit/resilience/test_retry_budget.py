"""The retry budget: in no window more retries than its definition allows, and none refused that it must allow."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience.retry_budget import RETRIES_MIN, WINDOW_S, RetryBudget


def take(budget: RetryBudget, now_s: float, wanted: int) -> int:
    """How many of `wanted` retries there may be."""
    return sum(budget.try_take(now_s) for _ in range(wanted))


def test_without_requests_there_are_the_least_retries_and_no_more() -> None:
    budget = RetryBudget(20)
    assert take(budget, 0.0, 50) == RETRIES_MIN
    assert budget.refused == 40


def test_of_many_requests_it_is_the_percentage() -> None:
    budget = RetryBudget(20)
    for _ in range(1_000):
        budget.count(5.0)
    assert take(budget, 5.0, 1_000) == 200


def test_a_budget_of_nothing_leaves_the_least_retries_alone() -> None:
    budget = RetryBudget(0)
    for _ in range(1_000):
        budget.count(5.0)
    assert take(budget, 5.0, 1_000) == RETRIES_MIN
    assert take(RetryBudget(0, retries_min=0), 0.0, 10) == 0


def test_it_is_there_again_when_its_retries_are_out_of_the_window() -> None:
    budget = RetryBudget(20)
    assert take(budget, 0.5, 20) == 10
    assert take(budget, 10.5, 20) == 0
    assert take(budget, 11.0, 20) == 10


def test_an_outage_is_asked_at_most_a_fifth_more_often() -> None:
    """Each request fails, and is tried twice again if it may be."""
    budget, sent = RetryBudget(20), 0
    for millisecond in range(60_000):
        now_s = millisecond / 1_000
        budget.count(now_s)
        sent += 1 + take(budget, now_s, 2)
    assert 1.17 < sent / 60_000 <= 1.2


@pytest.mark.parametrize(
    ("percent", "window_s", "retries_min"),
    [
        (-1, 10, 10), (100.5, 10, 10), (math.nan, 10, 10), (20, 0, 10), (20, math.inf, 10), (20, math.nan, 10),
        (20, 10, -1),
    ],
)  # fmt: skip
def test_values_that_can_mean_nothing_are_refused(percent: float, window_s: float, retries_min: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        RetryBudget(percent, window_s, retries_min)


PASSED_S = st.sampled_from([0.0, 0.01, 0.3, 0.999, 1.0, 2.5, 9.5, 10.0, 12.0, 100.0])
STEPS = st.lists(st.tuples(PASSED_S, st.sampled_from(["request", "request", "retry"]), st.integers(1, 15)), max_size=80)


@given(st.sampled_from([0.0, 10.0, 33.3, 100.0]), st.integers(0, 4), STEPS)
def test_it_keeps_to_the_definition_read_literally(
    percent: float, retries_min: int, steps: list[tuple[float, str, int]]
) -> None:
    budget, now_s = RetryBudget(percent, retries_min=retries_min), 0.0
    requests: list[float] = []
    retries: list[float] = []

    def within(times: list[float], window_s: float) -> int:
        return sum(now_s - one < window_s for one in times)

    slot_s = WINDOW_S / 10
    for passed_s, what, count in steps:
        now_s += passed_s
        for _ in range(count):
            if what == "request":
                budget.count(now_s)
                requests.append(now_s)
                continue
            at_most = max(retries_min, int(within(requests, WINDOW_S) * percent / 100))
            for_certain = max(retries_min, int(within(requests, WINDOW_S - slot_s) * percent / 100))
            taken = budget.try_take(now_s)
            if taken:
                retries.append(now_s)
                assert within(retries, WINDOW_S) <= at_most
            else:
                assert within(retries, WINDOW_S + slot_s) >= for_certain


@given(st.lists(PASSED_S, min_size=2, max_size=200))
def test_time_alone_only_gives_back(passed: list[float]) -> None:
    budget, now_s = RetryBudget(50), 0.0
    take(budget, 0.0, 10)
    spent = []
    for passed_s in passed:
        now_s += passed_s
        spent.append(budget.spent(now_s))
    assert all(one >= other for one, other in pairwise(spent))
    assert budget.spent(now_s + WINDOW_S * 2) == 0

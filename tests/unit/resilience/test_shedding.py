"""Load shedding: who is refused first, by how much is in progress and by how late the event loop is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience.shedding import THRESHOLD_PERCENTS, LoadShedder, Priority

LOW, NORMAL, HIGH = Priority


def admitted(load: LoadShedder) -> set[Priority]:
    """Who may begin if it comes now."""
    load.active += 1
    found = {priority for priority in Priority if load.admits(priority)}
    load.active -= 1
    return found


@pytest.mark.parametrize(
    ("active", "priorities"),
    [
        (0, {LOW, NORMAL, HIGH}), (79, {LOW, NORMAL, HIGH}), (80, {NORMAL, HIGH}), (94, {NORMAL, HIGH}),
        (95, {HIGH}), (99, {HIGH}), (100, set()), (150, set()),
    ],
)  # fmt: skip
def test_lower_priorities_are_refused_from_80_95_and_100_percent_on(active: int, priorities: set[Priority]) -> None:
    load = LoadShedder(active_max=100)
    load.active = active
    assert admitted(load) == priorities


@pytest.mark.parametrize(
    ("lag_s", "priorities"),
    [(0.39, {LOW, NORMAL, HIGH}), (0.4, {NORMAL, HIGH}), (0.48, {HIGH}), (0.5, set()), (9.0, set())],
)
def test_so_they_are_by_the_lag_of_the_event_loop_alone(lag_s: float, priorities: set[Priority]) -> None:
    load = LoadShedder(lag_s_max=0.5)
    load.measured(lag_s)
    load.measured(lag_s)
    assert admitted(load) == priorities
    assert load.saturation == pytest.approx(lag_s / 0.5)


def test_one_pause_alone_refuses_nobody_and_a_loop_that_has_recovered_neither() -> None:
    load = LoadShedder()
    for lag_s, counts in ((0.0, False), (2.0, False), (0.0, False), (2.0, False), (2.0, True), (0.0, False)):
        load.measured(lag_s)
        assert (admitted(load) == set()) is counts


def test_what_is_refused_is_counted_by_priority() -> None:
    load = LoadShedder(active_max=1)
    load.active = 2
    for priority in (LOW, LOW, HIGH):
        assert not load.admits(priority)
    assert load.refused == [2, 0, 1]


def test_the_smallest_bound_still_takes_one_request() -> None:
    assert admitted(LoadShedder(active_max=1)) == {LOW, NORMAL, HIGH}


@pytest.mark.parametrize(("active_max", "lag_s_max"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, math.inf), (1, math.nan)])
def test_bounds_that_can_mean_nothing_are_refused(active_max: int, lag_s_max: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        LoadShedder(active_max, lag_s_max)


@given(st.integers(1, 300), st.integers(0, 400), st.floats(0, 2), st.floats(0, 2))
def test_it_is_the_definition_of_saturation_read_literally(
    active_max: int, active: int, lag_before_s: float, lag_s: float
) -> None:
    load = LoadShedder(active_max, lag_s_max=0.5)
    load.measured(lag_before_s)
    load.measured(lag_s)
    load.active = active
    lag_that_counts_s = min(lag_before_s, lag_s)
    expected = {
        priority
        for priority, percent in zip(Priority, THRESHOLD_PERCENTS, strict=True)
        if active * 100 < percent * active_max and lag_that_counts_s * 100 < percent * 0.5
    }
    assert admitted(load) == expected
    assert LOW not in expected or NORMAL in expected
    assert NORMAL not in expected or HIGH in expected

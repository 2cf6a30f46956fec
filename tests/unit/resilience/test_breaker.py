"""The circuit breaker: when it opens, whom it lets through, and how it closes again."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience import BreakerSettings, BreakerState, CircuitBreaker, Permit, Refused
from quorate_resilience.breaker import TRANSITIONS_KEPT_MAX

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


def permit(breaker: CircuitBreaker, now_s: float) -> Permit:
    acquired = breaker.try_acquire(now_s)
    assert isinstance(acquired, Permit)
    return acquired


def refused(breaker: CircuitBreaker, now_s: float) -> Refused:
    acquired = breaker.try_acquire(now_s)
    assert isinstance(acquired, Refused)
    return acquired


def calls(breaker: CircuitBreaker, now_s: float, good: int = 0, failed: int = 0, slow: int = 0) -> None:
    """So many calls that end at `now_s`: slow ones began a while before."""
    for _ in range(good):
        permit(breaker, now_s).success(now_s)
    for one in [permit(breaker, now_s - 1.5) for _ in range(slow)]:
        one.mark_slow(now_s)
    for one in [permit(breaker, now_s) for _ in range(failed)]:
        one.failure(now_s)


def opened(now_s: float = 0.0, **settings: Any) -> CircuitBreaker:
    breaker = CircuitBreaker(BreakerSettings(**settings))
    calls(breaker, now_s, failed=breaker.settings.calls_min)
    assert breaker.state is OPEN
    return breaker


def half_open() -> tuple[CircuitBreaker, list[Permit]]:
    """At 5.0 s, with all five probes out."""
    breaker = opened()
    return breaker, [permit(breaker, 5.0) for _ in range(5)]


# Closed: when it opens.


@pytest.mark.parametrize(
    ("good", "failed", "slow", "state"),
    [
        (5, 5, 0, OPEN), (5, 0, 5, OPEN), (5, 2, 3, OPEN), (0, 10, 0, OPEN),
        (6, 5, 0, CLOSED), (6, 2, 3, CLOSED), (10, 0, 0, CLOSED), (0, 9, 0, CLOSED), (0, 4, 5, CLOSED),
    ],
)  # fmt: skip
def test_it_opens_when_half_of_at_least_ten_calls_failed_or_were_slow(
    good: int, failed: int, slow: int, state: BreakerState
) -> None:
    breaker = CircuitBreaker()
    calls(breaker, 2.0, good, failed, slow)
    assert breaker.state is state


def test_a_good_call_can_be_the_tenth() -> None:
    breaker = CircuitBreaker()
    calls(breaker, 0.0, failed=9)
    assert breaker.state is CLOSED
    calls(breaker, 0.0, good=1)
    assert breaker.state is OPEN


def test_what_is_older_than_the_window_counts_no_more() -> None:
    breaker = CircuitBreaker()
    calls(breaker, 0.0, failed=9)
    calls(breaker, 5.0, failed=9)
    assert breaker.state is CLOSED
    assert breaker.counts(5.0) == (9, 9, 0)
    calls(breaker, 9.4, failed=1)
    assert breaker.state is OPEN


def test_the_window_slides_by_tenths() -> None:
    breaker = CircuitBreaker(BreakerSettings(calls_min=100))
    for tenth in range(10):
        calls(breaker, tenth / 2, failed=1)
    assert [breaker.counts(5 + tenth / 2).calls for tenth in range(-1, 11)] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


def test_a_call_is_slow_when_it_passes_the_mark_and_not_when_it_ends() -> None:
    breaker = CircuitBreaker()
    running = [permit(breaker, 0.0) for _ in range(10)]
    for one in running:
        one.mark_slow(0.999)
    assert breaker.counts(0.999) == (0, 0, 0)
    for one in running:
        one.mark_slow(1.0)
    assert breaker.state is OPEN
    for one in running:
        one.success(30.0)
    assert breaker.take_transitions()[0].counts == (10, 0, 10)


ENDS: dict[str, Callable[[Permit, float], None]] = {
    "success": Permit.success, "failure": Permit.failure, "cancelled": Permit.cancelled, "responded": Permit.responded,
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_call_that_nobody_marked_in_time_is_slow_all_the_same(end: str) -> None:
    breaker = CircuitBreaker()
    ENDS[end](permit(breaker, 0.0), 1.0)
    assert breaker.counts(1.0) == (1, 0, 1)


@pytest.mark.parametrize("end", ENDS)
def test_a_call_that_was_slow_is_counted_once_however_it_ends(end: str) -> None:
    breaker = CircuitBreaker()
    one = permit(breaker, 0.0)
    one.mark_slow(1.0)
    ENDS[end](one, 1.5)
    one.failure(1.6)
    assert breaker.counts(1.6) == (1, 0, 1)


def test_a_cancelled_call_counts_as_nothing() -> None:
    breaker = CircuitBreaker()
    for _ in range(20):
        permit(breaker, 0.0).cancelled(0.9)
    assert breaker.counts(0.9) == (0, 0, 0)


def test_a_call_that_has_responded_in_time_is_not_slow_however_long_it_goes_on() -> None:
    breaker = CircuitBreaker()
    streams = [permit(breaker, 0.0) for _ in range(3)]
    for one in streams:
        one.responded(0.5)
    assert breaker.counts(0.5).calls == 0
    streams[0].mark_slow(1.0)
    streams[1].failure(1.2)
    assert breaker.counts(1.2) == (2, 1, 0)
    streams[2].success(60.0)
    assert breaker.counts(60.0) == (1, 0, 0)


# Open, and half-open: whom it lets through, and what becomes of it.


def test_open_it_refuses_everything_and_says_for_how_long() -> None:
    breaker = opened(10.0)
    assert refused(breaker, 10.0) == Refused(5.0, OPEN)
    assert refused(breaker, 14.5) == Refused(0.5, OPEN)
    assert breaker.refused == 2
    assert breaker.counts(14.5) == (10, 10, 0)


def test_what_was_asked_before_it_opened_changes_nothing_any_more() -> None:
    breaker = CircuitBreaker()
    before = [permit(breaker, 0.0) for _ in range(8)]
    calls(breaker, 0.0, failed=10)
    before[0].failure(1.0)
    probes = [permit(breaker, 5.0) for _ in range(5)]
    for one in before[1:4]:
        one.failure(5.5)
    before[4].success(5.5)
    before[5].cancelled(0.5)
    assert isinstance(breaker.try_acquire(5.5), Refused)
    assert breaker.counts(5.5) == (0, 0, 0)
    for one in probes:
        one.success(5.6)
    before[6].failure(5.7)
    before[7].mark_slow(5.7)
    assert (breaker.state, breaker.counts(5.7)) == (CLOSED, (0, 0, 0))


def test_exactly_five_probes_are_let_through_and_no_more() -> None:
    breaker, _ = half_open()
    assert [refused(breaker, 5.0 + tick / 10).state for tick in range(9)] == [HALF_OPEN] * 9
    assert refused(breaker, 5.25).retry_after_s == 0.75


def test_probes_that_have_ended_make_no_room_for_others() -> None:
    breaker, probes = half_open()
    for one in probes[:4]:
        one.success(5.1)
    refused(breaker, 5.2)
    assert breaker.counts(5.2) == (4, 0, 0)
    probes[4].success(5.3)
    assert breaker.state is CLOSED
    assert [type(breaker.try_acquire(5.3)) for _ in range(50)] == [Permit] * 50


def test_it_closes_by_itself_with_an_empty_window_when_its_probes_are_well() -> None:
    breaker, probes = half_open()
    for one, is_good in zip(probes, (True, False, True, False, True), strict=True):
        one.success(5.5) if is_good else one.failure(5.5)
    assert (breaker.state, breaker.counts(5.5)) == (CLOSED, (0, 0, 0))
    calls(breaker, 5.6, failed=9)
    assert breaker.state is CLOSED


def test_it_opens_again_as_soon_as_its_probes_are_certain_to_fail() -> None:
    breaker, probes = half_open()
    probes[0].failure(5.1)
    probes[1].failure(5.1)
    assert breaker.state is HALF_OPEN
    probes[2].failure(5.2)
    assert (breaker.state, breaker.counts(5.2)) == (OPEN, (3, 3, 0))
    probes[3].success(5.3)
    probes[4].success(5.3)
    assert refused(breaker, 10.0).retry_after_s == pytest.approx(0.2)
    assert [type(breaker.try_acquire(10.2)) for _ in range(6)] == [Permit] * 5 + [Refused]


def test_a_slow_probe_counts() -> None:
    breaker, probes = half_open()
    for one in probes[:3]:
        one.mark_slow(6.0)
    assert (breaker.state, breaker.counts(6.0)) == (OPEN, (3, 0, 3))


def test_a_cancelled_probe_is_given_back_once() -> None:
    breaker, probes = half_open()
    probes[0].cancelled(5.1)
    probes[0].cancelled(5.1)
    another = permit(breaker, 5.2)
    refused(breaker, 5.2)
    for one in (*probes[1:], another):
        one.success(5.3)
    assert breaker.state is CLOSED


def test_probes_that_nobody_marks_are_judged_when_the_next_call_asks() -> None:
    breaker, probes = half_open()
    probes[0].success(5.1)
    assert refused(breaker, 5.9).state is HALF_OPEN
    assert refused(breaker, 6.0) == Refused(5.0, OPEN)
    assert breaker.take_transitions()[-1].counts == (4, 0, 3)


def test_a_stream_that_has_responded_does_not_hold_its_probe() -> None:
    breaker, probes = half_open()
    for one in probes:
        one.responded(5.5)
    assert refused(breaker, 5.9).state is HALF_OPEN
    assert isinstance(breaker.try_acquire(6.0), Permit)
    assert breaker.state is CLOSED


def test_it_is_half_open_by_the_time_alone_when_it_is_told_the_time() -> None:
    breaker = opened()
    breaker.advance(4.9)
    assert (breaker.state, breaker.retry_after_s(4.9)) == (OPEN, pytest.approx(0.1))
    breaker.advance(5.0)
    assert (breaker.state, breaker.retry_after_s(5.0)) == (HALF_OPEN, 0.0)


# By an operator.


def test_forced_open_it_refuses_until_it_is_released() -> None:
    breaker = CircuitBreaker()
    running = permit(breaker, 0.0)
    breaker.force_open(0.0)
    breaker.force_open(0.0)
    assert refused(breaker, 1_000.0) == Refused(5.0, BreakerState.FORCED_OPEN)
    running.failure(1.0)
    breaker.release(1_000.0)
    assert (breaker.state, breaker.counts(1_000.0)) == (CLOSED, (0, 0, 0))
    assert [change.state for change in breaker.take_transitions()] == [BreakerState.FORCED_OPEN, CLOSED]


def test_forced_closed_it_lets_everything_through_and_counts_nothing() -> None:
    breaker = opened()
    breaker.force_closed(1.0)
    breaker.force_closed(1.0)
    calls(breaker, 2.0, failed=50)
    assert (breaker.state, breaker.counts(2.0)) == (BreakerState.FORCED_CLOSED, (0, 0, 0))
    breaker.release(3.0)
    calls(breaker, 3.0, failed=10)
    assert breaker.state is OPEN


def test_to_release_what_was_not_forced_changes_nothing() -> None:
    breaker = opened()
    breaker.release(1.0)
    assert breaker.state is OPEN


# What it tells.


def test_each_change_is_told_once_with_what_was_counted() -> None:
    breaker, probes = half_open()
    for one in probes:
        one.success(5.5)
    assert breaker.take_transitions() == (
        (0.0, CLOSED, OPEN, (10, 10, 0)), (5.0, OPEN, HALF_OPEN, (10, 10, 0)), (5.5, HALF_OPEN, CLOSED, (5, 0, 0)),
    )  # fmt: skip
    assert breaker.take_transitions() == ()
    assert breaker.entered == {**dict.fromkeys(BreakerState, 0), OPEN: 1, HALF_OPEN: 1, CLOSED: 1}


def test_changes_that_nobody_takes_are_bounded() -> None:
    breaker = CircuitBreaker()
    for second in range(TRANSITIONS_KEPT_MAX):
        breaker.force_open(second)
        breaker.release(second)
    taken = breaker.take_transitions()
    assert len(taken) == TRANSITIONS_KEPT_MAX
    assert taken[-1].at_s == TRANSITIONS_KEPT_MAX - 1
    assert breaker.entered[CLOSED] == TRANSITIONS_KEPT_MAX


@pytest.mark.parametrize(
    "settings",
    [
        {"window_s": 0}, {"window_s": -1}, {"window_s": math.nan}, {"window_s": math.inf}, {"slow_call_s": 0},
        {"open_s": math.inf}, {"calls_min": 0}, {"probes": 0}, {"failure_percent": 0}, {"failure_percent": 100.5},
        {"failure_percent": math.nan},
    ],
)  # fmt: skip
def test_settings_that_can_mean_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        BreakerSettings(**settings)  # type: ignore[arg-type]


# Against a plain model of the same definitions.


class Model:
    """The definitions, read literally: a list of settled calls, counted anew each time."""

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self.state = CLOSED
        self.generation = 0
        self.settled: list[tuple[int, bool]] = []
        """Slot number and whether it was bad; all of the probes when half-open."""
        self.out = 0
        self.open_until_s = 0.0

    def enter(self, state: BreakerState) -> None:
        self.state, self.settled, self.out = state, [], 0
        self.generation += 1

    def acquire(self, now_s: float) -> bool:
        if self.state is OPEN and now_s >= self.open_until_s:
            self.enter(HALF_OPEN)
        if self.state is HALF_OPEN and self.out + len(self.settled) >= self.settings.probes:
            return False
        self.out += 1
        return self.state is not OPEN

    def settle(self, generation: int, bad: bool | None, now_s: float) -> None:
        """`bad` is None for a cancelled call."""
        if generation != self.generation or self.state is OPEN:
            return
        self.out -= 1
        if bad is None:
            return
        slot_s = self.settings.window_s / 10
        self.settled.append((int(now_s // slot_s), bad))
        if self.state is CLOSED:
            newest = int(now_s // slot_s)
            window = [one for slot, one in self.settled if slot > newest - 10]
            if len(window) >= self.settings.calls_min and self.is_bad(sum(window), len(window)):
                self.open(now_s)
        elif self.is_bad(sum(one for _, one in self.settled), self.settings.probes):
            self.open(now_s)
        elif len(self.settled) == self.settings.probes:
            self.enter(CLOSED)

    def is_bad(self, bad: int, calls: int) -> bool:
        return bool(bad) and bad * 100 >= self.settings.failure_percent * calls

    def open(self, now_s: float) -> None:
        self.enter(OPEN)
        self.open_until_s = now_s + self.settings.open_s


SETTINGS = st.builds(
    BreakerSettings,
    window_s=st.sampled_from([1.25, 5.0]),
    calls_min=st.integers(1, 6),
    slow_call_s=st.just(1.0),
    failure_percent=st.sampled_from([1.0, 30.0, 50.0, 100.0]),
    open_s=st.sampled_from([0.5, 5.0]),
    probes=st.integers(1, 4),
)
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.125, 0.25, 0.75, 6.0]),
        st.sampled_from(["acquire", "acquire", "success", "failure", "failure", "cancelled"]),
        st.integers(0, 7),
    ),
    max_size=150,
)


@given(SETTINGS, ACTIONS)
def test_it_does_what_a_plain_model_of_the_definitions_does(
    settings: BreakerSettings, actions: list[tuple[float, str, int]]
) -> None:
    breaker, model, now_s = CircuitBreaker(settings), Model(settings), 0.0
    running: list[tuple[Permit, int, float]] = []

    def settle(index: int, end: str, at_s: float) -> None:
        one, generation, slow_at_s = running.pop(index)
        ENDS.get(end, Permit.mark_slow)(one, at_s)
        bad = {"success": False, "cancelled": None}.get(end, True)
        model.settle(generation, True if at_s >= slow_at_s else bad, at_s)

    for passed_s, action, which in actions:
        now_s += passed_s
        # The driver's timer: every mark that has passed is told, in the order in which calls began.
        for overdue in [one for one in running if now_s >= one[2]]:
            settle(running.index(overdue), "mark_slow", now_s)
        if action == "acquire":
            acquired = breaker.try_acquire(now_s)
            assert isinstance(acquired, Permit) is model.acquire(now_s)
            if isinstance(acquired, Permit):
                running.append((acquired, model.generation, now_s + 1.0))
        elif running:
            settle(which % len(running), action, now_s)
        assert breaker.state is model.state

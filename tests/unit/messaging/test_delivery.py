"""What becomes of an event after an attempt to deliver it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_messaging.delivery import (
    DELIVERED,
    LAST_ERROR_CHARS_MAX,
    DeliveryStatus,
    Outcome,
    RelayPolicy,
    Verdict,
    backoff_s,
    state_after,
    verdict_of_status,
)

POLICY = RelayPolicy(backoff_s_first=0.2, backoff_s_max=30.0, attempts_max=5)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_answer_means_delivered(status: int) -> None:
    assert verdict_of_status(status) is Verdict.DELIVERED


@pytest.mark.parametrize("status", [400, 402, 406, 410, 413, 415, 422, 451])
def test_an_answer_about_the_event_itself_is_final(status: int) -> None:
    assert verdict_of_status(status) is Verdict.REFUSED


@pytest.mark.parametrize("status", [301, 302, 401, 403, 404, 405, 408, 409, 421, 425, 429, 500, 502, 503, 504])
def test_an_answer_about_time_place_or_credential_is_tried_again(status: int) -> None:
    assert verdict_of_status(status) is Verdict.RETRY


def test_backoff_doubles_from_the_first_to_the_longest() -> None:
    longest = [backoff_s(POLICY, attempts, lambda: 1.0) for attempts in range(1, 11)]
    assert longest == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])


@given(attempts=st.integers(1, 10**9), lot=st.floats(0, 1, exclude_max=True))
def test_backoff_is_never_below_half_its_step_nor_above_the_longest(attempts: int, lot: float) -> None:
    wait_s = backoff_s(POLICY, attempts, lambda: lot)
    step_s = backoff_s(POLICY, attempts, lambda: 1.0)
    assert step_s / 2 <= wait_s <= step_s <= POLICY.backoff_s_max


def test_a_delivered_event_is_done() -> None:
    assert state_after(POLICY, 3, DELIVERED, 50.0, lambda: 0.0).status is DeliveryStatus.DELIVERED


def test_a_failed_attempt_leaves_the_event_due_after_its_backoff() -> None:
    state = state_after(POLICY, 2, Outcome(Verdict.RETRY, "away"), 50.0, lambda: 0.0)
    assert (state.status, state.next_attempt_at_s, state.last_error) == (DeliveryStatus.PENDING, 50.2, "away")


def test_the_last_attempt_that_fails_gives_the_event_up() -> None:
    retry = Outcome(Verdict.RETRY, "away")
    assert state_after(POLICY, 4, retry, 50.0, lambda: 0.0).status is DeliveryStatus.PENDING
    assert state_after(POLICY, 5, retry, 50.0, lambda: 0.0).status is DeliveryStatus.DEAD


def test_a_refused_event_is_given_up_at_the_first_attempt() -> None:
    state = state_after(POLICY, 1, Outcome(Verdict.REFUSED, "x" * 10_000), 50.0, lambda: 0.0)
    assert state.status is DeliveryStatus.DEAD
    assert len(state.last_error) == LAST_ERROR_CHARS_MAX


def test_a_lease_outlives_the_attempt_that_it_is_for() -> None:
    assert RelayPolicy().lease_s > RelayPolicy().send_timeout_s

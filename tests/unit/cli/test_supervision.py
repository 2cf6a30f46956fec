"""The supervisor's decisions, without a process or a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_cli.supervision import (
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    SETTINGS_RETRY_S,
    STABLE_AFTER_S,
    START_ATTEMPTS_MAX,
    PartState,
    PartStatus,
    backoff_s,
    became_ready,
    describe_exit,
    exited,
    retired,
    spawned,
    stop_asked,
)
from quorate_core.errors import InvariantViolation
from quorate_core.process import EXIT_SETTINGS


def test_a_part_that_dies_is_spawned_again_after_the_shortest_delay() -> None:
    ready = became_ready(spawned(PartStatus(), pid=11, now_s=0.0))
    status, delay_s = exited(ready, code=-9, now_s=1.0)
    assert (status.state, status.pid, delay_s) == (PartState.BACKING_OFF, 0, BACKOFF_S_MIN)
    again = spawned(status, pid=12, now_s=1.2)
    assert (again.state, again.pid, again.restarts) == (PartState.STARTING, 12, 1)


def test_the_delay_doubles_with_each_exit_in_a_row_up_to_its_maximum() -> None:
    status, delays, now_s = PartStatus(), [], 0.0
    for pid in range(1, 9):
        status, delay_s = exited(spawned(status, pid, now_s), code=1, now_s=now_s)
        assert delay_s is not None
        delays.append(delay_s)
        now_s += delay_s
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_part_that_has_been_ready_never_waits_long_however_often_it_is_killed() -> None:
    status, delays, now_s = PartStatus(), [], 0.0
    for pid in range(1, 8):
        status, delay_s = exited(became_ready(spawned(status, pid, now_s)), code=-9, now_s=now_s + 1.0)
        assert delay_s is not None
        delays.append(delay_s)
        now_s += 1.0 + delay_s
    assert delays == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_the_delay_starts_over_once_a_part_has_been_up_long_enough() -> None:
    status, _ = exited(spawned(PartStatus(), 1, 0.0), code=1, now_s=0.0)
    status, _ = exited(spawned(status, 2, 0.2), code=1, now_s=0.2)
    long_lived = spawned(status, 3, 0.6)
    _, just_before = exited(long_lived, code=1, now_s=0.6 + STABLE_AFTER_S - 0.01)
    stable, delay_s = exited(long_lived, code=1, now_s=0.6 + STABLE_AFTER_S)
    assert just_before == 0.8
    assert delay_s == BACKOFF_S_MIN
    assert stable.exits_in_a_row == 1


def test_refused_settings_are_tried_again_slowly() -> None:
    _, delay_s = exited(spawned(PartStatus(), 1, 0.0), code=EXIT_SETTINGS, now_s=0.1)
    assert delay_s == SETTINGS_RETRY_S


def test_a_part_that_was_to_stop_is_not_spawned_again() -> None:
    stopping = stop_asked(became_ready(spawned(PartStatus(), 1, 0.0)))
    assert stopping.state is PartState.STOPPING
    status, delay_s = exited(stopping, code=0, now_s=1.0)
    assert (status.state, delay_s) == (PartState.STOPPED, None)


def test_a_part_that_is_of_no_use_any_more_has_ended_for_good() -> None:
    gone = retired(became_ready(spawned(PartStatus(), 1, 0.0)), EXIT_SETTINGS)
    assert (gone.state, gone.pid, gone.last_exit_code) == (PartState.RETIRED, 0, EXIT_SETTINGS)
    assert stop_asked(gone) == gone
    with pytest.raises(InvariantViolation, match="removed cannot be spawned"):
        spawned(gone, 2, 1.0)
    with pytest.raises(InvariantViolation, match="removed cannot be exited"):
        exited(gone, 0, 1.0)


@pytest.mark.parametrize("state", [PartState.WAITING, PartState.BACKING_OFF])
def test_a_part_without_a_process_stops_at_once(state: PartState) -> None:
    assert stop_asked(PartStatus(state=state)).state is PartState.STOPPED


def test_readiness_that_is_noticed_after_the_end_changes_nothing() -> None:
    stopping = stop_asked(spawned(PartStatus(), 1, 0.0))
    gone, _ = exited(spawned(PartStatus(), 1, 0.0), code=1, now_s=0.0)
    assert became_ready(stopping) == stopping
    assert became_ready(gone) == gone


def test_a_start_has_failed_at_once_when_settings_are_refused_and_after_some_crashes_otherwise() -> None:
    refused, _ = exited(spawned(PartStatus(), 1, 0.0), code=EXIT_SETTINGS, now_s=0.0)
    assert refused.has_failed_to_start
    status = PartStatus()
    for pid in range(START_ATTEMPTS_MAX):
        assert not status.has_failed_to_start
        status, _ = exited(spawned(status, pid, 0.0), code=1, now_s=0.0)
    assert status.has_failed_to_start


def test_a_part_that_was_ready_once_never_counts_as_failed_to_start() -> None:
    status = became_ready(spawned(PartStatus(), 1, 0.0))
    for pid in range(2, 20):
        status, _ = exited(status, code=EXIT_SETTINGS, now_s=0.0)
        assert not status.has_failed_to_start
        status = spawned(status, pid, 0.0)


@pytest.mark.parametrize("state", [PartState.WAITING, PartState.BACKING_OFF, PartState.STOPPED])
def test_an_exit_without_a_process_is_a_broken_invariant(state: PartState) -> None:
    with pytest.raises(InvariantViolation, match=state.value):
        exited(PartStatus(state=state), code=0, now_s=0.0)


@given(st.lists(st.sampled_from(["ready", "crash", "settings", "wait", "stop"]), max_size=60))
def test_whatever_happens_the_delay_is_bounded_and_nothing_is_spawned_after_a_stop(events: list[str]) -> None:
    status, now_s, was_stopped = spawned(PartStatus(), 1, 0.0), 0.0, False
    for event in events:
        if event == "ready":
            status = became_ready(status)
        elif event == "wait":
            now_s += STABLE_AFTER_S / 2
        elif event == "stop":
            status, was_stopped = stop_asked(status), True
        elif status.has_process:
            status, delay_s = exited(status, EXIT_SETTINGS if event == "settings" else -9, now_s)
            assert (delay_s is None) == was_stopped
            assert delay_s is None or BACKOFF_S_MIN <= delay_s <= max(BACKOFF_S_MAX, SETTINGS_RETRY_S)
            if delay_s is not None:
                now_s += delay_s
                status = spawned(status, status.spawns + 1, now_s)
        if was_stopped:
            assert status.state in (PartState.STOPPING, PartState.STOPPED)


def test_the_delay_stays_finite_after_any_number_of_exits() -> None:
    assert backoff_s(10**9) == BACKOFF_S_MAX


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-9, "was killed by SIGKILL"),
        (-250, "was killed by signal 250"),
        (0, "ended by itself"),
        (1, "failed with exit code 1"),
        (78, "cannot start"),
    ],
)
def test_an_exit_is_told_in_words(code: int, text: str) -> None:
    assert describe_exit(code) == text

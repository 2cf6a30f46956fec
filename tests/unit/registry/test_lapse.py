"""What becomes of a lapsed instance, step by step, without a clock."""

from itertools import pairwise

import pytest
from quorate_registry.lapse import (
    PROBE_INTERVAL_S,
    SECOND_PROBE_AFTER_S,
    Circumstances,
    Lapse,
    Step,
)
from quorate_registry.probes import Finding

SEEN_S = 100.0
PROTECTED = Circumstances(is_protected=True, is_short=True, ttl_s=15, hold_s=300)
GUARDED = Circumstances(is_protected=True, is_short=False, ttl_s=15, hold_s=300)
UNPROTECTED = Circumstances(is_protected=False, is_short=False, ttl_s=15, hold_s=300)


def test_without_protection_it_goes_one_time_to_live_after_it_was_seen() -> None:
    lapse = Lapse(SEEN_S)
    assert lapse.due_s(UNPROTECTED) == SEEN_S + 15
    assert lapse.step(SEEN_S + 14.9, UNPROTECTED) is Step.WAIT
    assert lapse.step(SEEN_S + 15, UNPROTECTED) is Step.REAP_LAPSED


def test_protected_it_is_probed_at_once_then_soon_then_each_second() -> None:
    lapse = Lapse(SEEN_S)
    began_s: list[float] = []
    for _ in range(4):
        now_s = lapse.due_s(PROTECTED)
        if began_s:
            assert lapse.step(now_s - 0.001, PROTECTED) is Step.WAIT
        assert lapse.step(now_s, PROTECTED) is Step.PROBE
        lapse.take(Finding.CONNECTED, now_s)
        began_s.append(now_s)
    assert began_s[0] == SEEN_S
    gaps = [later - earlier for earlier, later in pairwise(began_s)]
    assert gaps == pytest.approx([SECOND_PROBE_AFTER_S, PROBE_INTERVAL_S, PROBE_INTERVAL_S])


def test_refused_twice_in_a_row_it_goes() -> None:
    lapse = Lapse(SEEN_S)
    lapse.take(Finding.REFUSED, SEEN_S)
    assert lapse.step(SEEN_S + 0.1, PROTECTED) is Step.WAIT
    lapse.take(Finding.REFUSED, SEEN_S + SECOND_PROBE_AFTER_S)
    assert lapse.step(SEEN_S + SECOND_PROBE_AFTER_S, PROTECTED) is Step.REAP_REFUSED
    assert lapse.due_s(PROTECTED) <= SEEN_S + SECOND_PROBE_AFTER_S


def test_a_connection_or_silence_between_two_refusals_ends_the_row() -> None:
    for between in (Finding.CONNECTED, Finding.UNDECIDED):
        lapse = Lapse(SEEN_S)
        for number, finding in enumerate((Finding.REFUSED, between, Finding.REFUSED)):
            lapse.take(finding, SEEN_S + number)
        assert lapse.step(SEEN_S + 2.1, PROTECTED) is Step.WAIT


def test_what_answers_or_is_silent_stays_until_the_hold_ends_and_no_longer() -> None:
    for finding in (Finding.CONNECTED, Finding.UNDECIDED):
        lapse = Lapse(SEEN_S)
        now_s, probes = SEEN_S, 0
        while (step := lapse.step(now_s, PROTECTED)) is Step.PROBE:
            lapse.take(finding, now_s)
            probes += 1
            now_s = lapse.due_s(PROTECTED)
        assert step is Step.REAP_HELD
        assert now_s == SEEN_S + 300
        assert 295 < probes < 305


def test_protection_that_ends_hides_it_and_leaves_it_its_time_to_live() -> None:
    lapse = Lapse(SEEN_S)
    lapse.take(Finding.REFUSED, SEEN_S)
    lapse.take(Finding.REFUSED, SEEN_S + 0.2)
    assert lapse.step(SEEN_S + 1, UNPROTECTED) is Step.WAIT
    assert lapse.due_s(UNPROTECTED) == SEEN_S + 15


def test_protection_that_ends_late_leaves_it_a_whole_time_to_live_to_come_back() -> None:
    lapse = Lapse(SEEN_S)
    assert lapse.step(SEEN_S + 100, PROTECTED) is Step.PROBE
    lapse.take(Finding.CONNECTED, SEEN_S + 100)
    assert lapse.step(SEEN_S + 101, UNPROTECTED) is Step.WAIT
    assert lapse.due_s(UNPROTECTED) == SEEN_S + 115
    assert lapse.step(SEEN_S + 115, UNPROTECTED) is Step.REAP_LAPSED


def test_protection_that_begins_later_probes_at_once() -> None:
    lapse = Lapse(SEEN_S)
    assert lapse.step(SEEN_S + 7, UNPROTECTED) is Step.WAIT
    assert lapse.step(SEEN_S + 7, PROTECTED) is Step.PROBE


def test_when_enough_are_back_it_is_probed_on_and_has_one_time_to_live_to_come_back_too() -> None:
    lapse = Lapse(SEEN_S)
    lapse.step(SEEN_S + 40, PROTECTED)
    lapse.take(Finding.CONNECTED, SEEN_S + 40)
    now_s, probes = SEEN_S + 40.2, 0
    while (step := lapse.step(now_s, GUARDED)) is Step.PROBE:
        lapse.take(Finding.UNDECIDED, now_s)
        probes += 1
        now_s = lapse.due_s(GUARDED)
    assert (step, now_s) == (Step.REAP_LAPSED, SEEN_S + 55)
    assert 14 < probes < 17
    assert not lapse.step(now_s, PROTECTED).reaps, "too few are alive again: it stays"
    assert not lapse.step(now_s + 14.9, GUARDED).reaps, "and then has its time to live anew"


def test_refused_twice_or_held_for_long_it_goes_also_when_enough_are_back() -> None:
    refused, held = Lapse(SEEN_S), Lapse(SEEN_S)
    for number in range(2):
        refused.take(Finding.REFUSED, SEEN_S + number)
    assert refused.step(SEEN_S + 1, GUARDED) is Step.REAP_REFUSED
    held.step(SEEN_S + 299, PROTECTED)
    assert held.step(SEEN_S + 300, GUARDED) is Step.REAP_HELD
    assert held.due_s(GUARDED) <= SEEN_S + 300


def test_only_removals_reap() -> None:
    assert [step for step in Step if step.reaps] == [Step.REAP_LAPSED, Step.REAP_REFUSED, Step.REAP_HELD]
    assert {step.value for step in Step if step.reaps} == {"lapsed", "refused", "hold ended"}

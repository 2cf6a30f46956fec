"""Which failing instances are held: by who is in doubt and since when, and not by who was heard of first."""

import random

from hypothesis import given
from hypothesis import strategies as st
from quorate_registry.checks.doubt import Doubt, Ruling, Terms, Verdict, marked, rule, without_mark
from quorate_registry.model import Health

NOW_MS = 1_000_000
AGREEMENT_MS = 41_000
HOLD_MS = 300_000
HALF = Terms(0.5, HOLD_MS)
WELL = Verdict(True, "connected", None, AGREEMENT_MS)
ILL = Verdict(False, "refused", None, AGREEMENT_MS)


def doubtful(since_ms: int = NOW_MS, held_ms: int = 0, *, is_held: bool = False) -> Verdict:
    return Verdict(False, "no connection", Doubt(since_ms, held_ms, is_held), AGREEMENT_MS)


def held(ruling: Ruling) -> set[object]:
    return {name for name, doubt in ruling.doubts.items() if doubt.is_held}


def ruled(*verdicts: Verdict, now_ms: int = NOW_MS, short_ms: int = 0, terms: Terms = HALF) -> Ruling:
    return rule(dict(enumerate(verdicts)), terms, now_ms, short_ms)


def test_while_enough_pass_those_in_doubt_are_believed_and_else_all_are_held() -> None:
    assert held(ruled(WELL, WELL, doubtful(), doubtful())) == set()
    assert held(ruled(WELL, doubtful(), doubtful(), doubtful())) == {1, 2, 3}
    assert held(ruled(doubtful())) == {0}, "of one alone too"
    assert held(ruled(doubtful(), terms=Terms(0, HOLD_MS))) == set()


def test_who_fails_by_a_word_of_its_own_is_never_held_and_counts_as_failing() -> None:
    ruling = ruled(WELL, ILL, ILL, doubtful())
    assert (ruling.is_short, set(ruling.doubts), held(ruling)) == (True, {3}, {3})


def test_a_doubt_that_is_older_than_checks_take_to_agree_is_of_something_else() -> None:
    old, young = doubtful(NOW_MS - AGREEMENT_MS - 1), doubtful(NOW_MS - AGREEMENT_MS)
    assert held(ruled(WELL, old, young, doubtful())) == {2, 3}


@given(st.integers(1, 12), st.data(), st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_order_in_which_results_come_makes_no_difference(
    instances: int, data: st.DataObject, threshold: float, chance: random.Random
) -> None:
    """Each fails when its check says so, within the time that checks take; after each all are judged."""
    cut_off = data.draw(st.sets(st.integers(0, instances - 1)))
    verdicts = dict.fromkeys(range(instances), WELL)
    terms = Terms(threshold, HOLD_MS)
    order = sorted(cut_off)
    chance.shuffle(order)
    at_ms = sorted(NOW_MS + chance.randrange(AGREEMENT_MS) for _ in order)
    short_ms = NOW_MS
    for name, now_ms in zip(order, at_ms, strict=True):
        verdicts[name] = doubtful(now_ms)
        ruling = rule(verdicts, terms, now_ms, short_ms)
        short_ms = now_ms if ruling.is_short else short_ms
        for each, doubt in ruling.doubts.items():
            assert isinstance(each, int)
            verdicts[each] = verdicts[each]._replace(doubt=doubt)
    passing = instances - len(cut_off)
    now_held = {name for name, verdict in verdicts.items() if verdict.doubt and verdict.doubt.is_held}
    assert now_held == (cut_off if passing < threshold * instances else set())
    if threshold > 0.5 and now_held:
        assert len(now_held) + passing == instances, "nobody is taken off by silence alone"


def test_when_enough_pass_again_the_others_have_as_long_as_checks_take_to_agree() -> None:
    rest = doubtful(NOW_MS - 60_000, NOW_MS - 60_000, is_held=True)
    ruling = ruled(WELL, WELL, rest, rest, short_ms=NOW_MS - 1)
    assert held(ruling) == {2, 3}
    assert ruling.due_ms == NOW_MS - 1 + AGREEMENT_MS
    assert held(ruled(WELL, WELL, rest, rest, short_ms=NOW_MS - AGREEMENT_MS)) == set()
    believed = doubtful(NOW_MS - 60_000, NOW_MS - 60_000)
    assert held(ruled(WELL, WELL, rest, believed, short_ms=NOW_MS - 1)) == {2}, "and nobody else is held for it"


def test_no_hold_is_longer_than_it_may_be_also_when_it_was_interrupted() -> None:
    first = ruled(doubtful(), doubtful()).doubts[0]
    assert first == Doubt(NOW_MS, NOW_MS, True)
    assert ruled(doubtful(), doubtful()).due_ms == NOW_MS + HOLD_MS
    one = Verdict(False, "", first, AGREEMENT_MS)
    interrupted = Verdict(False, "", first._replace(is_held=False), AGREEMENT_MS)
    for verdict in (one, interrupted):
        assert held(ruled(verdict, now_ms=NOW_MS + HOLD_MS - 1)) == {0}
        ended = ruled(verdict, now_ms=NOW_MS + HOLD_MS)
        assert (held(ended), ended.due_ms) == (set(), None)
        believed = Verdict(False, "", ended.doubts[0], AGREEMENT_MS)
        assert held(ruled(believed, now_ms=NOW_MS + HOLD_MS + 1)) == set()


def test_a_doubt_goes_on_where_another_owner_left_it_and_a_clock_ahead_prolongs_nothing() -> None:
    def stored(passing: bool, since_ms: int, held_ms: int) -> Health:
        return Health(
            passing=passing, output="", checked_by="", changed_at_ms=0, doubt_since_ms=since_ms, held_since_ms=held_ms
        )  # fmt: skip

    assert Doubt.of(stored(True, 5, 7), NOW_MS) == Doubt(5, 7, True)
    assert Doubt.of(stored(False, 5, 0), NOW_MS) == Doubt(5, 0, False)
    assert Doubt.of(stored(True, NOW_MS + 9, NOW_MS + 9), NOW_MS) == Doubt(NOW_MS, NOW_MS, True)
    assert Doubt.of(stored(True, 0, 0), NOW_MS) is None
    assert without_mark(marked("no connection")) == without_mark("no connection") == "no connection"

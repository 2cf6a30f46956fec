"""What results in a row decide, when who is due, and what people are shown."""

from hypothesis import given
from hypothesis import strategies as st
from quorate_registry.checks.judgement import Judgement
from quorate_registry.checks.outcome import OUTPUT_CHARS_MAX, Outcome
from quorate_registry.checks.schedule import (
    FIRST_SPREAD_S,
    JITTER_SHARE,
    STALE_MIN,
    Schedule,
    first_due_s,
    next_due_s,
)
from quorate_sdk.wire import TcpCheck

CHECK = TcpCheck(type="tcp", healthy_after=2, unhealthy_after=3)


def decided(judgement: Judgement, results: str) -> str:
    """For each result, `+` or `-`, what is decided after it."""
    shown = []
    for result in results:
        judgement.take(result == "+")
        shown.append("+" if judgement.is_passing else "-")
    return "".join(shown)


def test_the_first_result_decides_alone() -> None:
    assert decided(Judgement(CHECK, None), "+") == "+"
    assert decided(Judgement(CHECK, None), "-") == "-"


def test_bad_ones_in_a_row_turn_good_into_bad_and_a_good_one_between_ends_the_row() -> None:
    assert decided(Judgement(CHECK, None), "+--+---") == "++++++-"


def test_good_ones_in_a_row_turn_bad_into_good_and_a_bad_one_between_ends_the_row() -> None:
    assert decided(Judgement(CHECK, None), "-+-++") == "----+"


def test_who_takes_over_goes_on_from_what_is_decided() -> None:
    assert decided(Judgement(CHECK, True), "--") == "++"
    assert decided(Judgement(CHECK, False), "+") == "-"


def test_a_result_says_whether_it_has_decided() -> None:
    judgement = Judgement(CHECK, None)
    assert [judgement.take(result == "+") for result in "++---+"] == [True, False, False, False, True, False]


@given(st.text(alphabet="+-", max_size=40), st.integers(1, 10), st.integers(1, 10))
def test_decisions_are_those_of_the_definition(results: str, healthy_after: int, unhealthy_after: int) -> None:
    check = TcpCheck(type="tcp", healthy_after=healthy_after, unhealthy_after=unhealthy_after)
    expected, passing = [], results[:1]
    for index in range(len(results)):
        if passing == "+" and results[: index + 1].endswith("-" * unhealthy_after):
            passing = "-"
        elif passing == "-" and results[: index + 1].endswith("+" * healthy_after):
            passing = "+"
        expected.append(passing)
    if results[:1] == "-":  # the very first one decides alone, and is no part of a row of good ones
        assert expected[:1] == ["-"]
    assert decided(Judgement(check, None), results) == "".join(expected)


def test_due_ones_come_in_order_of_their_times() -> None:
    schedule: Schedule[str] = Schedule()
    for key, due_s in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        schedule.set(key, due_s)
    assert schedule.next_due_s() == 1.0
    assert [schedule.pop_due(2.0), schedule.pop_due(2.0), schedule.pop_due(2.0)] == ["a", "b", None]
    assert "c" in schedule
    assert "a" not in schedule


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 20))), max_size=60))
def test_a_schedule_is_what_a_plain_table_is(changes: list[tuple[str, int | None]]) -> None:
    schedule: Schedule[str] = Schedule()
    table: dict[str, float] = {}
    for key, due_s in changes:
        if due_s is None:
            schedule.discard(key)
            table.pop(key, None)
        else:
            schedule.set(key, float(due_s))
            table[key] = float(due_s)
        assert len(schedule) == len(table)
        assert schedule.next_due_s() == min(table.values(), default=None)
    popped = []
    while (key := schedule.pop_due(10.0)) is not None:
        popped.append(table.pop(key))
    assert popped == sorted(popped)
    assert all(due_s > 10 for due_s in table.values())


def test_setting_again_and_again_takes_no_memory() -> None:
    schedule: Schedule[int] = Schedule()
    for turn in range(10_000):
        schedule.set(turn % 3, 1e9 + turn)
    for key in range(3):
        schedule.discard(key)
    assert len(schedule._heap) <= 2 * 3 + STALE_MIN + 1


def test_what_was_never_checked_is_checked_soon_and_what_was_anywhere_in_its_interval() -> None:
    chances = [number / 100 for number in range(100)]
    fresh = [first_due_s(50.0, 10.0, False, lambda chance=chance: chance) for chance in chances]
    taken_over = [first_due_s(50.0, 10.0, True, lambda chance=chance: chance) for chance in chances]
    assert min(fresh) == min(taken_over) == 50.0
    assert max(fresh) < 50.0 + FIRST_SPREAD_S
    assert 59.8 < max(taken_over) < 60.0


def test_intervals_differ_a_little_and_are_right_on_average() -> None:
    intervals = [next_due_s(50.0, 10.0, lambda chance=number / 100: chance) - 50.0 for number in range(101)]
    assert min(intervals) >= 10 * (1 - JITTER_SHARE)
    assert max(intervals) <= 10 * (1 + JITTER_SHARE)
    assert abs(sum(intervals) / len(intervals) - 10) < 1e-6


def test_what_is_shown_is_one_short_printable_line_whatever_a_peer_has_sent() -> None:
    shown = Outcome.of(False, "status 500:\r\n\x1b[31m" + "x" * 10_000_000).output
    assert shown.startswith("status 500: \N{REPLACEMENT CHARACTER}[31mxxx")
    assert len(shown) == OUTPUT_CHARS_MAX
    assert shown.isprintable()
    assert Outcome.of(True, "  ").output == ""

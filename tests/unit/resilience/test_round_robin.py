"""RoundRobin: each candidate in turn, whatever comes and goes."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience import RoundRobin


def picks(balancer: RoundRobin[str], candidates: tuple[str, ...], count: int) -> list[str | None]:
    return [balancer.pick(candidates) for _ in range(count)]


def test_each_candidate_gets_its_turn_in_order() -> None:
    assert picks(RoundRobin(), ("a", "b", "c"), 7) == ["a", "b", "c", "a", "b", "c", "a"]


def test_the_first_turn_can_be_anyones() -> None:
    assert picks(RoundRobin(first_index=4), ("a", "b", "c"), 3) == ["b", "c", "a"]


def test_no_candidate_gives_none_and_the_turn_begins_when_some_come() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    assert balancer.pick(()) is None
    assert picks(balancer, ("a", "b"), 2) == ["a", "b"]


def test_tried_candidates_are_left_out_until_none_is_left() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    candidates = ("a", "b", "c")
    assert balancer.pick(candidates) == "a"
    assert balancer.pick(candidates, excluded=("a",)) == "b"
    assert balancer.pick(candidates, excluded=("a", "b")) == "c"
    assert balancer.pick(candidates, excluded=candidates) is None


def test_a_pick_in_place_of_a_failed_one_takes_nobodys_turn() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    candidates = ("a", "b", "c")
    assert balancer.pick(candidates) == "a"
    assert [balancer.pick(candidates, excluded=("a",)) for _ in range(4)] == ["b", "c", "b", "c"]
    assert picks(balancer, candidates, 3) == ["b", "c", "a"]


def test_the_share_of_a_dead_candidate_is_not_lost() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    answered: Counter[str | None] = Counter()
    for _ in range(30):
        picked = balancer.pick(("a", "dead", "b"))
        answered[picked if picked != "dead" else balancer.pick(("a", "dead", "b"), excluded=("dead",))] += 1
    assert answered == {"a": 15, "b": 15}


def test_the_turn_goes_on_after_the_last_picked_when_one_before_it_goes() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    assert picks(balancer, ("a", "b", "c", "d"), 2) == ["a", "b"]
    assert picks(balancer, ("b", "c", "d"), 3) == ["c", "d", "b"]


def test_the_turn_goes_on_after_the_last_picked_when_one_comes_before_it() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    assert picks(balancer, ("b", "c"), 1) == ["b"]
    assert picks(balancer, ("a", "b", "c"), 3) == ["c", "a", "b"]


def test_when_the_last_picked_is_gone_its_successor_is_next() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    assert picks(balancer, ("a", "b", "c"), 2) == ["a", "b"]
    assert picks(balancer, ("a", "c"), 2) == ["c", "a"]


def test_a_set_that_alternates_at_every_pick_starves_nobody() -> None:
    balancer: RoundRobin[str] = RoundRobin()
    counts: Counter[str | None] = Counter()
    for turn in range(60):
        counts[balancer.pick(("a", "b", "c") if turn % 2 else ("a", "b", "c", "d"))] += 1
    assert min(counts[name] for name in "abc") >= 15


@given(st.integers(1, 12), st.integers(0, 100), st.integers(0, 20))
def test_with_a_fixed_set_counts_differ_by_at_most_one(size: int, count: int, first_index: int) -> None:
    candidates = tuple(str(number) for number in range(size))
    counts = Counter(picks(RoundRobin(first_index), candidates, count))
    assert max(counts.values(), default=0) - min((counts[name] for name in candidates), default=0) <= 1


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcde")), st.sets(st.sampled_from("abcde"))), max_size=40))
def test_a_pick_is_a_candidate_that_was_not_tried_whenever_there_is_one(turns: list[tuple[set[str], set[str]]]) -> None:
    balancer: RoundRobin[str] = RoundRobin()
    for present, tried in turns:
        picked = balancer.pick(tuple(sorted(present)), tried)
        assert (picked in present - tried) if present - tried else picked is None

"""At which revision nodes are compared, and what is made of their digests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_registry.digest import RULE
from quorate_registry.divergence import Difference, Word, common_revision, difference


def word(floor: int, revision: int, rule: int = RULE) -> Word:
    return Word(rule, floor, revision)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, None),
        ({"a": word(1, 9)}, None),
        ({"a": word(1, 9), "b": word(1, 7)}, 7),
        ({"a": word(1, 9), "b": word(8, 9)}, 9),
        # One that is still loading is left out, and one of another version.
        ({"a": word(1, 9), "b": word(1, 7), "c": word(0, 0)}, 7),
        ({"a": word(1, 9), "b": word(1, 7, rule=RULE + 1)}, None),
        # The slowest is behind what all others remember: they are compared without it.
        ({"a": word(50, 90), "b": word(60, 80), "c": word(1, 7)}, 80),
        ({"a": word(50, 90), "c": word(1, 7)}, None),
    ],
)
def test_nodes_are_compared_at_the_greatest_revision_that_they_have_in_common(
    words: dict[str, Word], expected: int | None
) -> None:
    assert common_revision(words) == expected


@given(st.dictionaries(st.text(min_size=1, max_size=2), st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=5))
def test_the_revision_is_covered_by_at_least_two(found: dict[str, tuple[int, int]]) -> None:
    words = {name: word(floor, floor + more) for name, (floor, more) in found.items()}
    revision = common_revision(words)
    if revision is not None:
        assert sum(each.floor <= revision <= each.revision for each in words.values()) >= 2


def test_equal_digests_are_no_difference() -> None:
    assert difference(7, {}) is None
    assert difference(7, {"a": "0"}) is None
    assert difference(7, {"a": "0", "b": "0"}) is None


@pytest.mark.parametrize(
    ("digests", "odd", "told"),
    [
        ({"a": "0", "b": "1", "c": "0"}, ("b",), "a, c agree; b differs"),
        ({"a": "0", "b": "1"}, ("a", "b"), "a differs; b differs"),
        ({"a": "0", "b": "1", "c": "2"}, ("a", "b", "c"), "a differs; b differs; c differs"),
        ({"a": "0", "b": "1", "c": "1", "d": "1", "e": "0"}, ("a", "e"), "b, c, d agree; a, e agree"),
    ],
)
def test_those_that_differ_from_most_are_the_odd_ones(digests: dict[str, str], odd: tuple[str, ...], told: str) -> None:
    found = difference(7, digests)
    assert found is not None
    assert (found.odd, str(found)) == (odd, f"copies of the registry differ at revision 7: {told}")


def test_a_difference_is_open_while_one_of_it_is_up_and_was_not_compared() -> None:
    found = Difference(7, (("a", "c"), ("b",)))
    everybody = {"a", "b", "c"}
    assert found.is_open({"a", "c"}, everybody)
    assert not found.is_open(everybody, everybody)
    assert not found.is_open({"a"}, {"a", "c"})

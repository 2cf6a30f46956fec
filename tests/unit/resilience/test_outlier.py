"""Outlier ejection: whom, for how long, how many at once, and that each comes back by itself."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quorate_resilience.outlier import EjectionSettings, OutlierEjection

RULE = EjectionSettings(consecutive_failures=3, ejection_s=10.0, ejection_s_max=35.0, ejected_percent_max=50.0)


def ejection(*members: str, rule: EjectionSettings = RULE) -> OutlierEjection:
    made = OutlierEjection(rule)
    made.keep(members)
    return made


def fail(outliers: OutlierEjection, member: str, now_s: float, times: int = 3) -> bool:
    """Whether the last of them ejected it."""
    outliers.advance(now_s)
    return [outliers.failed(member, now_s) for _ in range(times)][-1]


def test_so_many_failures_one_after_the_other_eject_a_member() -> None:
    outliers = ejection("a", "b")
    assert not fail(outliers, "a", 0.0, 2)
    outliers.succeeded("a")
    assert not fail(outliers, "a", 1.0, 2)
    assert fail(outliers, "a", 2.0, 1)
    assert list(outliers.ejected) == ["a"]
    assert (outliers.ejected_until_s("a"), outliers.ejected_until_s("b")) == (12.0, None)
    assert outliers.ejections == 1


def test_it_is_back_by_itself_when_its_time_is_over() -> None:
    outliers = ejection("a", "b")
    fail(outliers, "a", 5.0)
    assert outliers.returns_s == 15.0
    assert outliers.advance(14.999) == []
    assert outliers.advance(15.0) == ["a"]
    assert (list(outliers.ejected), outliers.returns_s) == ([], math.inf)


def test_on_trial_one_failure_is_enough_until_it_has_succeeded_once() -> None:
    outliers = ejection("a", "b")
    fail(outliers, "a", 0.0)
    outliers.advance(10.0)
    assert fail(outliers, "a", 10.0, 1)
    outliers.advance(30.0)
    outliers.succeeded("a")
    assert not fail(outliers, "a", 30.0, 2)


def test_ejections_in_a_row_last_longer_each_up_to_the_maximum() -> None:
    outliers, now_s, lasted_s = ejection("a", "b"), 0.0, []
    for _ in range(5):
        fail(outliers, "a", now_s)
        ends_s = outliers.ejected_until_s("a")
        assert ends_s is not None
        lasted_s.append(ends_s - now_s)
        now_s = ends_s
    assert lasted_s == [10.0, 20.0, 30.0, 35.0, 35.0]


def test_who_has_stayed_in_for_as_long_as_it_was_out_begins_anew() -> None:
    outliers = ejection("a", "b")
    fail(outliers, "a", 0.0)
    fail(outliers, "a", 10.0)
    assert outliers.ejected_until_s("a") == 30.0
    fail(outliers, "a", 50.0)
    assert outliers.ejected_until_s("a") == 60.0


def test_what_was_begun_before_an_ejection_does_not_count() -> None:
    outliers = ejection("a", "b")
    fail(outliers, "a", 0.0)
    assert not fail(outliers, "a", 1.0, 50)
    assert outliers.ejected_until_s("a") == 10.0
    outliers.succeeded("a")
    outliers.advance(10.0)
    assert fail(outliers, "a", 10.0, 1), "an old success is no answer to the trial"


@pytest.mark.parametrize(
    ("members", "percent", "most"),
    [(1, 100, 0), (2, 0, 1), (2, 100, 1), (3, 50, 1), (4, 50, 2), (10, 50, 5), (10, 10, 1), (10, 100, 9), (9, 35, 3)],
)
def test_no_more_than_the_part_are_ejected_one_may_always_be_and_one_always_stays(
    members: int, percent: float, most: int
) -> None:
    names = [f"m{number}" for number in range(members)]
    outliers = ejection(*names, rule=EjectionSettings(1, ejected_percent_max=percent))
    ejected = [name for name in names if fail(outliers, name, 0.0, 1)]
    assert ejected == names[:most]


def test_who_could_not_be_ejected_is_when_there_is_room_and_it_fails_again() -> None:
    outliers = ejection("a", "b", "c")
    fail(outliers, "a", 0.0)
    assert not fail(outliers, "b", 5.0)
    assert fail(outliers, "b", 10.0, 1)


def test_a_member_that_goes_takes_what_is_known_of_it_along() -> None:
    outliers = ejection("a", "b")
    fail(outliers, "a", 0.0)
    outliers.keep(["b"])
    assert outliers.returns_s == math.inf
    outliers.keep(["a", "b"])
    assert list(outliers.ejected) == []
    assert not fail(outliers, "a", 1.0, 2)
    assert fail(outliers, "a", 1.0, 1)
    assert outliers.ejected_until_s("a") == 11.0
    outliers.succeeded("stranger")
    assert not outliers.failed("stranger", 2.0)


def test_when_others_go_those_nearest_to_their_time_are_let_in_so_that_one_stays() -> None:
    outliers = ejection("a", "b", "c", "d")
    fail(outliers, "a", 0.0)
    fail(outliers, "b", 1.0)
    outliers.keep(["a", "b"])
    assert list(outliers.ejected) == ["b"]
    assert outliers.returns_s == 11.0


@pytest.mark.parametrize(
    "values",
    [{"consecutive_failures": 0}, {"ejection_s": 0.0}, {"ejection_s": math.nan}, {"ejection_s_max": math.inf},
     {"ejected_percent_max": -1.0}, {"ejected_percent_max": 101.0}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        EjectionSettings(**values)  # type: ignore[arg-type] - that is what is tried


class Outliers(RuleBasedStateMachine):
    """Against the definition, by the whole history of each member."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.outliers = OutlierEjection(RULE)
        self.members: set[str] = set()
        self.rows: dict[str, int] = {}
        self.ejected: dict[str, float] = {}

    @initialize(members=st.sets(st.sampled_from("abcdef")))
    def begin(self, members: set[str]) -> None:
        self.change(members)

    @rule(members=st.sets(st.sampled_from("abcdef")))
    def change(self, members: set[str]) -> None:
        self.outliers.keep(members)
        self.members = members
        self.rows = {name: self.rows.get(name, 0) for name in members}
        self.ejected = {name: self.ejected[name] for name in self.outliers.ejected}

    @rule(wait_s=st.floats(0, 40))
    def wait(self, wait_s: float) -> None:
        self.now_s += wait_s
        back = {name for name, ends_s in self.ejected.items() if self.now_s >= ends_s}
        assert set(self.outliers.advance(self.now_s)) == back
        for name in back:
            del self.ejected[name]

    @precondition(lambda self: self.members)
    @rule(data=st.data(), failed=st.booleans())
    def end(self, data: st.DataObject, failed: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.members)))
        if not failed:
            self.outliers.succeeded(name)
            if name not in self.ejected:
                self.rows[name] = 0
            return
        is_ejected = self.outliers.failed(name, self.now_s)
        if name in self.ejected:
            assert not is_ejected
            return
        self.rows[name] += 1
        most = min(max(1, len(self.members) // 2), len(self.members) - 1)
        assert is_ejected == (self.rows[name] >= 3 and len(self.ejected) < most)
        if is_ejected:
            ends_s = self.outliers.ejected_until_s(name)
            assert ends_s is not None
            assert 9.999 <= ends_s - self.now_s <= 35.001  # but for rounding
            self.ejected[name], self.rows[name] = ends_s, 2

    @invariant()
    def one_stays_and_no_more_than_half_are_out(self) -> None:
        assert set(self.outliers.ejected) == self.ejected.keys() <= self.members
        assert len(self.ejected) <= max(len(self.members) - 1, 0)
        assert len(self.ejected) <= max(1, len(self.members) // 2)
        assert self.outliers.returns_s == min(self.ejected.values(), default=math.inf)


TestOutliers = Outliers.TestCase
TestOutliers.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.lists(st.booleans(), max_size=200))
def test_a_member_alone_is_never_ejected(failures: list[bool]) -> None:
    outliers = ejection("only")
    for number, failed in enumerate(failures):
        if failed:
            assert not outliers.failed("only", float(number))
        else:
            outliers.succeeded("only")

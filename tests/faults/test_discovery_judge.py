"""The judge of what discovery says: it finds each kind of wrong answer, and tells no span shorter than it was."""

import pytest
from support import plain_http
from support.fault_discovery import DEAD, MISSING, Judge, NodeView, Observer, Span, Truth
from support.gateway_upstream import Exchange, Upstream

UP = {"a": (True, 0.0)}
DOWN = {"a": (False, 10.0)}
LISTED, EMPTY = frozenset({"a"}), frozenset[str]()


def judged(*looks: tuple[float, frozenset[str], dict[str, tuple[bool, float]]]) -> Judge:
    judge = Judge("node-1")
    for now_s, listed, truth in looks:
        judge.look(listed, truth, now_s)
    return judge


def test_right_answers_are_no_spans() -> None:
    judge = judged((1, LISTED, UP), (2, LISTED, UP), (11, EMPTY, DOWN))
    assert (judge.samples, judge.all_spans(), judge.is_right) == (3, [], True)
    assert not judge.wrong


def test_a_dead_instance_is_dead_from_its_death_to_the_next_right_answer() -> None:
    judge = judged((9.9, LISTED, UP), (10.5, LISTED, DOWN), (12.5, LISTED, DOWN), (13.0, EMPTY, DOWN))
    assert judge.spans == [Span("node-1", "a", DEAD, 10.0, 13.0)]
    assert (judge.wrong[DEAD], judge.is_right) == (2, True)


def test_a_live_instance_is_missing_from_the_last_right_answer_on() -> None:
    """It may have been missing from right after that one."""
    judge = judged((1, LISTED, UP), (2, LISTED, UP), (5, EMPTY, UP), (6, LISTED, UP))
    assert judge.spans == [Span("node-1", "a", MISSING, 2, 6)]


def test_one_that_is_not_told_of_yet_is_missing_from_its_first_answer_on() -> None:
    judge = judged((1, EMPTY, {"a": (True, 0.5)}), (2, LISTED, {"a": (True, 0.5)}))
    assert judge.spans == [Span("node-1", "a", MISSING, 0.5, 2)]


def test_what_is_wrong_at_the_end_is_a_span_too_and_goes_on() -> None:
    judge = judged((1, LISTED, UP), (3, EMPTY, UP))
    (span,) = judge.all_spans()
    assert (span.end_s, span.lasted_s(11), judge.is_right) == (None, 10, False)


def test_one_kind_of_wrong_that_becomes_the_other_is_two_spans() -> None:
    judge = judged((1, EMPTY, UP), (11, LISTED, DOWN), (12, EMPTY, DOWN))
    assert [(span.kind, span.begin_s, span.end_s) for span in judge.spans] == [(MISSING, 0.0, 11), (DEAD, 10.0, 12)]


def test_instances_are_judged_each_for_itself() -> None:
    truth = {"a": (True, 0.0), "b": (False, 0.0)}
    judge = judged((1, frozenset({"b"}), truth), (2, frozenset({"a"}), truth))
    assert sorted((span.instance, span.kind) for span in judge.spans) == [("a", MISSING), ("b", DEAD)]


def test_an_answer_that_was_on_its_way_while_the_truth_changed_is_no_sample() -> None:
    truth = Truth()
    truth.answers("a")
    truth.is_unsettled("b")
    later_s = float("inf")
    assert truth.unchanged_since(0.0) == {}, "it did not answer yet when that answer was asked for"
    assert set(truth.unchanged_since(later_s)) == {"a"}, "b may be there or not"
    truth.is_dead("a")
    assert truth.unchanged_since(later_s)["a"][0] is False


@pytest.mark.parametrize(
    ("instances", "listed"),
    [
        ('{"id":"a","status":"UP","weight":1}', {"a"}),
        ('{"id":"a","status":"UP","weight":0}', set()),
        ('{"id":"a","status":"DRAINING","weight":1}', set()),
    ],
)
async def test_only_who_takes_traffic_counts_as_listed(instances: str, listed: set[str]) -> None:
    async def reply(exchange: Exchange) -> None:
        await exchange.reply(b'{"instances":[%b]}' % instances.encode())

    async with Upstream(reply) as node, plain_http.async_client() as http:
        assert await NodeView("n", f"http://127.0.0.1:{node.port}", "s", http).listed() == listed


async def test_a_node_that_does_not_answer_is_silent_and_not_wrong() -> None:
    async def hang_up(exchange: Exchange) -> None:
        exchange.close()

    async with Upstream(hang_up) as node, plain_http.async_client() as http:
        assert await NodeView("n", f"http://127.0.0.1:{node.port}", "s", http).listed() is None


def test_figures_that_are_over_their_bounds_fail_the_test() -> None:
    observer = Observer({"node-1": "http://127.0.0.1:1"}, "observed", {})
    for judge in observer._judges.values():
        judge.look(LISTED, {"a": (False, 1.0)}, 2.0)
        judge.look(EMPTY, {"a": (False, 1.0)}, 3.0)
    assert "1 dead, for 2.00 s at most" in observer.require(dead_s_max=2.0, missing_s_max=0.0)
    with pytest.raises(AssertionError, match=r"dead for longer than 1\.50 s"):
        observer.require(dead_s_max=1.5, missing_s_max=0.0)


def test_a_view_that_was_never_asked_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="0 answers"):
        Observer({"node-1": "http://127.0.0.1:1"}, "observed", {}).require(dead_s_max=9.0, missing_s_max=9.0)

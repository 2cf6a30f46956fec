"""The words of all nodes, put together: what proves that nobody routes to an instance any more."""

from typing import Any

import pytest
from quorate_core.clock import ManualClock
from quorate_registry.acknowledgements import RETURN_S
from quorate_registry.drain import Round
from quorate_registry.recent_nodes import RecentNodes
from quorate_store.apps import FleetAnswer, FleetNode


def said(node: str, **word: Any) -> FleetAnswer:
    whole = {"acknowledged": [], "pending": [], "departed": [], **word}
    return FleetAnswer(FleetNode(node, f"http://{node}"), whole)


def one(subscriber: str, revision: int = 3) -> dict[str, Any]:
    return {"subscriber": subscriber, "revision": revision}


def round_of(answers: list[FleetAnswer]) -> Round:
    return Round(answers, {})


def test_it_is_proof_when_everybody_was_asked_and_nobody_is_missing() -> None:
    found = round_of([said("n1", acknowledged=["a", "b"]), said("n2", acknowledged=["c"])])
    assert (found.is_proof, found.is_final, found.acknowledged) == (True, True, ["a", "b", "c"])
    assert round_of([said("n1")]).is_proof
    assert not round_of([]).is_proof


@pytest.mark.parametrize(
    "answer",
    [
        FleetAnswer(FleetNode("n2", "http://n2"), error="no answer within 2 s"),
        FleetAnswer(FleetNode("n2", "http://n2"), {"acknowledged": "all"}),
        FleetAnswer(FleetNode("n2", "http://n2"), None),
    ],
)
def test_a_node_that_says_nothing_that_makes_sense_is_silent(answer: FleetAnswer) -> None:
    found = round_of([said("n1", acknowledged=["a"]), answer])
    assert (found.is_proof, found.is_final) == (False, False)
    assert [silent.node for silent in found.silent] == ["n2"]


def test_who_is_missing_at_one_node_has_not_acknowledged_though_another_node_says_so() -> None:
    """The same name has two streams."""
    found = round_of([said("n1", acknowledged=["a"]), said("n2", pending=[one("a")])])
    assert (found.is_proof, found.acknowledged) == (False, [])
    assert [(each.subscriber, each.node, each.revision) for each in found.pending] == [("a", "n2", 3)]


@pytest.mark.parametrize(("elsewhere", "is_proof"), [({"acknowledged": ["a"]}, True), ({}, False)])
def test_who_has_departed_from_one_node_counts_where_it_is_now(elsewhere: dict[str, Any], is_proof: bool) -> None:
    found = round_of([said("n1", departed=[one("a")]), said("n2", **elsewhere)])
    assert found.is_proof is is_proof
    assert found.is_final is is_proof


def test_who_is_back_and_has_not_acknowledged_yet_is_missing_once() -> None:
    found = round_of([said("n1", departed=[one("a")]), said("n2", pending=[one("a", 2)])])
    assert [(each.subscriber, each.node) for each in found.pending] == [("a", "n2")]


def test_to_ask_again_is_of_no_use_when_only_streams_without_a_name_are_missing() -> None:
    nameless = said("n1", acknowledged=["a"], pending=[one("127.0.0.1:4711", 0)], anonymous=1)
    assert (round_of([nameless]).is_proof, round_of([nameless]).is_final) == (False, True)
    assert not round_of([nameless, said("n2", pending=[one("b")])]).is_final


@pytest.mark.parametrize(("settling_s", "gone"), [(7.2, {}), (0.0, {"n2": 7.2})])
def test_while_clients_may_be_on_their_way_nothing_is_proven(settling_s: float, gone: dict[str, float]) -> None:
    """From a node that has begun anew, or from one that has gone."""
    found = Round([said("n1", acknowledged=["a"]), said("n3", settling_s=settling_s)], gone)
    assert (found.is_proof, found.is_final, found.acknowledged) == (False, False, ["a"])
    [silent] = found.silent
    assert (silent.node, "ask again in 8 s" in silent.error) == ("n3" if settling_s else "n2", True)


def test_a_node_that_has_gone_counts_for_a_while_from_when_it_was_missed() -> None:
    clock = ManualClock()
    recent = RecentNodes(clock)
    assert recent.take({"n1", "n2"}) == {}
    clock.advance(100)
    assert recent.take({"n1"}) == {"n2": RETURN_S}
    clock.advance(RETURN_S - 1)
    assert recent.take({"n1"}) == {"n2": 1}
    clock.advance(1)
    assert recent.take({"n1"}) == {}


def test_a_node_that_is_back_has_not_gone() -> None:
    """It says itself how long it has been back for."""
    recent = RecentNodes(ManualClock())
    recent.take({"n1", "n2"})
    recent.take({"n1"})
    assert recent.take({"n1", "n2"}) == {}
    assert recent.take({"n1"}) == {"n2": RETURN_S}


def test_a_member_that_is_there_and_not_among_the_nodes_may_have_streams() -> None:
    """It is starting, or stands still. One that has gone is told of once."""
    found = Round([said("n1", acknowledged=["a"])], {"n3": 5.0}, ["n2", "n3", "n1"])
    assert (found.is_proof, found.is_final, [silent.node for silent in found.silent]) == (False, False, ["n3", "n2"])
    assert Round([said("n1"), said("n2")], {}, ["n2"]).is_proof

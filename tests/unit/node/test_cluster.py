"""The cluster's status: every node's word, who did not answer, and a leader only when a majority names it."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.settings import HostPort
from quorate_node.cluster import ClusterApi, Identity, MemberView, agreed_leader, report_of
from quorate_node.fleet import NODES_PREFIX, StoreFleet
from quorate_node.members import Members
from quorate_raft.core.membership import Member, Membership
from quorate_sdk.wire import ClusterStatus, NodeReport, NodeStatus
from quorate_store.apps import FleetAnswer, FleetNode
from support.cluster_control import ScriptedCluster
from support.node_app import client_of
from support.store_local import local_store

MEMBERS = ["n1", "n2", "n3"]
LOOPBACK = HostPort("127.0.0.1", 80)


def status(name: str, leader: str, term: int = 1) -> NodeStatus:
    return NodeStatus(
        name=name, url="", role="follower", leader=leader, term=term, commit_index=1, applied_index=1, revision=1,
        store_bytes=0, members=MEMBERS, connected=[], apps=[], uptime_s=0.0,
    )  # fmt: skip


def reports(*words: tuple[str, str, int] | str) -> list[NodeReport]:
    """A word is (name, leader, term); a bare name did not answer."""
    return [
        NodeReport(name=word, url="", error="no answer")
        if isinstance(word, str)
        else NodeReport(name=word[0], url="", status=status(*word))
        for word in words
    ]


@pytest.mark.parametrize(
    ("words", "leader"),
    [
        ([("n1", "n1", 2), ("n2", "n1", 2), ("n3", "n1", 2)], "n1"),
        ([("n1", "n1", 2), ("n2", "n1", 2), "n3"], "n1"),
        ([("n1", "n1", 2), "n2", "n3"], ""),
        ([("n1", "n1", 2), ("n2", "n2", 3), ("n3", "", 3)], ""),
        ([("n1", "n1", 2), ("n2", "n1", 3), "n3"], ""),
        ([("n1", "n1", 2), ("n2", "n2", 3), ("n3", "n2", 3)], "n2"),
        ([("n1", "n1", 2), ("guest", "n1", 2), "n3"], ""),
        ([("n1", "", 1), ("n2", "", 1), ("n3", "", 1)], ""),
    ],
)
def test_a_leader_is_named_by_a_majority_of_the_voters_in_one_term(
    words: Sequence[tuple[str, str, int] | str], leader: str
) -> None:
    assert agreed_leader(MEMBERS, reports(*words)) == leader


def test_an_answer_that_makes_no_sense_is_that_nodes_error() -> None:
    node = FleetNode("n1", "http://n1")
    assert "makes no sense" in str(report_of(FleetAnswer(node, {"name": "n1"})).error)
    assert "makes no sense" in str(report_of(FleetAnswer(node, [])).error)
    imposter = report_of(FleetAnswer(node, status("n2", "n2").model_dump()))
    assert imposter.error == "n2 answers there, not n1"
    assert report_of(FleetAnswer(node, error="no answer: refused")).error == "no answer: refused"
    assert report_of(FleetAnswer(node, status("n1", "n2").model_dump())).status == status("n1", "n2")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with local_store(tmp_path, name="n1") as store:
        await store.put(NODES_PREFIX + b"n2", b'{"url": "http://127.0.0.1:1"}')
        api = create_app(Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None)))
        learners = [Member(name, f"{name}:1", is_learner=True) for name in ("n2", "n3")]
        membership = Membership((Member("n1", "n1:1"), *learners))
        control = ScriptedCluster("n1", membership, "n1")
        async with StoreFleet(store, FleetNode("n1", "http://127.0.0.1"), api) as fleet, client_of(api) as client:
            members = Members(control, fleet, "c-1")
            identity = Identity("n1", "http://127.0.0.1", ("registry",))
            ClusterApi(identity, MemberView(store, control), members, fleet, ManualClock()).mount(api)
            yield client


async def test_a_node_reports_itself_and_says_who_did_not_answer(client: httpx.AsyncClient) -> None:
    answer = ClusterStatus.model_validate_json((await client.get("/v1/cluster/status")).content)
    [own, silent, down] = answer.nodes
    assert (answer.leader, own.name, own.error) == ("n1", "n1", None)
    assert own.status is not None
    assert (own.status.apps, own.status.url, own.status.uptime_s) == (["registry"], "http://127.0.0.1", 0.0)
    assert (silent.name, silent.status) == ("n2", None)
    assert str(silent.error).startswith("no answer: ")
    assert (down.name, down.error) == ("n3", "no answer: it is not among the nodes that are up")


async def test_a_learner_that_is_silent_takes_no_part_in_naming_the_leader(client: httpx.AsyncClient) -> None:
    """n1 is the only voter, so its own word is a majority's."""
    assert (await client.get("/v1/cluster/status")).json()["leader"] == "n1"


async def test_a_node_answers_for_itself_alone(client: httpx.AsyncClient) -> None:
    answer = NodeStatus.model_validate_json((await client.get("/v1/cluster/node")).content)
    assert (answer.name, answer.role, answer.leader) == ("n1", "leader", "n1")


async def test_what_apps_want_an_operator_to_know_is_part_of_the_nodes_word(tmp_path: Path) -> None:
    alarms: list[str] = []
    async with local_store(tmp_path, name="n1") as store:
        api = create_app(Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None)))
        control = ScriptedCluster("n1", Membership((Member("n1", "n1:1"),)), "n1")
        async with StoreFleet(store, FleetNode("n1", "http://127.0.0.1"), api) as fleet, client_of(api) as client:
            members, identity = Members(control, fleet, "c-1"), Identity("n1", "http://127.0.0.1", ())
            view = MemberView(store, control)
            ClusterApi(identity, view, members, fleet, ManualClock(), lambda: list(alarms)).mount(api)
            assert (await client.get("/v1/cluster/node")).json()["alarms"] == []
            alarms.append("copies differ")
            assert (await client.get("/v1/cluster/node")).json()["alarms"] == ["copies differ"]
            [own] = (await client.get("/v1/cluster/status")).json()["nodes"]
    assert own["status"]["alarms"] == ["copies differ"]

"""Who is a member, asked and changed through any node."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.errors import Conflict, NotProposed, OutcomeUnknown
from quorate_core.settings import HostPort
from quorate_node.cluster import ClusterApi, Identity, MemberView
from quorate_node.members import PROGRESS_METHOD, Members, difference
from quorate_raft.core.membership import AddLearner, Member, Membership, PromoteLearner
from quorate_sdk.wire import MemberList
from quorate_store.apps import FleetAnswer, FleetNode
from support.cluster_control import Follower, ScriptedCluster
from support.node_app import client_of
from support.store_local import local_store

LOOPBACK = HostPort("127.0.0.1", 80)
THREE = Membership.of_voters({"n1": "h1:1", "n2": "h2:1", "n3": "h3:1"})
WITH_LEARNER = Membership((*THREE.members, Member("n4", "h4:1", is_learner=True)), ("n0",))


class ThisFleet:
    """The nodes that are up: n1 and n3."""

    async def nodes(self) -> Sequence[FleetNode]:
        return [FleetNode("n1", "http://h1:80"), FleetNode("n3", "http://h3:80")]

    async def ask_all(self, path: str, timeout_s: float = 2.0) -> Sequence[FleetAnswer]:
        raise AssertionError(f"{path} is asked of nobody, within {timeout_s} s")


@pytest.fixture
def cluster() -> ScriptedCluster:
    """n2 is asked and n1 leads; all answer, and the learner lacks some."""
    followers = {"n2": Follower(100), "n3": Follower(90), "n4": Follower(60)}
    return ScriptedCluster("n2", WITH_LEARNER, "n1", followers)


@pytest.fixture
async def client(cluster: ScriptedCluster, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    api: FastAPI = create_app(Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None)))
    fleet = ThisFleet()
    async with local_store(tmp_path, name="n2") as store, client_of(api) as client:
        members = Members(cluster, fleet, "c-1")
        identity = Identity("n2", "http://h2", ())
        ClusterApi(identity, MemberView(store, cluster), members, fleet, ManualClock()).mount(api)
        yield client


async def listed(client: httpx.AsyncClient) -> MemberList:
    answer = await client.get("/v1/cluster/members")
    assert answer.status_code == 200, answer.text
    return MemberList.model_validate_json(answer.content)


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    body = dict(answer.json())
    assert body["type"] == f"urn:quorate:problem:{slug}"
    return body


async def test_any_node_tells_what_the_leader_knows_of_each_member(client: httpx.AsyncClient) -> None:
    found = await listed(client)
    rows = [
        (m.name, m.peer, m.role, m.is_leader, m.url, m.is_reachable, m.match_index, m.lag_entries)
        for m in found.members
    ]
    assert rows == [
        ("n1", "h1:1", "voter", True, "http://h1:80", True, 100, 0),
        ("n2", "h2:1", "voter", False, "", True, 100, 0),
        ("n3", "h3:1", "voter", False, "http://h3:80", True, 90, 10),
        ("n4", "h4:1", "learner", False, "", True, 60, 40),
    ]
    assert (found.cluster_id, found.leader, found.removed) == ("c-1", "n1", ["n0"])


async def test_without_a_leader_a_node_tells_what_it_knew_last_and_claims_no_more(
    client: httpx.AsyncClient, cluster: ScriptedCluster
) -> None:
    cluster.leader = ""
    found = await listed(client)
    assert (found.leader, [m.name for m in found.members]) == ("", ["n1", "n2", "n3", "n4"])
    assert {(m.is_leader, m.is_reachable, m.match_index, m.lag_entries) for m in found.members} == {
        (False, None, None, None)
    }


async def test_an_answer_of_a_leader_that_makes_no_sense_counts_as_none(
    client: httpx.AsyncClient, cluster: ScriptedCluster
) -> None:
    async def nonsense(_sender: str, _payload: bytes) -> bytes:
        return msgspec.msgpack.encode(["of", "another", "version"])

    cluster.handlers[PROGRESS_METHOD] = nonsense
    assert (await listed(client)).leader == ""


async def test_who_does_not_lead_does_not_answer_as_the_leader(cluster: ScriptedCluster) -> None:
    Members(cluster, ThisFleet(), "c-1")
    with pytest.raises(NotProposed, match="n2 does not lead"):
        await cluster.handlers[PROGRESS_METHOD]("n3", b"")


async def test_who_is_silent_is_told_apart(client: httpx.AsyncClient, cluster: ScriptedCluster) -> None:
    cluster.followers["n3"] = Follower(90, False)
    del cluster.followers["n4"]  # it was added a moment ago
    found = await listed(client)
    assert {m.name: (m.is_reachable, m.match_index) for m in found.members} == {
        "n1": (True, 100), "n2": (True, 100), "n3": (False, 90), "n4": (False, 0)
    }  # fmt: skip


async def test_a_member_is_added_as_a_learner_by_its_normalised_address(
    client: httpx.AsyncClient, cluster: ScriptedCluster
) -> None:
    answer = await client.post("/v1/cluster/members", json={"name": "n5", "address": "h5:07501"})
    assert answer.status_code == 201
    added = MemberList.model_validate_json(answer.content).find("n5")
    assert added is not None
    assert (added.peer, added.role, added.is_reachable) == ("h5:7501", "learner", False)
    assert cluster.changes == [AddLearner("n5", "h5:7501")]


@pytest.mark.parametrize(
    ("body", "status", "slug", "said"),
    [
        ({"name": "n5", "address": "h5"}, 400, "invalid-request", "'h5' is no address; write host:port"),
        ({"name": "n5", "address": "h5:0"}, 400, "invalid-request", "a member needs a fixed port"),
        ({"name": "N 5", "address": "h5:1"}, 400, "invalid-request", "body.name"),
        ({"name": "n5"}, 400, "invalid-request", "body.address"),
        ({"name": "n5", "address": "h5:1", "role": "voter"}, 400, "invalid-request", "body.role"),
        ({"name": "n5", "address": "h1:1"}, 409, "conflict", "h1:1 is the address of n1"),
        ({"name": "n1", "address": "h1:1"}, 409, "conflict", "n1 is a member already"),
        ({"name": "n0", "address": "h9:1"}, 409, "conflict", "a member that comes back needs a new name"),
    ],
)
async def test_what_cannot_be_added_is_refused_with_the_reason(
    client: httpx.AsyncClient, cluster: ScriptedCluster, body: dict[str, str], status: int, slug: str, said: str
) -> None:
    answer = await client.post("/v1/cluster/members", json=body)
    assert said in problem(answer, status, slug)["detail"]
    assert cluster.changes == []


async def test_a_learner_is_promoted(client: httpx.AsyncClient, cluster: ScriptedCluster) -> None:
    answer = await client.post("/v1/cluster/members/n4/promote")
    assert [m["role"] for m in answer.json()["members"]] == ["voter"] * 4
    assert cluster.changes == [PromoteLearner("n4")]


async def test_how_much_a_learner_lacks_reaches_whoever_wants_to_promote_it(
    client: httpx.AsyncClient, cluster: ScriptedCluster
) -> None:
    cluster.refusals = [Conflict("n4 lacks 4000 entries", lag_entries=4000)]
    body = problem(await client.post("/v1/cluster/members/n4/promote"), 409, "conflict")
    assert (body["detail"], body["lag_entries"]) == ("n4 lacks 4000 entries", 4000)


async def test_another_conflict_of_a_promotion_is_none_to_wait_for(client: httpx.AsyncClient) -> None:
    body = problem(await client.post("/v1/cluster/members/n1/promote"), 409, "conflict")
    assert (body["detail"], "lag_entries" in body) == ("n1 is a voter already", False)
    problem(await client.post("/v1/cluster/members/n9/promote"), 404, "not-found")


async def test_a_member_is_removed(client: httpx.AsyncClient, cluster: ScriptedCluster) -> None:
    answer = await client.delete("/v1/cluster/members/n3")
    assert [m["name"] for m in answer.json()["members"]] == ["n1", "n2", "n4"]
    assert answer.json()["removed"] == ["n3", "n0"]
    assert "n9 is no member" in problem(await client.delete("/v1/cluster/members/n9"), 404, "not-found")["detail"]


async def test_who_asks_again_for_a_removal_that_was_done_is_told_so(
    client: httpx.AsyncClient, cluster: ScriptedCluster
) -> None:
    """As one must whose first answer was lost with the leader that had removed itself."""
    for _ in range(2):
        answer = await client.delete("/v1/cluster/members/n3")
        assert (answer.status_code, answer.json()["removed"]) == (200, ["n3", "n0"])
    assert len(cluster.changes) == 1


async def test_the_leadership_goes_to_whom_one_names_or_to_whom_the_leader_likes(
    client: httpx.AsyncClient, cluster: ScriptedCluster
) -> None:
    assert (await client.post("/v1/cluster/transfer", json={"to": "n3"})).json() == {"leader": "n3"}
    assert (await client.post("/v1/cluster/transfer", json={})).json() == {"leader": "n1"}
    problem(await client.post("/v1/cluster/transfer", json={"to": "no name"}), 400, "invalid-request")


@pytest.mark.parametrize(
    ("error", "status", "slug", "retry"),
    [
        (NotProposed("no leader"), 503, "not-proposed", "safe"),
        (OutcomeUnknown("not seen in time"), 504, "outcome-unknown", "unknown"),
        (Conflict("another change is under way"), 409, "conflict", "never"),
    ],
)
async def test_every_failure_says_whether_the_change_may_be_sent_again(
    client: httpx.AsyncClient, cluster: ScriptedCluster, error: Exception, status: int, slug: str, retry: str
) -> None:
    for send in (
        lambda: client.post("/v1/cluster/members", json={"name": "n5", "address": "h5:1"}),
        lambda: client.delete("/v1/cluster/members/n3"),
        lambda: client.post("/v1/cluster/members/n1/promote"),
    ):
        cluster.refusals = [error]
        assert problem(await send(), status, slug)["retry"] == retry
    cluster.leader = ""
    body = problem(await client.post("/v1/cluster/transfer", json={}), 503, "not-proposed")
    assert body["retry"] == "safe"
    assert problem(await client.delete("/v1/cluster/members/n3"), 503, "not-proposed")["retry"] == "safe"


async def test_a_node_tells_of_voters_learners_and_its_log(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/v1/cluster/node")).json()
    assert answer["members"] == ["n1", "n2", "n3", "n4"]
    assert (answer["voters"], answer["learners"]) == (["n1", "n2", "n3"], ["n4"])
    assert (answer["first_index"], answer["snapshot_index"]) == (11, 20)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([("n1", "h1:1"), ("n2", "h2:1"), ("n3", "h3:1")], ""),
        ([("n1", "h1:1"), ("n2", "h2:1")], "only the log has n3"),
        ([("n1", "h1:1"), ("n2", "h2:1"), ("n3", "h3:1"), ("n9", "x:1")], "only the command line has n9"),
        (
            [("n1", "h1:1"), ("n2", "moved:1"), ("n3", "h3:1")],
            "by the command line n2 is at moved:1 and not at h2:1",
        ),
        ([("n1", "h1:1"), ("n4", "h4:1")], "only the log has n2, n3; only the command line has n4"),
    ],
)
def test_a_command_line_that_names_others_than_the_log_is_told_apart(flags: list[tuple[str, str]], said: str) -> None:
    assert difference(flags, THREE) == said

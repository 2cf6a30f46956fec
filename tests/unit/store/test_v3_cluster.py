"""etcd's API of members and upkeep: `/v3/cluster`, `/v3/maintenance`, `/v3/auth`, `/health`, `/version`."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.errors import Conflict, QuotaExceeded
from quorate_core.settings import HostPort
from quorate_node.administration_v3 import MemberAdministrationV3
from quorate_node.backup import BACKUP_FOLDER, MemberBackups
from quorate_node.members import Members
from quorate_raft.core.membership import AddLearner, Member, Membership, PromoteLearner, RemoveMember
from quorate_store.apps import FleetAnswer, FleetNode
from quorate_store.backup import BackupReader
from quorate_store.model import MemberStatus
from quorate_store.raft_engine import RaftStore
from quorate_store.state import StateMachine
from quorate_store.v3 import mount_v3
from quorate_store.v3.cluster import name_of
from quorate_store.v3.cluster_messages import AlarmType
from quorate_store.v3.headers import id_of
from quorate_store.v3.maintenance import alarms_of
from support.cluster_control import Follower, ScriptedCluster
from support.node_app import client_of
from support.store_local import local_store_and_machine
from support.store_raft import raft_stores

LOOPBACK = HostPort("127.0.0.1", 80)
THREE = Membership.of_voters({"n1": "h1:1", "n2": "h2:1", "n3": "h3:1"})
WITH_LEARNER = Membership((*THREE.members, Member("n4", "h4:1", is_learner=True)), ("n0",))
PATIENCE_S = 20.0


class ThisFleet:
    """The nodes that are up: n1 alone."""

    async def nodes(self) -> Sequence[FleetNode]:
        return [FleetNode("n1", "http://h1:80")]

    async def ask_all(self, path: str, timeout_s: float = 2.0) -> Sequence[FleetAnswer]:
        raise AssertionError(f"{path} is asked of nobody, within {timeout_s} s")


@dataclass
class Node:
    """n2 is asked, and n1 leads."""

    client: httpx.AsyncClient
    cluster: ScriptedCluster
    store: RaftStore
    machine: StateMachine

    async def post(self, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Status and answer, of whose header is left what etcd has there besides ids."""
        content = body if isinstance(body, bytes) else json.dumps(body or {})
        response = await self.client.post(path, content=content)
        answer: dict[str, Any] = response.json()
        for own in ("cluster_id", "member_id"):
            answer.get("header", {}).pop(own, None)
        return response.status_code, answer


@asynccontextmanager
async def a_node(folder: Path, *, is_member: bool = True, **options: Any) -> AsyncIterator[Node]:
    followers = {"n2": Follower(100), "n3": Follower(90), "n4": Follower(60)}
    cluster = ScriptedCluster("n2", WITH_LEARNER, "n1", followers)
    api = create_app(Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None)))
    async with AsyncExitStack() as stack:
        store, machine = await stack.enter_async_context(local_store_and_machine(folder, name="n2", **options))
        members = Members(cluster, ThisFleet(), "c-1")
        log = store._log  # what it is a copy of: a log of one member
        backups = MemberBackups(machine, _Copied(log, cluster), "c-1", folder, ManualClock())
        administration = MemberAdministrationV3(members, backups, machine, cluster)
        mount_v3(api, store, "c-1", administration if is_member else None)
        yield Node(await stack.enter_async_context(client_of(api)), cluster, store, machine)


class _Copied:
    """A log that is read as the store's, of a cluster that is the scripted one."""

    def __init__(self, log: Any, cluster: ScriptedCluster) -> None:
        self.read_index = log.read_index
        self.status = cluster.status


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with a_node(tmp_path) as made:
        yield made


def member(name: str, host: str, **more: Any) -> dict[str, Any]:
    return {"ID": str(id_of(name)), "name": name, "peerURLs": [f"http://{host}:1"], **more}


def error(text: str, code: int) -> dict[str, Any]:
    return {"error": text, "message": text, "code": code}


async def test_the_members_are_listed_by_their_ids(node: Node) -> None:
    await node.store.put(b"a", b"")
    status, answer = await node.post("/v3/cluster/member/list")
    assert (status, answer["header"]) == (200, {"raft_term": "1"}), "etcd gives no revision here"
    expected = [
        member("n1", "h1", clientURLs=["http://h1:80"]), member("n2", "h2"), member("n3", "h3"),
        member("n4", "h4", isLearner=True),
    ]  # fmt: skip
    assert answer["members"] == sorted(expected, key=lambda each: int(each["ID"]))


async def test_a_learner_is_added_under_the_name_that_is_given_or_one_made_from_its_address(node: Node) -> None:
    request = {"peerURLs": ["http://h5:1"], "isLearner": True, "name": "n5"}
    status, answer = await node.post("/v3/cluster/member/add", request)
    assert (status, answer["member"]) == (200, member("n5", "h5", isLearner=True))
    assert answer["member"] in answer["members"]
    status, answer = await node.post(
        "/v3/cluster/member/add", {"peerURLs": ["http://10.0.0.7:7501"], "isLearner": True}
    )
    assert (status, answer["member"]["name"]) == (200, "10-0-0-7-7501")
    assert node.cluster.changes == [AddLearner("n5", "h5:1"), AddLearner("10-0-0-7-7501", "10.0.0.7:7501")]


def test_a_name_is_made_of_what_names_may_have() -> None:
    assert name_of("http://Host.example:7501") == "host-example-7501"
    assert name_of("tcp://[::1]:7501") == "1-7501"


@pytest.mark.parametrize(
    ("request_", "status", "answer"),
    [
        ({}, 400, error("etcdserver: given member URLs are invalid", 3)),
        ({"peerURLs": ["nonsense"], "isLearner": True}, 400, error("etcdserver: given member URLs are invalid", 3)),
        ({"peerURLs": ["http://"], "isLearner": True}, 400, error("etcdserver: given member URLs are invalid", 3)),
        ({"peerURLs": ["http://a:1/x"], "isLearner": True}, 400, error("etcdserver: given member URLs are invalid", 3)),
        ({"peerURLs": ["http://a:1", "http://b:1"]}, 400, error("etcdserver: given member URLs are invalid", 3)),
    ],
)
async def test_a_member_needs_one_url(
    node: Node, request_: dict[str, Any], status: int, answer: dict[str, Any]
) -> None:
    assert await node.post("/v3/cluster/member/add", request_) == (status, answer)
    assert node.cluster.changes == []


async def test_a_voter_is_not_added_at_once(node: Node) -> None:
    status, answer = await node.post("/v3/cluster/member/add", {"peerURLs": ["http://h5:1"]})
    assert (status, answer["code"]) == (501, 12)
    assert "isLearner" in answer["error"]
    assert node.cluster.changes == []


async def test_an_address_is_added_once(node: Node) -> None:
    status, answer = await node.post("/v3/cluster/member/add", {"peerURLs": ["http://h4:1"], "isLearner": True})
    assert (status, answer["code"]) == (412, 9)


async def test_a_learner_is_promoted(node: Node) -> None:
    request = {"ID": str(id_of("n4"))}
    status, answer = await node.post("/v3/cluster/member/promote", request)
    assert status == 200
    assert member("n4", "h4") in answer["members"]
    assert node.cluster.changes == [PromoteLearner("n4")]
    assert await node.post("/v3/cluster/member/promote", request) == (
        412, error("etcdserver: can only promote a learner member", 9),
    )  # fmt: skip


async def test_a_learner_that_lacks_much_is_not_promoted(node: Node) -> None:
    node.cluster.refusals = [Conflict("n4 lacks 40 entries", lag_entries=40)]
    text = "etcdserver: can only promote a learner member which is in sync with leader"
    assert await node.post("/v3/cluster/member/promote", {"ID": str(id_of("n4"))}) == (412, error(text, 9))


async def test_a_member_is_removed(node: Node) -> None:
    request = {"ID": id_of("n3")}  # as a number, which has 64 bits and no sign
    status, answer = await node.post("/v3/cluster/member/remove", request)
    assert (status, [each["name"] for each in answer["members"] if each["name"] == "n3"]) == (200, [])
    assert node.cluster.changes == [RemoveMember("n3")]
    assert await node.post("/v3/cluster/member/remove", request) == (404, error("etcdserver: member not found", 5))


@pytest.mark.parametrize("what", ["promote", "remove", "update"])
async def test_who_is_not_there_is_not_found(node: Node, what: str) -> None:
    for request in ({"ID": "12345"}, {}, {"ID": "0"}):
        answer = await node.post(f"/v3/cluster/member/{what}", request)
        assert answer == (404, error("etcdserver: member not found", 5))
    for nonsense in ({"ID": "abc"}, {"ID": "-1"}, {"ID": 2**64}, {"ID": "9" * 50}, {"ID": []}, b"{"):
        status, answer_ = await node.post(f"/v3/cluster/member/{what}", nonsense)
        assert (status, answer_["code"]) == (400, 3)


async def test_an_address_stays_as_it_is(node: Node) -> None:
    same = {"ID": str(id_of("n3")), "peerURLs": ["http://h3:1"]}
    assert (await node.post("/v3/cluster/member/update", same))[0] == 200
    other = {"ID": str(id_of("n3")), "peerURLs": ["http://h9:1"]}
    status, answer = await node.post("/v3/cluster/member/update", other)
    assert (status, answer["code"]) == (501, 12)


async def test_the_status_tells_what_etcd_tells(node: Node) -> None:
    await node.store.put(b"a", b"1")
    status, answer = await node.post("/v3/maintenance/status")
    machine = node.machine
    assert (status, answer) == (
        200,
        {
            "header": {"revision": "2", "raft_term": "1"}, "version": "3.4.0", "dbSize": str(machine.used_bytes),
            "leader": str(id_of("n2")), "raftIndex": str(machine.applied_index), "raftTerm": "1",
            "raftAppliedIndex": str(machine.applied_index), "dbSizeInUse": str(machine.size_bytes),
        },
    )  # fmt: skip
    assert 0 < machine.size_bytes <= machine.used_bytes


async def test_a_learner_says_that_it_is_one(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        node.cluster.membership = Membership((Member("n1", "h1:1"), Member("n2", "h2:1", is_learner=True)))
        assert (await node.post("/v3/maintenance/status"))[1]["isLearner"] is True


async def test_the_hash_is_of_a_revision_and_says_of_which(node: Node) -> None:
    for value in (b"1", b"2", b"3"):
        await node.store.put(b"a", value)
    await node.store.compact(2)
    found = await node.store.hash(3)
    status, answer = await node.post("/v3/maintenance/hash", {"revision": "3"})
    header = {"revision": "4", "raft_term": "1"}
    assert (status, answer) == (
        200, {"header": header, "hash": found.hash, "compact_revision": "2", "hash_revision": "3"},
    )  # fmt: skip
    newest = await node.post("/v3/maintenance/hash", {})
    assert newest == await node.post("/v3/maintenance/hash", {"revision": -4})
    assert newest[1]["hash_revision"] == "4"
    assert (await node.post("/v3/maintenance/hash", {"revision": 1}))[1]["code"] == 11
    assert (await node.post("/v3/maintenance/hash", {"revision": 5}))[1]["code"] == 11


async def test_members_hash_alike_and_each_is_asked_for_itself(tmp_path: Path) -> None:
    """Three real members over TCP."""
    async with raft_stores(tmp_path) as members:
        written = 1
        for number in range(30):
            written = (await members[number % 3].store.put(b"k%d" % (number % 7), b"%d" % number)).revision
        for each in members:
            await each.store.range(b"k", count_only=True)  # it has all that was acknowledged
        hashes = [await each.store.hash(written) for each in members]
        assert hashes[0] == hashes[1] == hashes[2]
        assert hashes[0].revision == written


async def test_no_space_is_an_alarm_while_it_lasts(tmp_path: Path) -> None:
    async with a_node(tmp_path, quota_bytes=20_000) as node:
        await _quota_is_set(node, 20_000)
        assert await node.post("/v3/maintenance/alarm") == (200, {})
        await node.store.put(b"large", b"x" * 15_000)
        with pytest.raises(QuotaExceeded):
            await _put_small_keys(node, 100)
        own = str(id_of("n2"))
        assert await node.post("/v3/maintenance/alarm") == (200, {"alarms": [{"memberID": own, "alarm": "NOSPACE"}]})
        assert (await node.post("/v3/maintenance/alarm", {"alarm": "CORRUPT"})) == (200, {})
        assert (await node.post("/v3/maintenance/alarm", {"alarm": 1}))[1]["alarms"]
        assert await node.post("/v3/maintenance/alarm", {"action": "DEACTIVATE", "alarm": "NOSPACE"}) == (200, {})
        assert (await node.post("/v3/maintenance/status"))[1]["errors"] == [f"memberID:{own} alarm:NOSPACE "]
        health = await node.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"health": "false", "reason": "ALARM NOSPACE"})
        await node.store.delete(b"large")
        await node.store.compact((await node.store.status()).revision)
        assert await node.post("/v3/maintenance/alarm") == (200, {})
        assert (await node.client.get("/health")).status_code == 200


async def _put_small_keys(node: Node, count: int) -> None:
    for number in range(count):
        await node.store.put(b"%d" % number, b"x" * 50)


async def _quota_is_set(node: Node, quota_bytes: int) -> None:
    """By the store's own housekeeping, which begins with it."""
    async with asyncio.timeout(PATIENCE_S):
        while (await node.store.status()).quota_bytes != quota_bytes:  # noqa: ASYNC110 - a turn of the loop or two
            await asyncio.sleep(0)


def test_the_alarm_comes_before_any_put_is_refused_at_the_usual_quota() -> None:
    def alarms(store_bytes: int, quota_bytes: int) -> tuple[AlarmType, ...]:
        return alarms_of(MemberStatus("n", "leader", "n", 1, 1, 1, 1, store_bytes, (), (), quota_bytes))

    gib = 1024**3
    assert alarms(2 * gib - 3 * 1024**2, 2 * gib) == ()
    assert alarms(2 * gib - 1_600_000, 2 * gib) == (AlarmType.NOSPACE,)
    assert alarms(10**12, 0) == (), "an engine that does not know its quota raises none"


async def test_alarms_are_not_set_by_hand(node: Node) -> None:
    status, answer = await node.post("/v3/maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"})
    assert (status, answer["code"]) == (501, 12)
    for nonsense in ({"action": "EXPLODE"}, {"action": 9}, {"alarm": "FOO"}):
        status, answer = await node.post("/v3/maintenance/alarm", nonsense)
        assert (status, answer["code"]) == (400, 3)


async def test_defragmentation_is_answered_as_etcd_answers_it(node: Node) -> None:
    assert await node.post("/v3/maintenance/defragment") == (200, {})


async def test_leadership_goes_to_a_voter_from_whichever_member_is_asked(node: Node) -> None:
    assert await node.post("/v3/maintenance/transfer-leadership", {"targetID": str(id_of("n3"))}) == (200, {})
    assert node.cluster.leader == "n3"
    refused = (412, error("etcdserver: bad leader transferee", 9))
    for target in ("5", "0", str(id_of("n4"))):
        assert await node.post("/v3/maintenance/transfer-leadership", {"targetID": target}) == refused


async def test_a_snapshot_is_the_members_state_and_its_checksum(node: Node, tmp_path: Path) -> None:
    for number in range(300):
        await node.store.put(b"k%d" % number, b"v" * 3000)
    response = await node.client.post("/v3/maintenance/snapshot", content=b"{}")
    lines = [json.loads(line)["result"] for line in response.text.splitlines()]
    *pieces, checksum = [base64.b64decode(line["blob"]) for line in lines]
    taken = b"".join(pieces)
    assert len(pieces) > 2
    assert checksum == hashlib.sha256(taken).digest()
    remaining = [int(line.get("remaining_bytes", "0")) for line in lines]
    assert remaining == [len(taken) - sum(map(len, pieces[: at + 1])) for at in range(len(pieces))] + [0]
    # It is a file that the operators' tools read.
    read = BackupReader()
    read.feed(taken)
    assert read.finish().revision == 301
    assert not (tmp_path / BACKUP_FOLDER).exists()


async def test_a_node_that_is_no_member_says_so(tmp_path: Path) -> None:
    async with a_node(tmp_path, is_member=False) as node:
        for path in (
            "cluster/member/list", "cluster/member/add", "cluster/member/promote", "maintenance/alarm",
            "maintenance/snapshot", "maintenance/transfer-leadership",
        ):  # fmt: skip
            status, answer = await node.post(f"/v3/{path}")
            assert (status, answer["code"]) == (501, 12), path
            assert "ask a node that is one" in answer["error"]
        assert (await node.post("/v3/maintenance/status"))[1]["version"] == "3.4.0"
        assert (await node.post("/v3/maintenance/hash"))[0] == 200


@pytest.mark.parametrize("call", ["enable", "authenticate", "user/add", "role/grant"])
async def test_users_and_roles_are_not_offered(node: Node, call: str) -> None:
    status, answer = await node.post(f"/v3/auth/{call}", {"name": "root", "password": "x"})
    assert (status, answer["code"]) == (501, 12)


async def test_health_and_version_are_where_etcd_has_them(node: Node) -> None:
    health = await node.client.get("/health")
    assert (health.status_code, health.content) == (200, b'{"health":"true"}')
    assert health.headers["content-type"] == "text/plain; charset=utf-8"
    version = await node.client.get("/version")
    assert (version.status_code, version.content) == (200, b'{"etcdserver":"3.4.0","etcdcluster":"3.4.0"}')
    assert (await node.client.post("/health")).status_code == 405


async def test_health_is_false_without_a_majority(tmp_path: Path) -> None:
    """Of three real members, one is left."""
    api = create_app(Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None)))
    async with raft_stores(tmp_path) as members:
        mount_v3(api, members[0].store, "c-1")
        async with client_of(api) as client:
            assert (await client.get("/health")).status_code == 200
            for other in members[1:]:
                await other.stop()
            health = await client.get("/health")
            assert (health.status_code, health.json()["health"]) == (503, "false")
            assert health.json()["reason"]

"""Three real nodes: what is accepted survives whoever is killed, and every refusal says what may be done about it."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from quorate_node.fleet import NODE_TTL_S
from support import plain_http
from support.node_processes import NodeCluster, NodeProcess, node_cluster, until, write_secret


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    with node_cluster(tmp_path_factory.mktemp("three"), 3) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(started: NodeCluster) -> NodeCluster:
    """Three nodes; whole again, whichever the test before has killed."""
    started.mend()
    return started


@dataclass(frozen=True)
class Document:
    """One of config, the only one in its namespace."""

    namespace: str

    @property
    def path(self) -> str:
        return f"/v1/config/{self.namespace}/order/settings.yaml"

    @property
    def watch(self) -> str:
        return f"/v1/config/{self.namespace}/watch"

    def publish(self, node: NodeProcess, content: str) -> dict[str, Any]:
        answer = plain_http.put(node.url + self.path, content=content, timeout=10)
        answer.raise_for_status()
        return dict(answer.json())

    def publish_until_accepted(self, nodes: list[NodeProcess], content: str) -> tuple[float, list[dict[str, Any]]]:
        """Try every node in turn; returns after how many seconds one accepted, and the problems before that."""
        began_s = time.monotonic()
        problems: list[dict[str, Any]] = []

        def attempt() -> bool:
            for node in nodes:
                answer = plain_http.put(node.url + self.path, content=content, timeout=10)
                if answer.status_code in (200, 201):
                    return True
                problems.append(answer.json())
            return False

        until("a write is accepted", attempt)
        return time.monotonic() - began_s, problems

    def content_at(self, node: NodeProcess, consistency: str = "linearizable") -> str:
        answer = plain_http.get(node.url + self.path, params={"consistency": consistency}, timeout=10)
        return str(answer.json()["content"]) if answer.status_code == 200 else f"status {answer.status_code}"


@pytest.fixture(scope="module")
def namespaces() -> Iterator[str]:
    return (f"test-{number}" for number in itertools.count(1))


@pytest.fixture
def document(namespaces: Iterator[str]) -> Document:
    """Nobody has written it before."""
    return Document(next(namespaces))


def next_event(lines: Iterator[str]) -> tuple[str, dict[str, Any]]:
    fields: dict[str, str] = {}
    for line in lines:
        if not line and fields:
            return fields["event"], json.loads(fields["data"])
        name, colon, value = line.partition(": ")
        if colon and name:
            fields[name] = value
    raise AssertionError("the stream has ended")


def test_every_node_answers_for_all_and_writes_and_reads_everything(cluster: NodeCluster, document: Document) -> None:
    leader = cluster.leader()
    for number, node in enumerate(cluster.nodes, start=1):
        status = until("all nodes are in the fleet", lambda node=node: _all_answered(cluster.status(node)))
        assert status["leader"] == leader.name
        assert [report["status"]["name"] for report in status["nodes"]] == ["node-1", "node-2", "node-3"]
        assert document.publish(node, f"a: {number}")["version"] == number
        # Linearizable: whoever is asked next knows of it at once.
        assert [document.content_at(reader) for reader in cluster.nodes] == [f"a: {number}"] * 3


def _all_answered(status: dict[str, Any]) -> dict[str, Any] | None:
    return status if all(report["error"] is None for report in status["nodes"]) else None


def test_when_the_leader_is_killed_writes_go_on_within_seconds_and_it_comes_back_and_catches_up(
    cluster: NodeCluster, document: Document
) -> None:
    leader = cluster.leader()
    survivors = cluster.followers()
    document.publish(leader, "a: 1")
    leader.kill()
    took_s, problems = document.publish_until_accepted(survivors, "a: 2")
    assert took_s < 5.0
    assert {problem["retry"] for problem in problems} <= {"safe", "unknown"}
    status = cluster.status(survivors[0])
    silent = next(report for report in status["nodes"] if report["name"] == leader.name)
    assert silent["status"] is None
    assert silent["error"].startswith("no answer")
    leader.restart()
    until("it has caught up", lambda: document.content_at(leader, "stale") == "a: 2")
    assert document.publish(leader, "a: 3")["version"] == 3


def test_a_subscriber_keeps_its_stream_and_its_documents_while_the_leader_changes(
    cluster: NodeCluster, document: Document
) -> None:
    leader, follower = cluster.leader(), cluster.followers()[0]
    document.publish(follower, "a: 1")
    with plain_http.stream("GET", follower.url + document.watch, timeout=20) as stream:
        lines = stream.iter_lines()
        assert next_event(lines)[0] == "snapshot"
        leader.kill()
        document.publish_until_accepted([follower], "a: 2")
        kind, data = next_event(lines)
        while kind == "bookmark":
            kind, data = next_event(lines)
        assert (kind, [item["content"] for item in data["documents"]]) == ("delta", ["a: 2"])


def test_a_subscriber_resumes_at_another_node(cluster: NodeCluster, document: Document) -> None:
    first, second, _ = cluster.nodes
    seen = document.publish(first, "a: 1")["revision"]
    document.publish(first, "a: 2")
    with plain_http.stream(
        "GET", second.url + document.watch, headers={"last-event-id": str(seen)}, timeout=20
    ) as stream:
        lines = stream.iter_lines()
        kind, data = next_event(lines)
        while not data.get("documents"):
            kind, data = next_event(lines)
    assert (kind, [item["content"] for item in data["documents"]]) == ("delta", ["a: 2"])


def test_what_was_accepted_survives_the_kill_of_all_three_at_once(cluster: NodeCluster, document: Document) -> None:
    accepted = [document.publish(cluster.nodes[number % 3], f"a: {number}")["version"] for number in range(12)]
    for node in cluster.nodes:
        node.kill()
    cluster.start()
    assert accepted == list(range(1, 13))
    assert [document.content_at(node) for node in cluster.nodes] == ["a: 11"] * 3
    history = plain_http.get(cluster.nodes[0].url + document.path + "/history", params={"limit": 100}).json()
    assert [item["version"] for item in history["versions"]] == list(range(12, 0, -1))


def test_a_node_without_a_majority_says_so_and_still_answers_what_it_knows(
    cluster: NodeCluster, document: Document
) -> None:
    lone, *others = cluster.nodes
    document.publish(lone, "a: 1")
    until("the feed has it", lambda: document.content_at(lone, "stale") == "a: 1")
    for node in others:
        node.kill()
    until("it has noticed", lambda: plain_http.get(lone.url + "/readyz").status_code == 503)
    answer = plain_http.put(lone.url + document.path, content="a: 2", timeout=10)
    assert (answer.status_code, answer.json()["retry"], answer.headers["retry-after"]) == (503, "safe", "1")
    assert plain_http.get(lone.url + document.path, timeout=10).status_code in (503, 504)
    assert document.content_at(lone, "stale") == "a: 1"
    status = cluster.status(lone)
    assert (status["leader"], [report["name"] for report in status["nodes"]]) == ("", ["node-1", "node-2", "node-3"])
    assert [report["error"] is None for report in status["nodes"]] == [True, False, False]
    assert plain_http.get(lone.url + "/livez").status_code == 200


def test_a_member_with_another_cluster_secret_is_refused_and_the_others_go_on(
    tmp_path: Path, document: Document
) -> None:
    with node_cluster(tmp_path, 3) as cluster:
        one, two, stranger = cluster.nodes
        stranger.secret_file = write_secret(tmp_path / "another.secret")
        for node in cluster.nodes:
            node.start()
        one.wait_ready()
        two.wait_ready()
        until("the refusal is logged", lambda: "peer_refused" in one.log + two.log)
        assert document.publish(one, "a: 1")["version"] == 1
        assert plain_http.get(stranger.url + "/readyz").status_code == 503
        assert "secret" in one.log + two.log + stranger.log


def test_a_leader_that_is_stopped_in_order_hands_over_and_leaves_the_fleet(
    cluster: NodeCluster, document: Document
) -> None:
    leader, survivors = cluster.leader(), cluster.followers()
    until("all nodes are in the fleet", lambda: _all_answered(cluster.status(leader)))
    already = len(leader.log)
    assert leader.terminate() == 0
    took_s, _ = document.publish_until_accepted(survivors, "a: 1")
    assert took_s < 2.0
    assert "node_not_withdrawn" not in leader.log[already:]

    def error_of_who_has_gone() -> str:
        reports = cluster.status(survivors[0])["nodes"]
        return next(str(report["error"]) for report in reports if report["name"] == leader.name)

    # A status is of the answering node's own copy, which may be a commit behind the write above: it waits, though for
    # less than the lease would take to end by itself.
    expected = "no answer: it is not among the nodes that are up"
    until("it is not among the nodes", lambda: error_of_who_has_gone() == expected, within_s=NODE_TTL_S / 2)

"""Members that join, are promoted, lead, and leave, as real processes, while the others go on."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import plain_http
from support.node_processes import NodeCluster, NodeProcess, free_ports, node_cluster, until

SETTINGS = "/v1/config/default/order/settings.yaml"
MEMBERS = "/v1/cluster/members"
COMMAND_S_MAX = 60
CHANGE_S_MAX = 15

Join = Callable[..., NodeProcess]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NodeCluster]:
    with node_cluster(tmp_path, 3) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def join(cluster: NodeCluster) -> Iterator[Join]:
    """A node that is to join, not started yet."""
    joined: list[NodeProcess] = []

    def make(name: str = "node-4", state: str = "join") -> NodeProcess:
        first = cluster.nodes[0]
        peer, http = free_ports(2)
        node = NodeProcess(
            name, first.folder, http, first.members | {name: peer}, first.secret_file,
            changes={"--cluster-state": state},
        )  # fmt: skip
        joined.append(node)
        return node

    yield make
    for node in joined:
        node.end()


def publish(node: NodeProcess, content: str) -> int:
    answer = plain_http.put(node.url + SETTINGS, content=content, timeout=10)
    answer.raise_for_status()
    return int(answer.json()["version"])


def content_at(node: NodeProcess) -> str:
    """In this node's own copy."""
    answer = plain_http.get(node.url + SETTINGS, params={"consistency": "stale"}, timeout=10)
    return str(answer.json()["content"]) if answer.status_code == 200 else f"status {answer.status_code}"


def change(node: NodeProcess, method: str, path: str, body: dict[str, str] | None = None) -> httpx.Response:
    """One change. One that says that nothing was done, such as right after an election, is sent again."""

    def attempt() -> httpx.Response | None:
        answer = plain_http.request(method, node.url + path, json=body, timeout=10)
        return None if answer.status_code == 503 else answer

    return until(f"{method} {path} is answered", attempt, CHANGE_S_MAX)


def add(through: NodeProcess, node: NodeProcess) -> httpx.Response:
    address = f"127.0.0.1:{node.members[node.name]}"
    return change(through, "POST", MEMBERS, {"name": node.name, "address": address})


def promote(through: NodeProcess, name: str) -> None:
    """As soon as it has caught up."""

    def attempt() -> bool:
        answer = change(through, "POST", f"{MEMBERS}/{name}/promote")
        assert answer.status_code in (200, 409), answer.text
        return answer.status_code == 200

    until(f"{name} is promoted", attempt)


def members(node: NodeProcess) -> dict[str, dict[str, Any]]:
    found = plain_http.get(node.url + MEMBERS, timeout=5).json()["members"]
    return {member["name"]: member for member in found}


def problem(answer: httpx.Response, status: int, said: str, retry: str = "never") -> dict[str, Any]:
    body = dict(answer.json())
    assert (answer.status_code, body["retry"]) == (status, retry), answer.text
    assert said in body["detail"]
    return body


def test_a_member_is_replaced_while_the_others_go_on(cluster: NodeCluster, join: Join) -> None:
    """A fourth joins, gets everything, is promoted; the leader is removed, is told so, and ends for good."""
    leader, follower = cluster.leader(), cluster.followers()[0]
    assert publish(follower, "a: 1") == 1
    node = join()
    node.start()
    until("it waits", lambda: "waits to be added" in plain_http.get(node.url + "/readyz").text)
    assert plain_http.get(node.url + "/v1/cluster/node").json()["members"] == []

    answer = add(follower, node)
    assert (answer.status_code, answer.json()["leader"]) == (201, leader.name)
    node.wait_ready()
    until("it has everything", lambda: content_at(node) == "a: 1")
    status = plain_http.get(node.url + "/v1/cluster/node").json()
    assert (status["voters"], status["learners"]) == (["node-1", "node-2", "node-3"], ["node-4"])
    shown = until("the leader reaches it", lambda: _caught_up(members(follower)[node.name]))
    assert (shown["role"], shown["url"]) == ("learner", node.url)
    promote(follower, node.name)
    assert publish(node, "a: 2") == 2

    removed = change(follower, "DELETE", f"{MEMBERS}/{leader.name}")
    assert removed.status_code == 200, removed.text
    assert leader.exit_status() == 78
    assert f"{leader.name} was removed from the cluster" in leader.log
    assert f"{leader.data_dir} can be deleted" in leader.log
    assert "was removed from the cluster" in leader.refused()

    rest = [each for each in (*cluster.nodes, node) if each is not leader]
    until("the rest has a leader", lambda: NodeCluster(rest).status(node)["leader"])
    assert publish(node, "a: 3") == 3
    assert sorted(members(node)) == sorted(each.name for each in rest)
    # Three voters: one more may die, and it may be one of the first ones.
    next(each for each in rest if each is not node).kill()
    until("a write is accepted", lambda: plain_http.put(node.url + SETTINGS, content="a: 4", timeout=10).is_success)
    problem(add(node, leader), 409, "a member that comes back needs a new name")


def _caught_up(member: dict[str, Any]) -> dict[str, Any] | None:
    return member if member["is_reachable"] and member["url"] and not member["lag_entries"] else None


def test_a_member_that_was_removed_while_it_was_down_is_told_when_it_comes_back(cluster: NodeCluster) -> None:
    gone, *rest = [*cluster.followers(), cluster.leader()]
    gone.kill()
    until("it is missed", lambda: members(rest[0])[gone.name]["is_reachable"] is False)
    assert change(rest[0], "DELETE", f"{MEMBERS}/{gone.name}").status_code == 200
    assert f"{gone.name} was removed from the cluster" in gone.refused()
    assert publish(rest[0], "a: 1") == 1


def test_what_would_hurt_the_cluster_is_refused_and_says_why(cluster: NodeCluster, join: Join) -> None:
    asked, leader = cluster.followers()[0], cluster.leader()
    other = next(each for each in cluster.nodes if each not in (asked, leader))
    learner = join()
    assert add(asked, learner).status_code == 201
    problem(add(asked, learner), 409, "node-4 is a member already")
    taken = {"name": "node-5", "address": f"127.0.0.1:{learner.members['node-4']}"}
    problem(change(asked, "POST", MEMBERS, taken), 409, "is the address of node-4")
    behind = problem(
        change(asked, "POST", f"{MEMBERS}/node-4/promote"), 409, "node-4 has not taken a snapshot over yet"
    )
    assert behind["lag_entries"] > 0, "it was never started"
    problem(change(asked, "POST", f"{MEMBERS}/node-9/promote"), 404, "node-9 is no member")
    problem(change(asked, "DELETE", f"{MEMBERS}/node-9"), 404, "node-9 is no member")
    problem(change(asked, "POST", "/v1/cluster/transfer", {"to": "node-4"}), 409, "is a learner; promote it first")
    problem(change(asked, "POST", "/v1/cluster/transfer", {"to": "node-9"}), 404, "node-9 is no member")

    other.kill()
    until("it is missed", lambda: members(asked)[other.name]["is_reachable"] is False)
    problem(change(asked, "DELETE", f"{MEMBERS}/{asked.name}"), 409, "nothing could be agreed on any more")
    assert sorted(members(asked)) == ["node-1", "node-2", "node-3", "node-4"]
    assert publish(asked, "a: 1") == 1


def test_without_a_majority_changes_say_that_nothing_was_done_and_members_are_still_told(
    cluster: NodeCluster,
) -> None:
    lone, *others = cluster.nodes
    for node in others:
        node.kill()
    until("it has noticed", lambda: plain_http.get(lone.url + "/readyz").status_code == 503)
    for method, path, body in (
        ("POST", MEMBERS, {"name": "node-4", "address": "127.0.0.1:7504"}),
        ("DELETE", f"{MEMBERS}/node-2", None),
        ("POST", "/v1/cluster/transfer", {}),
    ):
        problem(plain_http.request(method, lone.url + path, json=body, timeout=10), 503, "", retry="safe")
    assert {name: member["is_reachable"] for name, member in members(lone).items()} == {
        "node-1": None, "node-2": None, "node-3": None
    }  # fmt: skip


def test_the_leadership_goes_where_it_is_sent_and_no_write_is_lost(cluster: NodeCluster) -> None:
    for number, to in enumerate((cluster.followers()[0], cluster.followers()[1]), start=1):
        asked = cluster.followers()[-1]
        answer = change(asked, "POST", "/v1/cluster/transfer", {"to": to.name})
        assert (answer.status_code, answer.json()) == (200, {"leader": to.name})
        assert publish(asked, f"a: {number}") == number
        assert members(asked)[to.name]["is_leader"] is True
    before = cluster.leader()
    assert change(before, "POST", "/v1/cluster/transfer", {}).json()["leader"] != before.name


def test_a_member_that_has_joined_goes_on_after_kill_9_and_older_command_lines_are_told_apart(
    cluster: NodeCluster, join: Join
) -> None:
    node = join()
    assert add(cluster.leader(), node).status_code == 201
    node.start()
    node.wait_ready()
    promote(node, node.name)
    publish(node, "a: 1")
    node.kill()
    node.restart()  # still by `--cluster-state join`
    until("it has everything", lambda: content_at(node) == "a: 1")
    assert "members_differ" not in node.log
    old = cluster.followers()[0]
    old.kill()
    old.restart()
    assert "only the log has node-4" in old.log
    node.kill()
    node.changes["--cluster-state"] = "existing"
    node.restart()
    node.kill()
    shutil.rmtree(node.data_dir)
    assert "must not vote" in node.refused()


def test_a_voter_that_has_lost_its_data_cannot_slip_in_again_by_joining(cluster: NodeCluster) -> None:
    node = cluster.followers()[0]
    assert publish(node, "a: 1") == 1
    node.kill()
    shutil.rmtree(node.data_dir)
    node.changes["--cluster-state"] = "join"
    assert "must not vote" in node.refused()
    assert publish(cluster.leader(), "a: 2") == 2


def test_a_begun_file_elsewhere_keeps_a_member_from_starting_with_an_empty_folder(
    cluster: NodeCluster, tmp_path: Path
) -> None:
    node = cluster.followers()[0]
    node.kill()
    node.changes["--begun-file"] = str(tmp_path / "begun")
    node.restart()
    node.kill()
    shutil.rmtree(node.data_dir)
    assert f"--begun-file {tmp_path / 'begun'} is there" in node.refused()
    assert not node.data_dir.exists()


def test_a_member_is_replaced_by_the_commands_of_an_operator(cluster: NodeCluster, join: Join) -> None:
    """Every step as it is typed, and the new node by the very line that `add` prints."""
    urls = ",".join(node.url for node in cluster.nodes)

    def quorate(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "quorate_cli", "cluster", *words, "--endpoints", urls]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_S_MAX)
        return done.returncode, done.stdout, done.stderr

    node = join()
    address = f"127.0.0.1:{node.members[node.name]}"
    code, out, err = quorate("add", node.name, address, "--http", f"127.0.0.1:{node.http_port}")
    assert code == 0, err
    line = out[out.index("python -m") :].partition("\n\n")[0]
    line = line.replace("DATA_DIR", str(node.data_dir)).replace("CLUSTER_SECRET_FILE", str(node.secret_file))
    with (node.folder / f"{node.name}.log").open("ab") as output:
        shell = ["/bin/sh", "-c", line.replace("python", f"exec {sys.executable}", 1)]
        node.process = subprocess.Popen(shell, stdout=output, stderr=output, start_new_session=True)
    code, out, err = quorate("promote", node.name)
    assert (code, out) == (0, f"{node.name} is a voter now.\n"), err
    old = cluster.leader()
    code, out, err = quorate("remove", old.name, "--yes")
    assert code == 0, err
    assert f"{old.name} leads; the leadership goes to another voter first" in err
    assert old.exit_status() == 78
    code, out, err = quorate("transfer", node.name)
    assert (code, out) == (0, f"{node.name} leads now.\n"), err
    code, out, _ = quorate("members")
    rows = {row[0]: row[1] for row in (line.split() for line in out.splitlines()) if row and row[0].startswith("node-")}
    assert (code, rows[node.name], old.name in rows) == (0, "leader", False)
    assert quorate("status")[0] == 0


def test_a_frozen_member_counts_as_unreachable_though_its_link_is_up(cluster: NodeCluster) -> None:
    frozen, asked = cluster.followers()
    assert frozen.process is not None
    frozen.process.send_signal(signal.SIGSTOP)
    until("it is missed", lambda: members(asked)[frozen.name]["is_reachable"] is False)
    frozen.process.send_signal(signal.SIGCONT)
    until("it is back", lambda: members(asked)[frozen.name]["is_reachable"])

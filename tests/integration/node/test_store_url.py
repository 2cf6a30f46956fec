"""Nodes that are no member of the store, but stand on one: three etcd members, or three nodes of Quorate. What is
accepted on one is seen on the other, whichever member dies; and when all are gone and back, so are the nodes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import plain_http
from support.external_stores import ExternalStore, etcd_members, find_etcd, own_nodes
from support.node_processes import NodeProcess, free_ports, node_cluster, until, write_secret

SETTINGS = "/v1/config/default/order/settings.yaml"
WATCH = "/v1/config/default/watch"
INSTANCES = "/v1/registry/default/services/inventory"
REQUIRE_VARIABLE = "CI"
NO_MEMBER: dict[str, str | None] = dict.fromkeys(
    ("--data-dir", "--peer", "--members", "--cluster-id", "--cluster-secret-file")
)


@dataclass
class Tier:
    """Nodes on one store."""

    store: ExternalStore
    nodes: list[NodeProcess]


def tier_node(folder: Path, name: str, url: str, **more: str) -> NodeProcess:
    """A node that stands on the store at `url`. `more`: flags of its command line."""
    [port] = free_ports(1)
    flags = {"--" + flag.replace("_", "-"): value for flag, value in more.items()}
    return NodeProcess(name, folder, port, {name: 0}, folder / "none", changes={**NO_MEMBER, "--store": url, **flags})


def etcd_program() -> tuple[str, Any]:
    found = find_etcd()
    if isinstance(found, str):
        if os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0", "false"):
            pytest.fail(found, pytrace=False)
        pytest.skip(found)
    return found


@contextmanager
def store_of(kind: str, folder: Path) -> Iterator[ExternalStore]:
    if kind == "etcd":
        with etcd_members(folder, etcd_program()) as members:
            yield members
    else:
        with own_nodes(folder) as nodes:
            yield nodes


@pytest.fixture(scope="module", params=["etcd", "nodes"])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    """Two nodes on three members."""
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        store = stack.enter_context(store_of(request.param, folder / "store"))
        url = "etcd://" + ",".join(store.endpoints)
        nodes = [tier_node(folder, name, url, **store.flags) for name in ("api-1", "api-2")]
        for node in nodes:
            stack.callback(node.end)
        store.start()
        yield Tier(store, nodes)


@pytest.fixture
def tier(started: Tier) -> Tier:
    """Whole again, whatever the test before has left."""
    started.store.mend()
    for node in started.nodes:
        if node.process is None or node.process.poll() is not None:
            node.start()
    for node in started.nodes:
        node.wait_ready(60)
        until("all endpoints answer", lambda node=node: unreachable(node) == set(), within_s=30)
    return started


def publish(node: NodeProcess, content: str) -> httpx.Response:
    return plain_http.put(node.url + SETTINGS, content=content, timeout=20)


def publish_until_accepted(node: NodeProcess, content: str) -> list[dict[str, Any]]:
    """Returns the problems before that."""
    problems: list[dict[str, Any]] = []

    def attempt() -> bool:
        answer = publish(node, content)
        if answer.is_success:
            return True
        problems.append(answer.json())
        return False

    until("a publication is accepted", attempt, within_s=30)
    return problems


def content_at(node: NodeProcess, consistency: str = "linearizable") -> str:
    answer = plain_http.get(node.url + SETTINGS, params={"consistency": consistency}, timeout=20)
    return str(answer.json()["content"]) if answer.status_code == 200 else f"status {answer.status_code}"


def register(node: NodeProcess, instance: str, ttl_s: int) -> httpx.Response:
    spec = {"host": "127.0.0.1", "port": 9000, "ttl_s": ttl_s}
    return plain_http.put(f"{node.url}{INSTANCES}/instances/{instance}", json=spec, timeout=20)


def instances_at(node: NodeProcess, consistency: str = "linearizable") -> list[str]:
    answer = plain_http.get(node.url + INSTANCES, params={"consistency": consistency}, timeout=20)
    answer.raise_for_status()
    return [item["id"] for item in answer.json()["instances"]]


def renewed(node: NodeProcess, instance: str) -> bool:
    """Whether a heartbeat found the instance registered."""
    body = {"instances": [{"service": "inventory", "id": instance}]}
    answer = plain_http.post(node.url + "/v1/registry/heartbeat", json=body, timeout=20)
    return answer.status_code == 200 and answer.json() == {"renewed": 1, "unknown": []}


def status_of(node: NodeProcess) -> dict[str, Any]:
    answer = plain_http.get(node.url + "/v1/cluster/status", timeout=10)
    answer.raise_for_status()
    return dict(answer.json())


def own_store(node: NodeProcess) -> dict[str, Any]:
    """What the node says that it stands on."""
    answer = plain_http.get(node.url + "/v1/cluster/node", timeout=10)
    answer.raise_for_status()
    return dict(answer.json()["store"])


def unreachable(node: NodeProcess) -> set[str]:
    return {endpoint["address"] for endpoint in own_store(node)["endpoints"] if endpoint["error"] is not None}


def next_contents(lines: Iterator[str], wanted: str) -> list[str]:
    """The documents' contents of a config stream, until `wanted` is among them."""
    seen: list[str] = []
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "data":
            seen += [document["content"] for document in json.loads(value).get("documents", [])]
        if wanted in seen:
            return seen
    raise AssertionError(f"the stream ended after {seen}")


def test_what_is_accepted_on_one_node_is_seen_on_the_other(tier: Tier) -> None:
    one, two = tier.nodes
    assert publish(one, "seen: 1").is_success
    assert content_at(two) == "seen: 1"
    with plain_http.stream("GET", two.url + WATCH, timeout=20) as stream:
        lines = stream.iter_lines()
        assert next_contents(lines, "seen: 1") == ["seen: 1"]
        assert publish(one, "seen: 2").is_success
        assert next_contents(lines, "seen: 2") == ["seen: 2"]
    assert register(one, "seen-1", ttl_s=30).status_code == 201
    assert "seen-1" in instances_at(two)
    assert renewed(two, "seen-1")


def test_a_node_says_what_it_stands_on_and_that_members_are_not_its_own(tier: Tier) -> None:
    one, two = tier.nodes
    both = {one.name, two.name}
    status = until("the nodes see each other", lambda: _all_well(status_of(one), both))
    assert status["leader"]
    for report in (report for report in status["nodes"] if report["name"] in both):
        own = report["status"]
        assert (own["role"], own["members"], own["leader"]) == ("api", [], status["leader"])
        assert own["store"]["url"] == "etcd://" + ",".join(tier.store.endpoints)
        assert [endpoint["address"] for endpoint in own["store"]["endpoints"]] == tier.store.endpoints
        roles = sorted(endpoint["role"] for endpoint in own["store"]["endpoints"])
        assert roles == ["follower", "follower", "leader"]
    answer = plain_http.get(one.url + "/v1/cluster/members")
    assert (answer.status_code, "is no member of the store" in answer.json()["detail"]) == (501, True)
    assert not one.data_dir.exists()


def _all_well(status: dict[str, Any], names: set[str]) -> dict[str, Any] | None:
    well = {report["name"] for report in status["nodes"] if report["error"] is None}
    return status if names <= well else None


@pytest.mark.parametrize("member", [0, 1])
def test_when_a_member_of_the_store_is_killed_the_nodes_go_on(tier: Tier, member: int) -> None:
    """Member 0 is the first that is asked, so it is the one that nodes are connected to."""
    one, two = tier.nodes
    before, after, instance = f"killed: {member}", f"survived: {member}", f"killed-{member}"
    publish(one, before)
    register(one, instance, ttl_s=60)
    with plain_http.stream("GET", two.url + WATCH, timeout=40) as stream:
        lines = stream.iter_lines()
        next_contents(lines, before)
        tier.store.kill(member)
        problems = publish_until_accepted(one, after)
        assert {problem["retry"] for problem in problems} <= {"safe", "unknown"}
        assert next_contents(lines, after) == [after]
    assert content_at(two) == after
    until("heartbeats are taken", lambda: renewed(two, instance))
    assert instance in instances_at(one)
    gone = {tier.store.endpoints[member]}
    for node in tier.nodes:
        until("it says which endpoint is silent", lambda node=node: unreachable(node) == gone)
        until("it is ready", node.is_ready)
    tier.store.start(member)
    for node in tier.nodes:
        until("all endpoints answer again", lambda node=node: unreachable(node) == set(), within_s=30)


def test_when_the_whole_store_goes_away_the_nodes_wait_for_it_and_nothing_is_lost(tier: Tier) -> None:
    one, two = tier.nodes
    publish(one, "gone: 1")
    register(one, "gone-1", ttl_s=120)
    until("both have heard of it", lambda: all("gone-1" in instances_at(node, "stale") for node in tier.nodes))
    with plain_http.stream("GET", two.url + WATCH, timeout=90) as stream:
        lines = stream.iter_lines()
        next_contents(lines, "gone: 1")
        tier.store.kill()
        for node in tier.nodes:
            until("it is not ready", lambda node=node: plain_http.get(node.url + "/readyz").status_code == 503)
            reason = plain_http.get(node.url + "/readyz").text
            assert all(address in reason for address in tier.store.endpoints)
            assert plain_http.get(node.url + "/livez").status_code == 200
            assert content_at(node, "stale") == "gone: 1"
            assert "gone-1" in instances_at(node, "stale")
            status = status_of(node)
            assert (status["leader"], node.name in {report["name"] for report in status["nodes"]}) == ("", True)
        refused = publish(one, "gone: 2")
        assert (refused.status_code in (503, 504), refused.json()["retry"] in ("safe", "unknown")) == (True, True)
        tier.store.start()
        for node in tier.nodes:
            node.wait_ready(60)
        publish_until_accepted(one, "gone: 3")
        assert next_contents(lines, "gone: 3")[-1] == "gone: 3"
    assert content_at(two) == "gone: 3"
    assert "gone-1" in instances_at(two)
    assert renewed(one, "gone-1")
    both = {one.name, two.name}
    until("the nodes see each other again", lambda: _all_well(status_of(two), both), within_s=30)


def test_a_node_starts_while_the_store_is_away_and_comes_up_by_itself(tier: Tier) -> None:
    node = tier.nodes[0]
    tier.store.kill()
    assert node.terminate() == 0
    node.start()
    until("it is alive", lambda: plain_http.get(node.url + "/livez").status_code == 200)
    assert plain_http.get(node.url + "/readyz").status_code == 503
    assert status_of(node)["leader"] == ""
    tier.store.start()
    node.wait_ready(60)
    publish_until_accepted(node, "away: 1")
    assert content_at(node) == "away: 1"


def test_a_watch_at_the_terminal_goes_on_at_another_node_and_shows_each_change_once(tier: Tier) -> None:
    one, two = tier.nodes
    endpoints = f"{one.url},{two.url}"
    quorate = [sys.executable, "-m", "quorate_cli", "cluster"]
    environment = {**os.environ, "QUORATE_ENDPOINTS": endpoints}
    first = subprocess.run([*quorate, "put", "app/0", "on", "--json"], env=environment, capture_output=True, check=True)
    begin = json.loads(first.stdout)["revision"]
    watch = [*quorate, "watch", "app/", "--prefix", "--from", str(begin), "--json"]
    with subprocess.Popen(watch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        try:
            seen = [json.loads(watching.stdout.readline())["key"]]
            one.kill()
            for number in range(1, 4):
                command = [*quorate, "put", f"app/{number}", "on"]
                subprocess.run(command, env=environment, capture_output=True, check=True)
                seen.append(json.loads(watching.stdout.readline())["key"])
            watching.send_signal(signal.SIGINT)
            assert seen == ["app/0", "app/1", "app/2", "app/3"]
            assert watching.wait(20) == 0
            assert watching.stdout.read() == b""
        finally:
            watching.kill()  # else whoever leaves the block waits for it, whatever has failed


def test_the_token_and_the_secret_of_the_stores_nodes_are_needed_where_they_are_wanted(tmp_path: Path) -> None:
    """A node beyond loopback wants its token of all, and the cluster's secret of whoever writes the apps' keys."""
    token = write_secret(tmp_path / "token")
    (tmp_path / "store").mkdir()
    with node_cluster(tmp_path / "store", 1) as cluster, ExitStack() as stack:
        (member,) = cluster.nodes
        address = f"127.0.0.1:{member.http_port}"
        member.changes |= {"--http": f"0.0.0.0:{member.http_port}", "--http-advertise": address,
                           "--token-file": str(token)}  # fmt: skip
        member.start()
        url, secret = f"etcd://{address}", str(member.secret_file)
        stranger = tier_node(tmp_path, "stranger", url)
        reader = tier_node(tmp_path, "reader", url, store_token_file=str(token))
        writer = tier_node(tmp_path, "writer", url, store_token_file=str(token), cluster_secret_file=secret)
        for node in (stranger, reader, writer):
            stack.callback(node.end)
            node.start()
        writer.wait_ready()
        reader.wait_ready()
        assert publish(writer, "a: 1").status_code == 201
        assert content_at(reader) == "a: 1"
        refused = publish(reader, "a: 2")
        assert (refused.status_code, content_at(writer)) == (403, "a: 1")
        said = plain_http.get(stranger.url + "/readyz")
        assert (said.status_code, "a token is required" in said.text) == (503, True)


def test_an_etcd_over_tls_is_trusted_by_the_certificate_that_was_named_and_not_otherwise(tmp_path: Path) -> None:
    with etcd_members(tmp_path / "store", etcd_program(), size=1) as etcd, ExitStack() as stack:
        etcd.scheme, etcd.options = "https", ("--auto-tls",)
        etcd.start()
        certificate = etcd.data_dir(0) / "fixtures" / "client" / "cert.pem"
        until("etcd has made its certificate", certificate.exists)
        url = f"etcds://{etcd.endpoints[0]}"
        trusting = tier_node(tmp_path, "trusting", url, store_ca_file=str(certificate))
        doubting = tier_node(tmp_path, "doubting", url)
        for node in (trusting, doubting):
            stack.callback(node.end)
            node.start()
        trusting.wait_ready()
        assert publish(trusting, "a: 1").status_code == 201
        until("it says why", lambda: "certificate verify failed" in plain_http.get(doubting.url + "/readyz").text)
        missing = tier_node(tmp_path, "missing", url, store_ca_file=str(tmp_path / "nowhere.pem"))
        assert "--store-ca-file" in missing.refused()

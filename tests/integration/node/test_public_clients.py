"""Clients that others have written for etcd's v3 JSON API work on a node as they are: etcd3gw, which is OpenStack's."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import etcd3gw
import pytest
from support.node_processes import NodeProcess, node_cluster

TIMEOUT_S = 10


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with node_cluster(tmp_path_factory.mktemp("node"), 1) as cluster:
        cluster.start()
        yield cluster.nodes[0]


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Any]:
    made = etcd3gw.client(host="127.0.0.1", port=node.http_port, timeout=TIMEOUT_S)
    yield made
    made.session.close()


def refusal_of(call: Callable[[], Any]) -> dict[str, Any]:
    with pytest.raises(etcd3gw.exceptions.Etcd3Exception) as refused:
        call()
    said = json.loads(refused.value.detail_text)
    assert said["error"] == said["message"]
    return {"code": said["code"], "text": said["error"]}


def test_it_finds_out_which_api_is_spoken_and_by_whom(client: Any, node: NodeProcess) -> None:
    assert client.api_path == "/v3/"
    status = client.status()
    assert status["leader"] == status["header"]["member_id"]
    [member] = client.members()
    assert (member["name"], member["clientURLs"]) == (node.name, [node.url])
    assert member["ID"] == status["leader"]


def test_it_writes_reads_and_deletes_keys(client: Any) -> None:
    for name, value in ((b"keys/a", "2"), (b"keys/b", "1"), (b"keys/c", "3")):
        assert client.put(name, value)
    assert client.get(b"keys/b") == [b"1"]
    [(value, metadata)] = client.get(b"keys/b", metadata=True)
    assert (value, metadata["version"]) == (b"1", "1")
    by_value = client.get_prefix(b"keys/", sort_order="descend", sort_target="value")
    assert [kv["key"] for _, kv in by_value] == [b"keys/c", b"keys/a", b"keys/b"]
    assert client.delete(b"keys/a")
    assert not client.delete(b"keys/a")
    assert client.delete_prefix("keys/")
    assert client.get_prefix("keys/") == []


def test_it_writes_only_what_has_not_changed(client: Any) -> None:
    assert client.create("cas", "1")
    assert not client.create("cas", "2")
    assert client.replace("cas", "1", "3")
    assert not client.replace("cas", "1", "4")
    assert client.get("cas") == [b"3"]


def test_its_leases_are_renewed_and_end_with_their_keys(client: Any) -> None:
    lease = client.lease(ttl=60)
    client.put("leased/a", "1", lease)
    client.put("leased/b", "1", lease)
    assert sorted(lease.keys()) == [b"leased/a", b"leased/b"]
    assert 0 < lease.ttl() <= 60
    assert lease.refresh() == 60
    assert lease.revoke()
    assert client.get_prefix("leased/") == []
    assert (lease.ttl(), lease.refresh()) == (-1, -1)
    assert refusal_of(lease.revoke) == {"code": 5, "text": "etcdserver: requested lease not found"}


def test_its_locks_are_held_by_one(client: Any) -> None:
    with client.lock(id="one", ttl=60) as held:
        assert held.is_acquired()
        assert held.refresh() == 60
        assert not client.lock(id="one", ttl=60).acquire()
    assert client.lock(id="one", ttl=60).acquire()


def test_its_watches_get_every_change_in_order_and_can_be_ended(client: Any) -> None:
    events, cancel = client.watch_prefix("watched/")
    for number in range(50):
        client.put(f"watched/{number % 7}", str(number))
    client.delete("watched/3")
    seen = [next(events) for _ in range(51)]
    assert [event["kv"].get("value") for event in seen] == [b"%d" % number for number in range(50)] + [None]
    assert seen[-1]["type"] == "DELETE"
    cancel()
    first = int(seen[0]["kv"]["mod_revision"])
    again, cancel = client.watch_prefix("watched/", start_revision=first)
    assert [next(again)["kv"] for _ in range(51)] == [event["kv"] for event in seen]
    cancel()


def test_it_learns_of_errors_in_etcds_words(client: Any) -> None:
    future = refusal_of(lambda: client.get("k", revision=10**6))
    assert future == {"code": 11, "text": "etcdserver: mvcc: required revision is a future revision"}
    assert refusal_of(lambda: client.put("", "v")) == {"code": 3, "text": "etcdserver: key is not provided"}

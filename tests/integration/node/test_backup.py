"""Snapshots for operators, compaction and hashes, by the command that operators type, on real nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_store.database import Database
from quorate_store.revival import BUMP_REVISIONS_DEFAULT
from support import plain_http
from support.node_processes import NodeCluster, NodeProcess, free_ports, node_cluster, until, write_secret

COMMAND_S_MAX = 60
VALUE = b"v" * 256


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    with node_cluster(tmp_path_factory.mktemp("three"), 3) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(started: NodeCluster) -> NodeCluster:
    """Three nodes; whole again, whichever the test before has ended."""
    started.mend()
    return started


def quorate(nodes: list[NodeProcess], *arguments: str) -> subprocess.CompletedProcess[str]:
    endpoints = ("QUORATE_ENDPOINTS", ",".join(node.url for node in nodes))
    return subprocess.run(
        [sys.executable, "-m", "quorate_cli", "cluster", *arguments],
        env={**os.environ, "COLUMNS": "200", **dict([endpoints])}, capture_output=True, text=True,
        timeout=COMMAND_S_MAX, check=False,
    )  # fmt: skip


def done(nodes: list[NodeProcess], *arguments: str) -> Any:
    """What a command prints as JSON; fails when the command does."""
    ended = quorate(nodes, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def v3(node: NodeProcess, path: str, **body: Any) -> dict[str, Any]:
    answer = plain_http.post(f"{node.url}/v3/{path}", json=body, timeout=10)
    answer.raise_for_status()
    return dict(answer.json())


def put(node: NodeProcess, key: str, value: bytes = VALUE, **more: Any) -> int:
    """Returns its revision."""
    answer = v3(node, "kv/put", key=b64(key.encode()), value=b64(value), **more)
    return int(answer["header"]["revision"])


def get(node: NodeProcess, key: str, **more: Any) -> bytes | None:
    kvs = v3(node, "kv/range", key=b64(key.encode()), **more).get("kvs", [])
    return b64decode(kvs[0].get("value", "")) if kvs else None


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def restored_cluster(folder: Path, file: Path, *flags: str, names: tuple[str, ...] = ("a", "b", "c")) -> NodeCluster:
    """Each member restored by the command, as on a machine of its own."""
    folder.mkdir()
    ports = free_ports(2 * len(names))
    members = dict(zip(names, ports, strict=False))
    secret = write_secret(folder / "cluster.secret")
    nodes = [
        NodeProcess(name, folder, http, members, secret, changes={"--cluster-state": "existing"})
        for name, http in zip(names, ports[len(names) :], strict=True)
    ]
    told = ",".join(f"{name}=127.0.0.1:{port}" for name, port in members.items())
    for node in nodes:
        restored = done(
            [], "snapshot", "restore", str(file), "--data-dir", str(node.data_dir), "--name", node.name,
            "--members", told, "--cluster-id", "second", *flags,
        )  # fmt: skip
        node.cluster_id = restored["cluster_id"]
    assert len({node.cluster_id for node in nodes}) == 1
    return NodeCluster(nodes)


def test_a_new_cluster_begins_with_everything_that_was_acknowledged_before_the_snapshot(
    cluster: NodeCluster, tmp_path: Path
) -> None:
    first, file = cluster.nodes[0], tmp_path / "backup.snapshot"
    for number in range(100):
        put(first, f"key-{number}", b"%d" % number)
    last = put(first, "last", b"word")
    follower = cluster.followers()[0]

    saved = done(cluster.nodes, "snapshot", "save", str(file), "--node", follower.name)
    assert (saved["member"], saved["is_complete"]) == (follower.name, True)
    assert saved["revision"] >= last
    assert file.stat().st_mode & 0o777 == 0o600
    put(first, "too-late")

    status = done([], "snapshot", "status", str(file))
    assert (status["revision"], status["cluster_id"]) == (saved["revision"], "test-cluster")
    assert [member["name"] for member in status["members"]] == ["node-1", "node-2", "node-3"]

    restored = restored_cluster(tmp_path / "second", file)
    try:
        restored.start()
        node = restored.nodes[0]
        assert [get(node, f"key-{number}") for number in range(100)] == [b"%d" % number for number in range(100)]
        assert (get(node, "last"), get(node, "too-late")) == (b"word", None)
        assert put(node, "next") > saved["revision"] + BUMP_REVISIONS_DEFAULT
        assert compared(restored.nodes) == {"a": "same", "b": "same", "c": "same"}
        # The other cluster goes on, and neither takes a member of the other for its own.
        assert get(first, "too-late") == VALUE
    finally:
        for each in restored.nodes:
            each.end()


def test_a_member_of_the_old_cluster_cannot_join_the_new_one(cluster: NodeCluster, tmp_path: Path) -> None:
    file = tmp_path / "backup.snapshot"
    put(cluster.nodes[0], "key")
    done(cluster.nodes, "snapshot", "save", str(file))
    old = cluster["node-3"]
    old.terminate()
    restored = restored_cluster(tmp_path / "second", file, names=("node-1", "node-2", "node-3"))
    shutil.rmtree(restored["node-3"].data_dir)
    shutil.copytree(old.data_dir, restored["node-3"].data_dir)
    assert "belongs to member 'node-3' of cluster 'test-cluster'" in restored["node-3"].refused()
    # Under the old id it starts, and finds nobody who takes it for one of theirs.
    restored["node-3"].cluster_id = "test-cluster"
    try:
        for node in restored.nodes:
            node.start()
        restored["node-1"].wait_ready()
        until("it is refused", lambda: "peer_refused" in restored["node-3"].log)
        members = done(restored.nodes[:2], "members")["members"]
        assert [each["name"] for each in members if each["is_reachable"]] == ["node-1", "node-2"]
    finally:
        for each in restored.nodes:
            each.end()


def test_who_has_seen_a_later_revision_than_the_snapshot_learns_that_it_is_gone(
    cluster: NodeCluster, tmp_path: Path
) -> None:
    first, file = cluster.nodes[0], tmp_path / "backup.snapshot"
    put(first, "key", b"old")
    done(cluster.nodes, "snapshot", "save", str(file))
    seen = put(first, "key", b"seen by a client, and not in the snapshot")
    restored = restored_cluster(tmp_path / "second", file, names=("a",))
    try:
        restored.start()
        assert int(v3(restored.nodes[0], "kv/range", key=b64(b"key"))["header"]["revision"]) > seen
        answer = plain_http.post(
            restored.nodes[0].url + "/v3/kv/range", json={"key": b64(b"key"), "revision": seen}, timeout=10
        )
        assert (answer.status_code, answer.json()["code"]) == (400, 11)
        assert "compacted" in answer.json()["error"]
    finally:
        restored.nodes[0].end()


def test_a_survivor_without_a_majority_gives_what_it_has_when_it_is_told_to(
    cluster: NodeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "backup.snapshot"
    put(cluster.nodes[0], "key", b"value")
    survivor = cluster.nodes[0]
    until("it has it", lambda: get(survivor, "key", serializable=True) == b"value")
    for node in cluster.nodes[1:]:
        node.kill()
    refused = quorate([survivor], "snapshot", "save", str(file))
    assert refused.returncode == 5
    assert "--stale" in refused.stderr
    assert not file.exists()
    assert done([survivor], "snapshot", "save", str(file), "--stale")["is_complete"] is False
    restored = restored_cluster(tmp_path / "second", file, names=("a",))
    try:
        restored.start()
        assert get(restored.nodes[0], "key") == b"value"
    finally:
        restored.nodes[0].end()


def test_members_that_were_not_restored_alike_have_different_ids(cluster: NodeCluster, tmp_path: Path) -> None:
    file = tmp_path / "backup.snapshot"
    done(cluster.nodes, "snapshot", "save", str(file))

    def restored_id(name: str, members: str, *flags: str) -> str:
        return str(done([], "snapshot", "restore", str(file), "--data-dir", str(tmp_path / name), "--name", "a",
                        "--members", members, "--cluster-id", "second", *flags)["cluster_id"])  # fmt: skip

    two, turned = "a=10.0.0.1:7501,b=10.0.0.2:7501", "b=10.0.0.2:7501,a=10.0.0.1:7501"
    same = {restored_id("1", two), restored_id("2", turned)}
    other = {restored_id("3", two, "--bump-revision", "0"), restored_id("4", "a=10.0.0.1:7501,c=10.0.0.2:7501")}
    assert len(same) == 1
    assert len(same | other) == 3


def test_a_store_over_its_quota_takes_writes_again_after_a_deletion_and_a_compaction(tmp_path: Path) -> None:
    with node_cluster(tmp_path, 1, store_quota_bytes="1048576") as cluster:
        cluster.start()
        [node] = cluster.nodes
        # The quota is agreed on like everything else, soon after there is a leader.
        until("the quota is in force", lambda: status_of(node)["quota_bytes"] == 1_048_576)

        def attempt(key: str) -> httpx.Response:
            body = {"key": b64(key.encode()), "value": b64(bytes(64 * 1024))}
            return plain_http.post(node.url + "/v3/kv/put", json=body, timeout=10)

        full = next(number for number in range(100) if attempt(f"big/{number}").status_code != 200)
        refused = attempt("one-more")
        assert (refused.status_code, refused.json()["code"]) == (429, 8)
        assert 5 < full < 20
        assert get(node, "big/0") == bytes(64 * 1024)
        assert status_of(node)["store_bytes"] > 900_000
        assert "of 1.0 MiB" in quorate(cluster.nodes, "status").stdout

        v3(node, "kv/deleterange", key=b64(b"big/"), range_end=b64(b"big0"))
        assert attempt("one-more").status_code != 200
        compacted = done(cluster.nodes, "compact")
        assert compacted["store_bytes"] < 100_000 < compacted["store_bytes_before"]
        assert attempt("one-more").status_code == 200
        assert "Nothing was compacted" in quorate(cluster.nodes, "compact", "1").stdout


def compared(nodes: list[NodeProcess]) -> dict[str, str]:
    """The verdicts, once all are among the nodes that are up, and none lags."""

    def verdicts() -> dict[str, str] | None:
        found = json.loads(quorate(nodes, "hash", "--json").stdout)["members"]
        told = {each["name"]: each["verdict"] for each in found}
        return None if {"silent", "lags"} & set(told.values()) else told

    return until("all are compared", verdicts, COMMAND_S_MAX)


def status_of(node: NodeProcess) -> dict[str, Any]:
    return dict(plain_http.get(node.url + "/v1/cluster/node", timeout=10).json())


def corrupt(node: NodeProcess, key: bytes) -> None:
    """As a disk might that gives back something else than was written: one value differs, and nothing else."""
    [folder] = (node.data_dir / "state").glob("generation-*")
    database = Database(folder)
    with database.write() as txn:
        main, sub, row = next(each for each in database.rows_from(txn, 0) if each[2].key == key)
        found = txn.cursor(db=database._revisions)
        assert found.set_key(main.to_bytes(8, "big") + sub.to_bytes(4, "big"))
        flipped = bytearray(found.value())
        flipped[-1] ^= 1
        txn.put(bytes(found.key()), bytes(flipped), db=database._revisions)
        assert row.value != flipped
    database.close()


def test_a_member_that_has_diverged_is_named_and_told_from_one_that_does_not_answer(tmp_path: Path) -> None:
    with node_cluster(tmp_path, 3) as cluster:  # of its own: what is corrupted here stays so
        cluster.start()
        _name_the_diverged(cluster)


def _name_the_diverged(cluster: NodeCluster) -> None:
    put(cluster.nodes[0], "key", b"value")
    assert set(compared(cluster.nodes).values()) == {"same"}
    bad = cluster.followers()[0]
    bad.terminate()

    silent = quorate(cluster.nodes, "hash", "--json")
    assert silent.returncode == 5
    verdicts = {each["name"]: each["verdict"] for each in json.loads(silent.stdout)["members"]}
    assert verdicts == {node.name: "silent" if node is bad else "same" for node in cluster.nodes}

    corrupt(bad, b"key")
    bad.restart()
    compared(cluster.nodes)
    found = quorate(cluster.nodes, "hash", "--json")
    assert found.returncode == 1
    verdicts = {each["name"]: each["verdict"] for each in json.loads(found.stdout)["members"]}
    assert verdicts == {node.name: "diverges" if node is bad else "same" for node in cluster.nodes}
    assert (
        f"DIVERGED at revision {json.loads(found.stdout)['revision']}: {bad.name}"
        in quorate(cluster.nodes, "hash").stdout
    )


def test_an_interrupted_snapshot_leaves_nothing_behind(tmp_path: Path) -> None:
    with node_cluster(tmp_path, 1) as cluster:
        cluster.start()
        [node] = cluster.nodes
        for number in range(40):
            put(node, f"big/{number}", os.urandom(1024 * 1024))
        backups = tmp_path / "backups"
        backups.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "quorate_cli", "cluster", "snapshot", "save", str(backups / "b"),
             "--endpoints", node.url]
        )  # fmt: skip
        until("it is being written", lambda: list(backups.iterdir()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) != 0
        assert list(backups.iterdir()) == []
        # The node has heard of it, and is ready for the next one.
        until("it saves again", lambda: quorate([node], "snapshot", "save", str(backups / "b")).returncode == 0)
        assert [path.name for path in backups.iterdir()] == ["b"]
        assert not (node.data_dir / "backup").exists()

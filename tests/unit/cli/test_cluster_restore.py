"""`quorate cluster snapshot restore` as it is typed: data folders that are begun with, or nothing at all."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quorate_cli.layout import Layout, RunLock, open_cluster, write_cluster
from quorate_node.memory import require_memory
from quorate_node.settings import NodeSettings
from quorate_raft import FileDisk, Membership, holds_log
from quorate_raft.runtime.wal import WalIdentity, open_wal
from quorate_store.model import PutOp
from support.store_backups import CLUSTER_ID, apply, opened, write_backup

Make = Callable[..., Any]
MEMBERS = "node-1=10.0.0.1:7501,node-2=10.0.0.2:7501"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    machine = opened(tmp_path / "machine")
    apply(machine, *(PutOp(b"k%d" % number, b"v") for number in range(9)))
    path = write_backup(machine, tmp_path / "b.snapshot")
    machine.close()
    return path


def restore(quorate: Make, file: Path, folder: Path, *more: str, name: str = "node-1", members: str = MEMBERS) -> Any:
    return quorate(
        "cluster", "snapshot", "restore", str(file), "--data-dir", str(folder), "--name", name, "--members", members,
        *more,
    )  # fmt: skip


def log_of(folder: Path, cluster_id: str, name: str) -> tuple[int, Membership]:
    """The entry that its log stands on, and who is a member then. Fails when it is another member's."""
    with FileDisk(folder / "raft") as disk:
        wal, found = open_wal(disk, WalIdentity(cluster_id, name), lambda _: 1, 1024 * 1024, Membership())
        wal.close()
    return found.base.index, found.base.membership


def test_each_member_gets_its_folder_and_they_agree(quorate: Make, file: Path, tmp_path: Path) -> None:
    told = [
        restore(quorate, file, tmp_path / name, "--cluster-id", "second", "--json", name=name)
        for name in ("node-1", "node-2")
    ]
    assert [code for code, _, _ in told] == [0, 0]
    one, other = (json.loads(out) for _, out, _ in told)
    assert one == other
    assert (one["from_cluster_id"], one["from_revision"], one["keys"]) == (CLUSTER_ID, 10, 9)
    assert one["cluster_id"].startswith("second-")
    for name in ("node-1", "node-2"):
        index, membership = log_of(tmp_path / name, one["cluster_id"], name)
        assert (index, membership.voters) == (9, ("node-1", "node-2"))
        assert membership.address_of("node-2") == "10.0.0.2:7501"
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["raft"]


def test_the_line_that_starts_it_is_one_that_a_node_takes(quorate: Make, file: Path, tmp_path: Path) -> None:
    code, out, _ = restore(quorate, file, tmp_path / "data", "--cluster-id", "second")
    assert code == 0
    line = out[out.index("python -m") :].partition("\n\n")[0].replace("HOST:PORT", "127.0.0.1:8501")
    done = subprocess.run(["/bin/sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    settings = NodeSettings.from_command_line("node", done.stdout.split("\0")[3:-1])
    require_memory(settings)  # --cluster-state existing: it has its log
    log_of(settings.data_dir, settings.cluster_id, settings.name)
    assert "for node-2, on their machines" in out
    assert "--cluster-id second" in out


def test_a_single_member_needs_no_id_and_gets_another_one_each_time(quorate: Make, file: Path, tmp_path: Path) -> None:
    ids = [
        json.loads(restore(quorate, file, tmp_path / str(number), "--json", members="node-1=10.0.0.1:7501")[1])
        for number in range(2)
    ]
    assert ids[0]["cluster_id"] != ids[1]["cluster_id"]


@pytest.mark.parametrize(
    ("flags", "name", "reason"),
    [
        ((), "node-1", "--cluster-id: missing"),
        (("--cluster-id", "second"), "node-9", "node-9 is not among the members"),
        (("--cluster-id", CLUSTER_ID), "node-1", "the new one needs an id of its own"),
        (("--cluster-id", "no/word"), "node-1", "a cluster id takes letters"),
        (("--cluster-id", "w" * 125), "node-1", "at most 119"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    quorate: Make, file: Path, tmp_path: Path, flags: tuple[str, ...], name: str, reason: str
) -> None:
    code, _, err = restore(quorate, file, tmp_path / "data", *flags, name=name)
    assert (code, reason in err) == (4, True), err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("members", ["node-1", "node-1=10.0.0.1:7501,node-1=10.0.0.2:7501", "node-1=:7501"])
def test_members_that_are_none_are_refused(quorate: Make, file: Path, tmp_path: Path, members: str) -> None:
    code, _, err = restore(quorate, file, tmp_path / "data", "--cluster-id", "second", members=members)
    assert (code, "--members" in err) == (4, True)


def test_a_folder_with_data_is_refused_and_stays_as_it_is(quorate: Make, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "raft").mkdir(parents=True)
    (folder / "raft" / "wal-1.log").write_text("what a member has")
    code, _, err = restore(quorate, file, folder, "--cluster-id", "second")
    assert (code, "is not empty (raft)" in err) == (4, True)
    assert (folder / "raft" / "wal-1.log").read_text() == "what a member has"


def test_an_empty_folder_where_a_volume_is_mounted_will_do(quorate: Make, file: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "lost+found").mkdir(parents=True)
    assert restore(quorate, file, tmp_path / "data", "--cluster-id", "second")[0] == 0
    assert holds_log(tmp_path / "data" / "raft")


def test_a_damaged_file_leaves_the_folder_as_it_was(quorate: Make, file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "new"):
        code, _, err = restore(quorate, file, folder, "--cluster-id", "second")
        assert (code, "checksum" in err) == (4, True)
    assert list((tmp_path / "there").iterdir()) == []
    assert not (tmp_path / "new").exists()


def platform(tmp_path: Path, nodes: int = 3) -> Layout:
    """One that ran once, and does not now: its nodes have data, and one more member was added."""
    layout = Layout(tmp_path / ".quorate")
    layout.make()
    open_cluster(layout, nodes)
    for name in [*(f"node-{number}" for number in range(1, nodes + 1)), "node-9"]:
        (layout.data_dir / name / "raft").mkdir(parents=True)
        (layout.data_dir / name / "raft" / "old").write_text(name)
    (layout.data_dir / "order").mkdir()
    return layout


def restore_platform(quorate: Make, file: Path, *more: str) -> Any:
    return quorate("cluster", "snapshot", "restore", str(file), "--platform", *more)


def test_all_nodes_of_the_platform_begin_anew_and_their_data_is_kept_aside(
    quorate: Make, file: Path, tmp_path: Path
) -> None:
    layout = platform(tmp_path)
    before, _ = open_cluster(layout, None)
    write_cluster(layout, before)
    code, out, err = restore_platform(quorate, file, "--yes")
    assert (code, err) == (0, "")
    cluster, _ = open_cluster(layout, None)
    assert cluster.cluster_id != before.cluster_id
    assert (cluster.nodes, cluster.begun_nodes) == (3, ("node-1", "node-2", "node-3"))
    for name in cluster.begun_nodes:
        assert log_of(layout.data_dir / name, cluster.cluster_id, name)[1].voters == cluster.begun_nodes
    [aside] = layout.data_dir.glob("before-restore-*")
    assert sorted(path.name for path in aside.iterdir()) == ["node-1", "node-2", "node-3", "node-9"]
    assert (aside / "node-2" / "raft" / "old").read_text() == "node-2"
    assert str(aside) in out
    assert "Not in the new cluster: node-9" in out
    assert sorted(path.name for path in layout.data_dir.iterdir()) == [
        aside.name, "node-1", "node-2", "node-3", "order"
    ]  # fmt: skip


def test_a_platform_that_runs_is_refused(quorate: Make, file: Path, tmp_path: Path) -> None:
    layout = platform(tmp_path)
    lock = RunLock(layout)
    assert lock.try_acquire()
    try:
        code, _, err = restore_platform(quorate, file, "--yes")
    finally:
        lock.release()
    assert (code, "stop it first: quorate down" in err) == (4, True)
    assert (layout.data_dir / "node-1" / "raft" / "old").read_text() == "node-1"


def test_a_damaged_file_changes_nothing_of_the_platform(quorate: Make, file: Path, tmp_path: Path) -> None:
    layout = platform(tmp_path)
    before, _ = open_cluster(layout, None)
    file.write_bytes(file.read_bytes()[:-1])
    assert restore_platform(quorate, file, "--yes")[0] == 4
    assert open_cluster(layout, None) == (before, False)
    assert (layout.data_dir / "node-1" / "raft" / "old").read_text() == "node-1"
    assert sorted(path.name for path in layout.data_dir.iterdir()) == ["node-1", "node-2", "node-3", "node-9", "order"]


def test_without_a_terminal_nobody_is_asked_and_nothing_is_done(quorate: Make, file: Path, tmp_path: Path) -> None:
    layout = platform(tmp_path)
    code, _, err = restore_platform(quorate, file)
    assert (code, "--yes" in err) == (2, True)
    assert (layout.data_dir / "node-1" / "raft" / "old").read_text() == "node-1"
    assert not (layout.data_dir / "restoring").exists()


def test_a_platform_that_was_never_begun_begins_with_the_snapshot(quorate: Make, file: Path, tmp_path: Path) -> None:
    code, out, _ = restore_platform(quorate, file, "--yes", "--json")
    assert code == 0
    layout = Layout(tmp_path / ".quorate")
    cluster, is_first = open_cluster(layout, None)
    assert (is_first, cluster.cluster_id) == (False, json.loads(out)["cluster_id"])
    assert holds_log(layout.data_dir / "node-3" / "raft")


def test_flags_of_a_single_member_are_of_no_use_for_a_platform(quorate: Make, file: Path) -> None:
    code, _, err = restore_platform(quorate, file, "--name", "node-1", "--yes")
    assert (code, "--name: of no use with --platform" in err) == (4, True)


def test_a_restoration_that_a_crash_has_cut_is_done_again(quorate: Make, file: Path, tmp_path: Path) -> None:
    """Between the folders and the record: no node would start, and the same command sets it right."""
    layout = platform(tmp_path)
    before, _ = open_cluster(layout, None)
    assert restore_platform(quorate, file, "--yes")[0] == 0
    write_cluster(layout, before)
    (layout.data_dir / "restoring" / "node-1").mkdir(parents=True)
    [aside] = layout.data_dir.glob("before-restore-*")
    aside.rename(layout.data_dir / "before-restore-earlier")
    assert restore_platform(quorate, file, "--yes")[0] == 0
    cluster, _ = open_cluster(layout, None)
    log_of(layout.data_dir / "node-1", cluster.cluster_id, "node-1")
    assert (layout.data_dir / "before-restore-earlier" / "node-1" / "raft" / "old").exists()

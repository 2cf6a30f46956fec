"""The platform's folder: made once, locked by one, removed with care."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from quorate_cli.layout import (
    Layout,
    RunLock,
    find_root,
    open_cluster,
    remove_everything,
    write_atomically,
    write_cluster,
)
from quorate_core.errors import Conflict, InvalidContent, NotFound


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / ".quorate")
    layout.make()
    return layout


def test_the_first_start_generates_the_cluster_and_its_secrets_and_later_ones_find_them(layout: Layout) -> None:
    cluster, is_first = open_cluster(layout, None)
    secrets = layout.secret_file.read_text(), layout.token_file.read_text()
    again, is_first_again = open_cluster(layout, None)
    assert (is_first, is_first_again) == (True, False)
    assert cluster == again
    assert secrets == (layout.secret_file.read_text(), layout.token_file.read_text())
    assert secrets[0] != secrets[1]


def test_what_was_begun_is_found_again_and_a_file_of_before_says_that_nothing_was(layout: Layout) -> None:
    cluster, _ = open_cluster(layout, 3)
    assert (cluster.begun_nodes, cluster.has_documents) == ((), False)
    known = replace(cluster, begun_nodes=("node-1", "node-3"), removed_nodes=("node-1",), has_documents=True)
    write_cluster(layout, known)
    assert open_cluster(layout, None) == (known, False)
    layout.cluster_file.write_text(json.dumps({"cluster_id": cluster.cluster_id, "nodes": 3}))
    assert open_cluster(layout, None) == (cluster, False)


def test_nobody_else_can_read_secrets_or_data(layout: Layout) -> None:
    open_cluster(layout, None)
    for path in (layout.root, layout.data_dir, layout.logs_dir, layout.secret_file, layout.token_file):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_another_number_of_nodes_than_the_data_has_is_refused(layout: Layout) -> None:
    open_cluster(layout, 3)
    with pytest.raises(Conflict, match=r"cluster of 3 node.*quorate cluster add"):
        open_cluster(layout, 5)
    assert open_cluster(layout, None)[0].nodes == 3


def test_a_damaged_cluster_file_is_named_and_not_replaced(layout: Layout) -> None:
    open_cluster(layout, 3)
    layout.cluster_file.write_text("{")
    with pytest.raises(InvalidContent, match=r"cluster\.json"):
        open_cluster(layout, None)
    assert layout.cluster_file.read_text() == "{"


def test_only_one_holds_the_lock_and_the_next_gets_it_after_its_release(layout: Layout) -> None:
    first, second = RunLock(layout), RunLock(layout)
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()


def test_a_lock_whose_file_was_removed_keeps_nobody_out_who_locks_the_new_one(layout: Layout) -> None:
    stale = RunLock(layout)
    assert stale.try_acquire()
    layout.lock_file.unlink()
    fresh = RunLock(layout)
    assert fresh.try_acquire()
    assert not RunLock(layout).try_acquire()
    stale.release()
    fresh.release()


def test_a_reset_removes_everything_of_ours_and_nothing_else(layout: Layout) -> None:
    open_cluster(layout, None)
    (layout.data_dir / "node-1").mkdir()
    (layout.data_dir / "node-1" / "wal").write_text("records")
    (layout.root / "notes.txt").write_text("mine")
    remove_everything(layout)
    assert [path.name for path in layout.root.iterdir()] == ["notes.txt"]


def test_a_folder_without_our_mark_is_never_emptied(layout: Layout) -> None:
    (layout.data_dir / "photos").mkdir()
    with pytest.raises(NotFound):
        remove_everything(layout)
    assert (layout.data_dir / "photos").is_dir()


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for text in ("old", "new"):
        write_atomically(path, text)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["state.json"]  # noqa: PTH208 - names are what is compared


def test_the_folder_is_found_from_below_then_from_the_checkout(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUORATE_ROOT", raising=False)
    open_cluster(layout, None)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert find_root() == layout.root
    elsewhere = tmp_path / "checkout"
    layout.cluster_file.unlink()
    monkeypatch.setenv("QUORATE_PROJECT", str(elsewhere))
    assert find_root() == elsewhere / ".quorate"
    monkeypatch.setenv("QUORATE_ROOT", str(tmp_path / "named"))
    assert find_root() == tmp_path / "named"
    assert find_root(Path("explicit")) == tmp_path / "a" / "b" / "explicit"

"""The log with which a member begins that is given a state: as if it had taken that snapshot itself."""

from pathlib import Path
from random import Random

import pytest
from quorate_core.errors import Conflict, SettingsError
from quorate_raft import FileDisk, HardState, Membership, SnapshotMeta
from quorate_raft.runtime.restoring import begin_from_snapshot
from quorate_raft.runtime.snapshots import SnapshotStore
from quorate_raft.runtime.wal import WalIdentity, open_wal

MEMBERS = Membership.of_voters({"a": "10.0.0.1:7501", "b": "10.0.0.2:7501"})
RANDOM_BELOW = Random(5).randrange


def write_state(path: Path) -> tuple[int, int]:
    path.write_bytes(b"the state")
    return 42, 7


def begin(disk: FileDisk, name: str = "a", cluster_id: str = "new") -> SnapshotMeta:
    return begin_from_snapshot(disk, cluster_id, name, MEMBERS, write_state, RANDOM_BELOW)


def test_a_member_that_starts_with_it_finds_the_snapshot_and_an_empty_log_behind_it(tmp_path: Path) -> None:
    base = SnapshotMeta(42, 7, MEMBERS)
    with FileDisk(tmp_path / "raft") as disk:
        assert begin(disk) == base
    with FileDisk(tmp_path / "raft") as disk:
        identity = WalIdentity("new", "a")
        store = SnapshotStore(disk, identity)
        wal, recovered = open_wal(disk, identity, RANDOM_BELOW, 1024 * 1024, Membership(), applied_index=0)
        wal.close()
        assert (recovered.base, recovered.entries, recovered.cut_bytes) == (base, [], 0)
        assert recovered.hard_state == HardState(7, "", 42), "it has voted for nobody, and all of it is committed"
        assert store.to_rebuild_from(recovered).path.read_bytes() == b"the state"


@pytest.mark.parametrize(("cluster_id", "name"), [("old", "a"), ("new", "b")])
def test_it_is_of_no_other_cluster_and_of_no_other_member(tmp_path: Path, cluster_id: str, name: str) -> None:
    with FileDisk(tmp_path / "raft") as disk:
        begin(disk)
        with pytest.raises(SettingsError, match="belongs to"):
            open_wal(disk, WalIdentity(cluster_id, name), RANDOM_BELOW, 1024 * 1024, MEMBERS)


def test_a_folder_with_anything_in_it_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with FileDisk(tmp_path / "raft") as disk:
        begin(disk)
        before = {path.name: path.read_bytes() for path in disk.folder.iterdir()}
        with pytest.raises(Conflict, match="is not empty"):
            begin(disk)
        assert {path.name: path.read_bytes() for path in disk.folder.iterdir()} == before


def test_only_a_voter_of_the_new_cluster_begins(tmp_path: Path) -> None:
    with FileDisk(tmp_path / "raft") as disk, pytest.raises(Conflict, match="c is not among the members a, b"):
        begin(disk, name="c")


class Crash(Exception):
    pass


def test_what_a_crash_leaves_before_the_log_is_whole_starts_no_member(tmp_path: Path) -> None:
    class CrashingDisk(FileDisk):
        def publish(self, aside: str, name: str) -> None:
            if name.startswith("wal-"):
                raise Crash
            super().publish(aside, name)

    with CrashingDisk(tmp_path / "raft") as crashing, pytest.raises(Crash):
        begin(crashing)
    with FileDisk(tmp_path / "raft") as disk, pytest.raises(SettingsError, match="there is no log, but there is snap"):
        open_wal(disk, WalIdentity("new", "a"), RANDOM_BELOW, 1024 * 1024, MEMBERS)

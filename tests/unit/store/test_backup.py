"""Backups: read within bounds, believed only when whole, and a state with which a new cluster begins."""

import hashlib
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.errors import Compacted, InvalidRequest, InvariantViolation
from quorate_raft.core.messages import Entry
from quorate_store import backup as backups
from quorate_store.backup import BackupReader, DamagedBackup, encode_head, read_backup
from quorate_store.commands import (
    Compact,
    LeaseCheckpoint,
    LeaseGrant,
    LeaseRemaining,
    encode_command,
)
from quorate_store.database import DATA_FILE_NAME
from quorate_store.model import RESTORED_KEY, DeleteOp, PutOp, RangeOp
from quorate_store.revival import BUMP_REVISIONS_MAX, Contents, opened_backup, read_meta
from quorate_store.state import StateMachine
from support.store_backups import CLUSTER_ID, apply, header_of, opened, write_backup

ALL = RangeOp(b"\0", b"\0")
RANDOM = random.Random(7)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[StateMachine]:
    """History, deletions, a compaction, and leases, one of which has been checkpointed."""
    machine = opened(tmp_path / "source")
    apply(machine, LeaseGrant(7, 60), LeaseGrant(8, 30), PutOp(b"leased", b"x", lease=7))
    apply(machine, *(PutOp(b"k%d" % number, b"v") for number in range(50)), DeleteOp(b"k3"), Compact(20))
    apply(machine, LeaseCheckpoint(3, (LeaseRemaining(7, 1, 1_500),)), PutOp(b"k1", b"newer"))
    yield machine
    machine.close()


@pytest.fixture
def file(source: StateMachine, tmp_path: Path) -> Path:
    return write_backup(source, tmp_path / "backup.snapshot")


def scratch(folder: Path) -> Path:
    folder.mkdir()
    return folder


def contents_of(file: Path, folder: Path) -> Contents:
    with opened_backup(file, scratch(folder)) as opened_file:
        return opened_file.contents()


def revived(file: Path, folder: Path, bump_revisions: int = 0) -> StateMachine:
    """The state with which a member of the new cluster begins."""
    with opened_backup(file, scratch(folder)) as opened_file:
        revision = opened_file.begin_anew(bump_revisions)
        opened_file.save(folder / "begun.mdb")
    machine = opened(folder / "state")
    machine.restore_snapshot(folder / "begun.mdb")()
    assert machine.revision == revision
    return machine


def test_what_is_in_a_backup_is_told_as_the_member_had_it(source: StateMachine, file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    contents = contents_of(file, tmp_path / "scratch")
    assert contents.header == header_of(source, before[-contents.header.size_bytes :])
    assert (contents.keys, contents.leases) == (50, 2)
    assert (contents.store_bytes, contents.quota_bytes) == (source.logical_bytes, source.quota_bytes)
    assert (contents.hash.revision, contents.hash.compact_revision) == (source.revision, 20)
    assert file.read_bytes() == before, "looking changes nothing"


def test_the_counters_of_a_copy_are_read_without_the_rest(source: StateMachine, tmp_path: Path) -> None:
    folder = scratch(tmp_path / "copy")
    source.save_snapshot(folder / DATA_FILE_NAME)
    meta = read_meta(folder)
    assert (meta.applied_index, meta.revision) == (source.applied_index, source.revision)


@pytest.mark.parametrize("piece_bytes", [1, 7, 4096, 10**9])
def test_a_backup_is_read_in_pieces_of_any_size(file: Path, piece_bytes: int) -> None:
    data, sunk = file.read_bytes(), bytearray()
    reader = BackupReader(sunk.extend)
    for offset in range(0, len(data), piece_bytes):
        reader.feed(data[offset : offset + piece_bytes])
    header = reader.finish()
    assert header.cluster_id == CLUSTER_ID
    assert bytes(sunk) == data[-header.size_bytes :]


def test_progress_is_told_up_to_the_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "CHUNK_BYTES", 4096)
    told: list[tuple[int, int]] = []
    header = read_backup(file, on_progress=lambda done, all_bytes: told.append((done, all_bytes)))
    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == (header.size_bytes, header.size_bytes)


def refused(data: bytes) -> str:
    """Why `data` is no backup. Fails when it is one, and when anything else is raised."""
    with pytest.raises(DamagedBackup) as error:
        read_in_pieces(data)
    return error.value.detail


def read_in_pieces(data: bytes) -> None:
    reader = BackupReader()
    for offset in range(0, len(data), 1000):
        reader.feed(data[offset : offset + 1000])
    reader.finish()


def test_a_backup_that_ends_too_early_anywhere_is_refused(file: Path) -> None:
    data = file.read_bytes()
    head_bytes = len(data) - read_backup(file).size_bytes
    ends = {*range(head_bytes + 3), *RANDOM.sample(range(head_bytes, len(data)), 50), len(data) - 1}
    for end in sorted(ends):
        assert "it ends after" in refused(data[:end])


def test_no_flipped_bit_goes_unseen(file: Path) -> None:
    data = file.read_bytes()
    head_bytes = len(data) - read_backup(file).size_bytes
    places = {*range(head_bytes), *RANDOM.sample(range(head_bytes, len(data)), 60)}
    for place in sorted(places):
        damaged = bytearray(data)
        damaged[place] ^= 1 << RANDOM.randrange(8)
        refused(bytes(damaged))


def test_what_follows_after_the_end_is_refused(file: Path) -> None:
    data = file.read_bytes()
    assert "not its checksum" in refused(data + b"\0")
    assert "not its checksum" in refused(data + hashlib.sha256(data + b"\0").digest())
    assert "more follows" in refused(data + hashlib.sha256(data).digest() + b"\0")


def test_the_checksum_that_clients_of_the_api_keep_may_follow(file: Path) -> None:
    data = file.read_bytes()
    whole = data + hashlib.sha256(data).digest()
    read_in_pieces(whole)
    for end in range(len(data) + 1, len(whole)):
        assert "not its checksum" in refused(whole[:end])


@given(st.binary(max_size=200))
def test_no_nonsense_is_taken_for_a_backup_or_raises_anything_else(data: bytes) -> None:
    refused(data)


def with_header(payload: bytes, data: bytes = b"") -> bytes:
    return b"QUORSNAP" + len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little") + payload + data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["format_version", "size_bytes", "members", "sha256", "index"]), JSON))
def test_a_header_that_vouches_for_itself_and_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    refused(with_header(json.dumps(fields).encode(), b"data"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size_bytes": -1}, "size_bytes"),
        ({"size_bytes": 2**50}, "size_bytes"),
        ({"index": 0}, "index"),
        ({"term": 2**63}, "term"),
        ({"sha256": "no checksum"}, "sha256"),
        ({"cluster_id": "c" * 1_000}, "cluster_id"),
        ({"compact_revision": 10**6}, "compacted"),
        ({"format_version": 2}, "format 2"),
    ],
)
def test_each_number_of_the_header_has_its_bounds(source: StateMachine, change: dict[str, object], reason: str) -> None:
    fields = {**msgspec.to_builtins(header_of(source, b"data")), **change}
    assert reason in refused(with_header(json.dumps(fields).encode(), b"data"))
    with pytest.raises(InvariantViolation):
        encode_head(header_of(source, b"data", **change))


def test_a_header_that_is_too_long_is_refused_before_it_is_read(source: StateMachine) -> None:
    assert "there is none of more than" in refused(b"QUORSNAP" + (2**31).to_bytes(4, "little") + bytes(5000))
    many = tuple(backups.BackupMember("n" * 300, "a" * 300, False) for _ in range(100))
    with pytest.raises(InvariantViolation, match="larger than any"):
        encode_head(header_of(source, b"data", members=many * 2))


def test_a_deeply_nested_header_is_refused_like_any_other() -> None:
    refused(with_header(b'{"format_version":1,"members":' + b"[" * 60_000))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy milk")
    with pytest.raises(DamagedBackup, match=r"notes\.txt cannot be used: it is no snapshot"):
        read_backup(path)


@pytest.mark.parametrize("change", [{"index": 99}, {"term": 1}, {"revision": 10**5}, {"compact_revision": 1}])
def test_a_header_and_data_of_different_moments_are_refused(
    source: StateMachine, tmp_path: Path, change: dict[str, object]
) -> None:
    file = write_backup(source, tmp_path / "mixed.snapshot", **change)
    with pytest.raises(DamagedBackup, match="do not belong together"):
        contents_of(file, tmp_path / "scratch")


def test_data_that_is_no_state_is_refused(source: StateMachine, tmp_path: Path) -> None:
    path = tmp_path / "other.snapshot"
    for number, data in enumerate((bytes(8192), RANDOM.randbytes(20_000), b"x")):
        path.write_bytes(encode_head(header_of(source, data)) + data)
        with pytest.raises(Exception, match=r"cannot (be used|open|read)") as error:
            contents_of(path, tmp_path / f"scratch-{number}")
        assert type(error.value).__name__ in ("DamagedBackup", "StateUnusable")


def test_a_new_cluster_has_the_keys_the_history_and_the_leases(
    source: StateMachine, file: Path, tmp_path: Path
) -> None:
    machine = revived(file, tmp_path / "a")
    assert machine.range(ALL) == source.range(ALL)
    assert machine.range(RangeOp(b"k1", revision=30)).kvs[0].value == b"v"
    assert (machine.revision, machine.compact_revision) == (source.revision, source.compact_revision)
    assert list(machine.leases.keys(7)) == [b"leased"]
    assert machine.logical_bytes == source.logical_bytes
    machine.close()


def test_leases_have_their_whole_time_to_live_again(source: StateMachine, file: Path, tmp_path: Path) -> None:
    assert source.leases.require(7).remaining_ms == 1_500
    machine = revived(file, tmp_path / "a")
    assert [machine.leases.require(lease).remaining_ms for lease in (7, 8)] == [0, 0]
    assert [machine.leases.require(lease).ttl_s for lease in (7, 8)] == [60, 30]
    machine.close()


@pytest.mark.parametrize("bump_revisions", [0, 1, 1_000_000_000, BUMP_REVISIONS_MAX])
def test_members_that_are_restored_from_one_file_agree_and_go_on_alike(
    file: Path, tmp_path: Path, bump_revisions: int
) -> None:
    one, other = (revived(file, tmp_path / name, bump_revisions) for name in ("one", "other"))
    assert one.state_hash() == other.state_hash()
    commands = [PutOp(b"k1", b"after"), DeleteOp(b"leased"), LeaseGrant(9, 5)]
    first = one.applied_index + 1
    for machine in (one, other):
        machine.apply([Entry(first + at, 4, data=encode_command(each)) for at, each in enumerate(commands)])
    one.sweep(10**6)
    assert one.state_hash() == other.state_hash()
    for machine in (one, other):
        machine.close()


def test_a_raised_revision_hides_all_before_it_and_says_what_was_restored(
    source: StateMachine, file: Path, tmp_path: Path
) -> None:
    before = source.revision
    machine = revived(file, tmp_path / "a", 1000)
    assert (machine.revision, machine.compact_revision) == (before + 1000, before + 1000)
    for revision in (before, before + 1, before + 999):
        with pytest.raises(Compacted):
            machine.range(RangeOp(b"k1", revision=revision))
        with pytest.raises(Compacted):
            machine.events(revision, b"k1", b"", previous=False, rows_max=10)
    record = json.loads(machine.range(RangeOp(RESTORED_KEY)).kvs[0].value)
    assert (record["cluster_id"], record["revision"]) == (CLUSTER_ID, before)
    [event], reached = machine.events(before + 1000, b"\0", b"\0", previous=False, rows_max=10)
    assert (event.kv.key, event.kv.mod_revision, reached) == (RESTORED_KEY, before + 1000, before + 1000)
    assert [kv for kv in machine.range(ALL).kvs if kv.key != RESTORED_KEY] == list(source.range(ALL).kvs)
    machine.close()


def test_keys_that_said_who_was_up_end_with_the_old_cluster(source: StateMachine, tmp_path: Path) -> None:
    apply(source, PutOp(b"up/node-1", b"url", lease=7), PutOp(b"up/node-2", b"url"), PutOp(b"upper", b"another"))
    file = write_backup(source, tmp_path / "with-nodes.snapshot")
    with opened_backup(file, scratch(tmp_path / "a")) as opened_file:
        opened_file.begin_anew(1000, b"up/")
        opened_file.save(tmp_path / "begun.mdb")
    machine = opened(tmp_path / "state")
    machine.restore_snapshot(tmp_path / "begun.mdb")()
    alive = {kv.key for kv in machine.range(ALL).kvs}
    assert {b"up/node-1", b"up/node-2"} & alive == set()
    assert {b"upper", b"leased", RESTORED_KEY} <= alive
    assert list(machine.leases.keys(7)) == [b"leased"]
    machine.close()


def test_what_a_raised_revision_has_compacted_is_swept_and_survives_a_restart(file: Path, tmp_path: Path) -> None:
    machine = revived(file, tmp_path / "a", 1000)
    while not machine.is_swept:
        machine.sweep(7)
    apply(machine, PutOp(b"k1", b"after"))
    apply(machine, Compact(machine.revision))
    state, logical_bytes = machine.state_hash(), machine.logical_bytes
    machine.close()
    again = opened(tmp_path / "a" / "state")
    assert (again.state_hash(), again.logical_bytes) == (state, logical_bytes)
    again.close()


def test_a_restored_state_can_be_backed_up_and_restored_again(file: Path, tmp_path: Path) -> None:
    machine = revived(file, tmp_path / "a", 1000)
    again = revived(write_backup(machine, tmp_path / "again.snapshot"), tmp_path / "b", 1000)
    assert again.revision == machine.revision + 1000
    assert again.range(RangeOp(RESTORED_KEY)).kvs[0].version == 2
    # The record of the first restoration counts no more; larger numbers take a few bytes more.
    assert abs(again.logical_bytes - machine.logical_bytes) < 16
    for each in (machine, again):
        each.close()


@pytest.mark.parametrize("bump_revisions", [-1, BUMP_REVISIONS_MAX + 1])
def test_a_revision_is_never_lowered_and_not_raised_beyond_reason(
    file: Path, tmp_path: Path, bump_revisions: int
) -> None:
    with opened_backup(file, scratch(tmp_path / "scratch")) as opened_file, pytest.raises(InvalidRequest):
        opened_file.begin_anew(bump_revisions)

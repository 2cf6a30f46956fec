"""Snapshot files on a real disk: what is there after a crash, and what is refused."""

import resource
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from quorate_core.errors import InvalidContent, PayloadTooLarge, SettingsError
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, HardState, SnapshotMeta
from quorate_raft.runtime.disk import DiskFailed, FileDisk
from quorate_raft.runtime.ports import SnapshotOffer
from quorate_raft.runtime.snapshots import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    INDEX_MAX,
    SNAPSHOT_BYTES_MAX,
    DamagedSnapshot,
    SnapshotStore,
    StoredSnapshot,
)
from quorate_raft.runtime.wal import WalIdentity
from quorate_raft.runtime.wal_recovery import Recovered
from support.raft_disks import Crash, CrashingDisk

IDENTITY = WalIdentity("cluster-1", "node-1")
STATE = b"the state, several chunks of it " * 20_000
assert len(STATE) > 2 * CHUNK_BYTES


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDisk]:
    with FileDisk(tmp_path / "raft") as opened:
        yield opened


@pytest.fixture
def store(disk: FileDisk) -> SnapshotStore:
    return SnapshotStore(disk, IDENTITY)


def membership_at(index: int) -> Membership:
    return Membership.of_voters({"node-1": f"host:{index}"})


def writing(index: int, term: int = 1, data: bytes = STATE) -> Callable[[Path], tuple[int, int]]:
    def write(path: Path) -> tuple[int, int]:
        with path.open("xb") as file:
            file.write(data)
        return index, term

    return write


def save(store: SnapshotStore, index: int, term: int = 1, data: bytes = STATE) -> StoredSnapshot:
    return store.save(writing(index, term, data), membership_at)


def offer_of(index: int, data: bytes = STATE) -> SnapshotOffer:
    return SnapshotOffer(3, SnapshotMeta(index, 2, membership_at(index)), len(data), zlib.crc32(data))


def receive(store: SnapshotStore, index: int, data: bytes = STATE) -> StoredSnapshot:
    writer = store.receive(offer_of(index, data))
    for offset in range(0, len(data), 100_000):
        writer.append(data[offset : offset + 100_000])
    return writer.finish()


def names_of(*indexes: int) -> list[str]:
    return [f"snapshot-{index:016d}.{kind}" for index in indexes for kind in ("json", "mdb")]


def log_of(base: SnapshotMeta, *entries: tuple[int, int]) -> Recovered:
    return Recovered(HardState(), base, [Entry(index, term) for index, term in entries], 0)


def test_a_snapshot_that_was_saved_is_there_after_a_restart(disk: FileDisk, store: SnapshotStore) -> None:
    assert store.newest() is None
    saved = save(store, 7)
    assert (saved.meta, saved.size_bytes) == (SnapshotMeta(7, 1, membership_at(7)), len(STATE))
    assert saved.checksum == zlib.crc32(STATE)
    assert saved.path.read_bytes() == STATE
    assert store.newest() == SnapshotStore(disk, IDENTITY).newest() == saved
    assert disk.names() == names_of(7)
    store.verify(saved)


def test_a_snapshot_that_was_received_is_there_after_a_restart(disk: FileDisk, store: SnapshotStore) -> None:
    received = receive(store, 9)
    assert received.meta == SnapshotMeta(9, 2, membership_at(9))
    assert store.newest() == SnapshotStore(disk, IDENTITY).newest() == received
    assert received.path.read_bytes() == STATE


def test_the_newest_counts_and_older_ones_are_removed_when_told(disk: FileDisk, store: SnapshotStore) -> None:
    for index in (100, 7, 1000):
        save(store, index)
    newest = store.newest()
    assert newest is not None
    assert newest.meta.index == 1000
    store.remove_older_than(100)
    assert disk.names() == names_of(100, 1000)
    store.remove_older_than(1000)
    store.remove_older_than(1000)
    assert disk.names() == names_of(1000)
    assert store.newest() == newest


def test_a_snapshot_of_the_same_entry_is_not_exchanged(disk: FileDisk, store: SnapshotStore) -> None:
    """Between the new data and its description, a crash would leave neither of the two."""
    saved = save(store, 7)
    assert save(store, 7, data=b"the same state, laid out in another way") == saved
    assert receive(store, 7, data=b"the same of another member") == saved
    assert disk.names() == names_of(7)
    store.verify(saved)


@pytest.mark.parametrize("data", [STATE[:-1], STATE[:-1] + b"?"], ids=["too short", "changed"])
def test_what_comes_must_be_what_was_offered(disk: FileDisk, store: SnapshotStore, data: bytes) -> None:
    writer = store.receive(offer_of(9))
    writer.append(data)
    with pytest.raises(InvalidContent, match=r"bytes came, with the checksum .* were offered"):
        writer.finish()
    writer.abandon()
    assert store.newest() is None
    assert disk.names() == []


def test_no_more_is_taken_than_was_offered(disk: FileDisk, store: SnapshotStore) -> None:
    writer = store.receive(offer_of(9))
    writer.append(STATE)
    with pytest.raises(InvalidContent, match=f"more than the {len(STATE)} bytes came"):
        writer.append(b"x")
    writer.abandon()
    assert disk.names() == []


def test_an_offer_that_cannot_be_is_refused(disk: FileDisk, store: SnapshotStore) -> None:
    with pytest.raises(PayloadTooLarge, match="the limit is"):
        store.receive(SnapshotOffer(1, SnapshotMeta(1, 1), SNAPSHOT_BYTES_MAX + 1, 0))
    for index, size_bytes in ((1, 0), (1, -5), (0, 1), (-1, 1), (INDEX_MAX + 1, 1)):
        with pytest.raises(InvalidContent, match="there is no snapshot of entry"):
            store.receive(SnapshotOffer(1, SnapshotMeta(index, 1), size_bytes, 0))
    assert disk.names() == []


def test_giving_up_leaves_nothing_behind_and_after_the_end_does_nothing(disk: FileDisk, store: SnapshotStore) -> None:
    writer = store.receive(offer_of(9))
    writer.append(STATE[:1000])
    writer.abandon()
    writer.abandon()
    assert disk.names() == []
    writer = store.receive(offer_of(9))
    writer.append(STATE)
    stored = writer.finish()
    writer.abandon()
    assert store.newest() == stored
    assert disk.names() == names_of(9)


def test_a_disk_without_room_refuses_a_snapshot_before_its_first_byte(disk: FileDisk, store: SnapshotStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(STATE) - 1, hard))
    try:
        with pytest.raises(DiskFailed, match=r"cannot set room aside for .*snapshot-received"):
            store.receive(offer_of(9))
        assert disk.names() == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert receive(store, 9) == store.newest()


def test_a_state_that_cannot_be_written_leaves_nothing_behind(disk: FileDisk, store: SnapshotStore) -> None:
    def failing(path: Path) -> tuple[int, int]:
        path.write_bytes(b"half")
        raise DiskFailed("the disk is full")

    with pytest.raises(DiskFailed, match="full"):
        store.save(failing, membership_at)
    assert disk.names() == []

    def failing_otherwise(path: Path) -> tuple[int, int]:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFailed, match=r"cannot write .*snapshot-taken.*: the disk is full"):
        store.save(failing_otherwise, membership_at)
    assert disk.names() == []
    save(store, 7)


@pytest.mark.parametrize("way", ["save", "receive", "remove"])
def test_a_crash_anywhere_leaves_whole_snapshots_only(tmp_path_factory: pytest.TempPathFactory, way: str) -> None:
    seen, step, has_crashed = set(), 0, True
    while has_crashed:
        with FileDisk(tmp_path_factory.mktemp("snapshots")) as disk:
            save(SnapshotStore(disk, IDENTITY), 5)
            if way == "remove":
                save(SnapshotStore(disk, IDENTITY), 9)
            has_crashed = _crashes(CrashingDisk(disk, step), way)
            store = SnapshotStore(disk, IDENTITY)
            newest = store.newest()
            assert newest is not None, "whatever happens, one is there"
            store.verify(newest)
            seen.add(tuple(disk.names()))
        step += 1
    assert step >= 3
    both, one = tuple(names_of(5, 9)), tuple(names_of(9 if way == "remove" else 5))
    assert seen == {both, one}, "nothing that is left over stays"


def _crashes(disk: CrashingDisk, way: str) -> bool:
    try:
        store = SnapshotStore(disk, IDENTITY)
        {
            "save": lambda: save(store, 9),
            "receive": lambda: receive(store, 9),
            "remove": lambda: store.remove_older_than(9),
        }[way]()
    except Crash:
        return True
    return False


def newest_or_refusal(disk: FileDisk) -> StoredSnapshot | str | None:
    try:
        return SnapshotStore(disk, IDENTITY).newest()
    except SettingsError as error:
        return error.detail


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x04
    path.write_bytes(data)


def test_any_damage_to_a_description_is_seen(disk: FileDisk, store: SnapshotStore) -> None:
    """A configuration or a term that is believed and wrong would be worse than none."""
    saved = save(store, 7)
    json_path = saved.path.with_suffix(".json")
    whole = json_path.read_bytes()
    for offset in range(len(whole)):
        flip(json_path, offset)
        found = newest_or_refusal(disk)
        if isinstance(found, str):
            assert json_path.name in found, "it seems to be another format's or another cluster's"
        else:
            # White space between values may be any.
            assert found is None or (found == saved and json_path.read_bytes().split() == whole.split())
        json_path.write_bytes(whole)
    for cut in (0, 1, len(whole) // 2):
        json_path.write_bytes(whole[:cut])
        assert SnapshotStore(disk, IDENTITY).newest() is None
        assert disk.names() == names_of(7), "what is damaged is evidence"


@pytest.mark.parametrize("damage", ["json", "size", "missing", "renamed"])
def test_a_damaged_snapshot_does_not_count_and_an_older_one_does(disk: FileDisk, damage: str) -> None:
    store = SnapshotStore(disk, IDENTITY)
    older, newer = save(store, 5), save(store, 9)
    if damage == "json":
        newer.path.with_suffix(".json").write_bytes(b"[" * 100_000)
    elif damage == "size":
        newer.path.write_bytes(STATE[:-1])
    elif damage == "missing":
        newer.path.unlink()
    else:
        newer.path.with_suffix(".json").rename(disk.folder / names_of(8)[0])
    store = SnapshotStore(disk, IDENTITY)
    assert store.newest() == older
    latest = save(store, 12)
    store.remove_older_than(12)
    assert disk.names() == names_of(12), "the next one takes the place of the damaged too"
    assert store.newest() == latest


def test_rot_within_the_data_is_seen_before_it_is_used_and_repaired_by_the_next_one(store: SnapshotStore) -> None:
    older, saved = save(store, 5), save(store, 7)
    flip(saved.path, len(STATE) // 2)
    assert store.newest() == saved
    with pytest.raises(DamagedSnapshot, match=rf"{saved.name} has {len(STATE)} bytes with the checksum .*was written"):
        store.verify(saved)
    assert store.newest() == older
    again = save(store, 7, data=STATE[1:])
    assert store.newest() == again
    store.verify(again)


def test_a_state_is_rebuilt_from_the_newest_snapshot_that_the_log_goes_on_from(store: SnapshotStore) -> None:
    """One that was received and that the log was never begun anew with may be of another history than the log."""
    base = SnapshotMeta(5, 1, membership_at(5))
    five, seven = save(store, 5, term=1), save(store, 7, term=1)
    save(store, 9, term=3)
    assert store.to_rebuild_from(log_of(base, (6, 1), (7, 1), (8, 2), (9, 2), (10, 2))) == seven
    assert store.to_rebuild_from(log_of(base, (6, 1), (7, 2))) == five
    assert store.to_rebuild_from(log_of(base)) == five
    flip(seven.path, 5)
    assert store.to_rebuild_from(log_of(base, (6, 1), (7, 1))) == five


def test_a_gap_between_snapshot_and_log_refuses_to_start(disk: FileDisk, store: SnapshotStore) -> None:
    """Pitfall (etcd 9808): the entries between them are nowhere."""
    base = SnapshotMeta(7, 1, membership_at(7))
    save(store, 5)
    with pytest.raises(DamagedSnapshot, match=r"begins after entry 7, .*no snapshot can replace it: there is none"):
        store.to_rebuild_from(log_of(base, (8, 1)))
    seven = save(store, 7)
    flip(seven.path, 5)
    with pytest.raises(DamagedSnapshot) as refusal:
        store.to_rebuild_from(log_of(base, (8, 1)))
    for word in (str(disk.folder), f"{seven.name} has", "Put this member's whole data folder back"):
        assert word in refusal.value.detail
    seven.path.unlink()
    with pytest.raises(DamagedSnapshot, match=f"no snapshot can replace it: {seven.name} has 0 bytes, but was written"):
        SnapshotStore(disk, IDENTITY).to_rebuild_from(log_of(base, (8, 1)))


def test_what_a_crash_left_half_made_is_removed(disk: FileDisk, store: SnapshotStore) -> None:
    save(store, 7)
    others = ["wal-0000000000000001.log", "other"]
    for name in ("snapshot-taken.aside", "snapshot-received.aside", "snapshot-0000000000000008.mdb", *others):
        disk.path(name).write_bytes(b"half")
    SnapshotStore(disk, IDENTITY)
    assert disk.names() == sorted([*names_of(7), *others])


def test_a_snapshot_of_another_cluster_or_format_is_refused_by_name(disk: FileDisk, store: SnapshotStore) -> None:
    saved = save(store, 7)
    with pytest.raises(SettingsError, match=r"snapshot-0000000000000007\.json belongs to cluster 'cluster-1'"):
        SnapshotStore(disk, WalIdentity("cluster-2", "node-1"))
    assert SnapshotStore(disk, WalIdentity("cluster-1", "node-2")).newest() == saved
    described = msgspec.json.decode(saved.path.with_suffix(".json").read_bytes())
    other = {"format_version": FORMAT_VERSION + 1, "colour": described}
    saved.path.with_suffix(".json").write_bytes(msgspec.json.encode(other))
    with pytest.raises(SettingsError, match="has format 2; this version reads 1 only"):
        SnapshotStore(disk, IDENTITY)


def test_only_a_chunk_is_in_memory(disk: FileDisk, store: SnapshotStore) -> None:
    read_sizes: list[int] = []

    class Watching(CrashingDisk):
        def read_part(self, name: str, offset: int, size_bytes: int) -> bytes:
            read_sizes.append(size_bytes)
            return disk.read(name, offset, size_bytes)

    watching = Watching(disk)
    watching.read = watching.read_part
    saved = save(SnapshotStore(watching, IDENTITY), 7)
    SnapshotStore(watching, IDENTITY).verify(saved)
    data_reads = [size_bytes for size_bytes in read_sizes if size_bytes <= CHUNK_BYTES]
    assert len(data_reads) >= 2 * len(STATE) // CHUNK_BYTES
    assert len(read_sizes) - len(data_reads) == 1, "the description"

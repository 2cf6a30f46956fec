"""The write-ahead log on a real disk: what comes back after a crash, and what is refused."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quorate_core.errors import SettingsError
from quorate_raft.core.messages import Entry, EntryKind, HardState
from quorate_raft.runtime import wal as wal_module
from quorate_raft.runtime.disk import DiskFailed, FileDisk
from quorate_raft.runtime.ports import DiskFile
from quorate_raft.runtime.wal import (
    FORMAT_VERSION,
    DamagedLog,
    Recovered,
    SegmentHeader,
    Wal,
    WalIdentity,
    holds_log,
    open_wal,
    segment_name,
)

IDENTITY = WalIdentity("cluster-1", "node-1")
RANDOM_BELOW = random.Random(7).randrange


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDisk]:
    with FileDisk(tmp_path / "raft") as opened:
        yield opened


def reopen(disk: FileDisk, segment_bytes_max: int = 1 << 20) -> Recovered:
    wal, recovered = open_wal(disk, IDENTITY, RANDOM_BELOW, segment_bytes_max)
    wal.close()
    return recovered


def segments(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "raft").glob("wal-*.log"))


def entries(first: int, last: int, term: int = 1) -> list[Entry]:
    return [Entry(index, term, EntryKind.NORMAL, b"data of %d" % index, index * 7) for index in range(first, last + 1)]


def write(disk: FileDisk, *batches: tuple[HardState | None, Sequence[Entry]], segment_bytes_max: int = 1 << 20) -> None:
    wal, _ = open_wal(disk, IDENTITY, RANDOM_BELOW, segment_bytes_max)
    for hard_state, batch in batches:
        wal.append(hard_state, batch)
    wal.close()


def test_a_new_log_is_empty(disk: FileDisk) -> None:
    assert reopen(disk) == Recovered(HardState(), [], 0)


def test_what_was_appended_comes_back(disk: FileDisk) -> None:
    write(disk, (HardState(1, "node-2", 0), entries(1, 3)), (None, entries(4, 4)), (HardState(2, "", 4), []))
    assert reopen(disk) == Recovered(HardState(2, "", 4), entries(1, 4), 0)


def test_appending_goes_on_where_it_stopped(disk: FileDisk) -> None:
    for index in range(1, 6):
        write(disk, (None, entries(index, index)))
    assert reopen(disk).entries == entries(1, 5)


def test_an_entry_overwrites_everything_from_its_index_on(disk: FileDisk) -> None:
    """A follower that gives way to another leader (paper, section 5.3)."""
    write(disk, (None, entries(1, 10)), (None, entries(4, 5, term=2)))
    assert reopen(disk).entries == entries(1, 3) + entries(4, 5, term=2)


def test_segments_are_closed_when_full_and_read_in_order(disk: FileDisk, tmp_path: Path) -> None:
    batches = [(HardState(1, "node-1", index), entries(index, index)) for index in range(1, 50)]
    write(disk, *batches, segment_bytes_max=400)
    assert len(segments(tmp_path)) > 5
    assert all(path.stat().st_size <= 400 for path in segments(tmp_path))
    assert reopen(disk, 400) == Recovered(HardState(1, "node-1", 49), entries(1, 49), 0)
    write(disk, (None, entries(20, 20, term=3)), segment_bytes_max=400)
    assert reopen(disk, 400).entries == entries(1, 19) + entries(20, 20, term=3)


def test_a_record_that_is_larger_than_a_segment_has_one_for_itself(disk: FileDisk, tmp_path: Path) -> None:
    big = Entry(2, 1, data=b"x" * 5000)
    write(disk, (None, entries(1, 1)), (None, [big]), (None, entries(3, 3)), segment_bytes_max=400)
    assert len(segments(tmp_path)) == 3
    assert reopen(disk, 400).entries == [*entries(1, 1), big, *entries(3, 3)]


def test_a_tail_that_is_torn_anywhere_is_cut_and_reported(disk: FileDisk, tmp_path: Path) -> None:
    """The last append was not synced: whatever part of it is there was never acknowledged."""
    write(disk, (HardState(1), entries(1, 2)))
    (segment,) = segments(tmp_path)
    whole = segment.stat().st_size
    write(disk, (HardState(2), entries(3, 4)))
    data = segment.read_bytes()
    for size in range(whole, len(data)):
        segment.write_bytes(data[:size])
        recovered = reopen(disk)
        assert recovered == Recovered(HardState(1), entries(1, 2), size - whole)
        assert segment.stat().st_size == whole
        assert reopen(disk).cut_bytes == 0
    write(disk, (None, entries(3, 3, term=5)))
    assert reopen(disk).entries == entries(1, 2) + entries(3, 3, term=5)


@pytest.mark.parametrize("filling", [b"\0" * 300, b"\xff" * 300, b"QWAL" * 75], ids=["zeros", "ones", "magic"])
def test_a_tail_of_rubbish_is_cut(disk: FileDisk, tmp_path: Path, filling: bytes) -> None:
    """File systems may have grown the file before its content was written."""
    write(disk, (None, entries(1, 2)))
    (segment,) = segments(tmp_path)
    segment.write_bytes(segment.read_bytes() + filling)
    assert reopen(disk) == Recovered(HardState(), entries(1, 2), 300)


def test_a_log_that_ends_before_what_was_applied_is_refused_and_left_as_it_is(disk: FileDisk, tmp_path: Path) -> None:
    """A damage within the last record looks like a torn one; what was applied shows that it is none."""
    write(disk, (HardState(1), entries(1, 2)), (None, entries(3, 4)))
    (segment,) = segments(tmp_path)
    data = segment.read_bytes()
    damaged = data[:-1] + bytes([data[-1] ^ 0xFF])
    segment.write_bytes(damaged)
    with pytest.raises(DamagedLog) as refusal:
        open_wal(disk, IDENTITY, RANDOM_BELOW, applied_index=4)
    said = refusal.value.detail
    for word in (str(disk.folder), segment.name, "ends at entry 2", "applied 4", "put this member's whole data folder"):
        assert word in said
    assert segment.read_bytes() == damaged
    wal, recovered = open_wal(disk, IDENTITY, RANDOM_BELOW, applied_index=2)
    wal.close()
    assert recovered.entries == entries(1, 2)


def test_an_empty_folder_beside_a_state_is_refused_and_stays_empty(disk: FileDisk) -> None:
    with pytest.raises(DamagedLog, match="there is no log, but the state beside it has applied 7"):
        open_wal(disk, IDENTITY, RANDOM_BELOW, applied_index=7)
    assert disk.names() == []
    assert not holds_log(disk.folder)
    reopen(disk)
    assert holds_log(disk.folder)


def test_data_that_looks_like_a_record_is_not_taken_for_one(disk: FileDisk, tmp_path: Path) -> None:
    """Else a torn write of data that holds a copy of a log would be taken for a damage."""
    write(disk, (None, entries(1, 1)))
    (segment,) = segments(tmp_path)
    whole = segment.stat().st_size
    foreign, _ = wal_module._encode_record(b"a record of another log", 0, seed=12345)
    write(disk, (None, [Entry(2, 1, data=foreign * 3)]))
    segment.write_bytes(segment.read_bytes()[:-1])
    assert reopen(disk).entries == entries(1, 1)
    assert segment.stat().st_size == whole


def test_any_flipped_bit_before_the_tail_refuses_to_start(disk: FileDisk, tmp_path: Path) -> None:
    """What was acknowledged is unreadable: starting without it would break promises."""
    write(disk, (HardState(1), entries(1, 2)), (None, entries(3, 3)), (None, entries(4, 4)))
    (segment,) = segments(tmp_path)
    data = segment.read_bytes()
    last_record = data.rindex(b"QWAL")
    for position in range(last_record):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        segment.write_bytes(damaged)
        with pytest.raises(DamagedLog, match=rf"the log is damaged: {segment.name} at offset|header of {segment.name}|"
                           rf"{segment.name} has no readable header at offset 0"):  # fmt: skip
            reopen(disk)
        assert segment.read_bytes() == bytes(damaged), "a damaged log is left as it is"


def test_a_damage_is_named_with_the_record_that_follows(disk: FileDisk, tmp_path: Path) -> None:
    write(disk, (None, entries(1, 1)), (None, entries(2, 2)))
    (segment,) = segments(tmp_path)
    data = bytearray(segment.read_bytes())
    first = data.index(b"QWAL", 4)
    second = data.index(b"QWAL", first + 4)
    data[first + 20] ^= 0xFF
    segment.write_bytes(data)
    with pytest.raises(DamagedLog, match=f"{segment.name} at offset {first}; a whole record follows at {second}"):
        reopen(disk)


def test_a_torn_tail_of_a_segment_that_is_not_the_last_refuses_to_start(disk: FileDisk, tmp_path: Path) -> None:
    """The next segment was only begun when this one was synced."""
    write(disk, *[(None, entries(index, index)) for index in range(1, 20)], segment_bytes_max=400)
    first = segments(tmp_path)[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(DamagedLog, match=rf"{first.name} at offset \d+; it is not the last segment"):
        reopen(disk, 400)


def test_a_missing_record_breaks_the_chain(disk: FileDisk, tmp_path: Path) -> None:
    write(disk, (None, entries(1, 1)), (None, entries(2, 2)), (None, entries(2, 2, term=2)))
    (segment,) = segments(tmp_path)
    data = segment.read_bytes()
    starts = [position for position in range(len(data)) if data.startswith(b"QWAL", position)]
    segment.write_bytes(data[: starts[2]] + data[starts[3] :])
    with pytest.raises(DamagedLog, match=f"offset {starts[2]} does not continue the record before it"):
        reopen(disk)


def test_a_missing_or_exchanged_segment_refuses_to_start(disk: FileDisk, tmp_path: Path) -> None:
    write(disk, *[(None, entries(index, index)) for index in range(1, 30)], segment_bytes_max=400)
    _, second, third, *_ = segments(tmp_path)
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(DamagedLog, match=f"{second.name} is missing, {third.name} comes in its place"):
        reopen(disk, 400)
    second.write_bytes(third.read_bytes())
    with pytest.raises(DamagedLog, match="is missing"):
        reopen(disk, 400)
    second.write_bytes(kept)
    assert reopen(disk, 400).entries == entries(1, 29)


def test_a_segment_of_an_older_copy_does_not_continue_the_chain(disk: FileDisk, tmp_path: Path) -> None:
    batches = [(None, entries(index, index)) for index in range(1, 30)]
    write(disk, *batches, segment_bytes_max=400)
    with FileDisk(tmp_path / "other" / "raft") as other:
        write(other, *batches, segment_bytes_max=400)
        (second, *_) = sorted((tmp_path / "other" / "raft").glob(segment_name(2)))
        segments(tmp_path)[1].write_bytes(second.read_bytes())
    with pytest.raises(DamagedLog, match="at offset 0 does not continue the segment before it"):
        reopen(disk, 400)


@pytest.mark.parametrize(
    "other", [WalIdentity("cluster-2", "node-1"), WalIdentity("cluster-1", "node-2")], ids=["cluster", "member"]
)
def test_a_log_of_another_cluster_or_member_is_refused_by_name(disk: FileDisk, other: WalIdentity) -> None:
    write(disk, (None, entries(1, 1)))
    with pytest.raises(SettingsError) as refused:
        open_wal(disk, other, RANDOM_BELOW)
    assert all(name in refused.value.detail for name in (*_names(IDENTITY), *_names(other)))


def _names(identity: WalIdentity) -> tuple[str, str]:
    return identity.cluster_id, identity.member


def test_another_format_is_refused(disk: FileDisk, tmp_path: Path) -> None:
    header = SegmentHeader(FORMAT_VERSION + 1, IDENTITY.cluster_id, IDENTITY.member, 1, 0, HardState())
    record, _ = wal_module._encode_record(msgspec.msgpack.encode(header), 0, 0)
    (tmp_path / "raft" / segment_name(1)).write_bytes(record)
    with pytest.raises(SettingsError, match="has format 2; this version reads 1 only"):
        reopen(disk)


@pytest.mark.parametrize(
    "payload",
    [b"\xc1", msgspec.msgpack.encode((None, [(5, 1, 0, b"", 0)])), msgspec.msgpack.encode((None, [(0, 1, 0, b"", 0)]))],
    ids=["no msgpack", "a gap before its entry", "index 0"],
)
def test_a_whole_record_that_makes_no_sense_refuses_to_start(disk: FileDisk, tmp_path: Path, payload: bytes) -> None:
    write(disk, (None, entries(1, 1)))
    wal = Wal(disk, IDENTITY, RANDOM_BELOW, 1 << 20)
    wal.recover()
    record, _ = wal_module._encode_record(payload, wal._replay.checksum, wal._replay.seed)
    wal.close()
    (segment,) = segments(tmp_path)
    segment.write_bytes(segment.read_bytes() + record)
    with pytest.raises(DamagedLog, match=r"makes no sense|has entry"):
        reopen(disk)


def test_a_header_that_makes_no_sense_refuses_to_start(disk: FileDisk, tmp_path: Path) -> None:
    record, _ = wal_module._encode_record(b"\xc1", 0, 0)
    (tmp_path / "raft" / segment_name(1)).write_bytes(record)
    with pytest.raises(DamagedLog, match="the header of"):
        reopen(disk)


def test_nothing_is_appended_after_a_failure_or_a_close(disk: FileDisk) -> None:
    """Pitfall (fsyncgate): what the disk has kept is not known."""
    wal, _ = open_wal(disk, IDENTITY, RANDOM_BELOW)
    wal.append(None, entries(1, 1))
    file = wal._file
    assert file is not None
    file.close()
    with pytest.raises(DiskFailed):
        wal.append(None, entries(2, 2))
    with pytest.raises(DamagedLog, match="closed"):
        wal.append(None, entries(2, 2))
    assert reopen(disk).entries == entries(1, 1)


class _Recording:
    """A `Disk` that says what was done to it, on a real one."""

    def __init__(self, disk: FileDisk) -> None:
        self._disk = disk
        self.done: list[str] = []
        self.names, self.remove, self.sync_folder, self.run = disk.names, disk.remove, disk.sync_folder, disk.run
        self.folder, self.write_atomically = disk.folder, disk.write_atomically

    def open(self, name: str, *, create: bool) -> DiskFile:
        return _RecordingFile(self.done, self._disk.open(name, create=create))


class _RecordingFile:
    def __init__(self, done: list[str], file: DiskFile) -> None:
        self._done, self._file = done, file
        self.read_all, self.truncate, self.close = file.read_all, file.truncate, file.close

    def append(self, data: bytes) -> None:
        self._done.append("append")
        self._file.append(data)

    def sync(self) -> None:
        self._done.append("sync")
        self._file.sync()


def test_a_batch_is_one_append_and_one_sync(disk: FileDisk) -> None:
    recording = _Recording(disk)
    wal, _ = open_wal(recording, IDENTITY, RANDOM_BELOW)
    wal.append(HardState(3), entries(1, 1000))
    wal.append(None, entries(1001, 1001))
    wal.close()
    assert recording.done == ["append", "sync"] * 2


batches = st.lists(
    st.tuples(
        st.none() | st.builds(HardState, st.integers(0, 9), st.sampled_from(["", "node-2"]), st.integers(0, 99)),
        st.integers(0, 5),
        st.integers(0, 4),
        st.binary(max_size=40),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=batches, segment_bytes_max=st.integers(1, 600), reopen_every=st.integers(1, 4))
def test_any_history_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[tuple[HardState | None, int, int, bytes]],
    segment_bytes_max: int,
    reopen_every: int,
) -> None:
    """Against a model: overwritten suffixes, empty batches, segments of any size, restarts in between."""
    hard_state, log = HardState(), list[Entry]()
    with FileDisk(tmp_path_factory.mktemp("wal")) as disk:
        wal, _ = open_wal(disk, IDENTITY, RANDOM_BELOW, segment_bytes_max)
        for number, (changed, count, back, data) in enumerate(batches):
            first = max(1, len(log) + 1 - back)
            batch = [Entry(first + offset, number, data=data) for offset in range(count)]
            wal.append(changed, batch)
            hard_state = changed or hard_state
            if batch:
                log[first - 1 :] = batch
            if number % reopen_every == 0:
                wal.close()
                wal, recovered = open_wal(disk, IDENTITY, RANDOM_BELOW, segment_bytes_max)
                assert (recovered.hard_state, recovered.entries, recovered.cut_bytes) == (hard_state, log, 0)
        wal.close()
        assert reopen(disk, segment_bytes_max) == Recovered(hard_state, log, 0)

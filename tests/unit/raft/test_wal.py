"""The write-ahead log on a real disk: what comes back after a crash, and what is refused."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from quorate_core.errors import InvariantViolation, SettingsError
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, HardState
from quorate_raft.runtime import wal_records
from quorate_raft.runtime.disk import DiskFailed, FileDisk
from quorate_raft.runtime.wal import DamagedLog, Recovered, WalIdentity, holds_log, open_wal
from quorate_raft.runtime.wal_recovery import FORMAT_VERSION, SEGMENT_FILE_BYTES_MAX, segment_name
from support.raft_disks import Crash, CrashingDisk
from support.raft_wal import (
    BASE,
    BOOTSTRAP,
    IDENTITY,
    RANDOM_BELOW,
    SMALL_BYTES,
    append_record,
    base_at,
    entries,
    exchange,
    open_,
    record_starts,
    reopen,
    segments,
    write,
    write_one_by_one,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDisk]:
    with FileDisk(tmp_path / "raft") as opened:
        yield opened


def test_a_new_log_is_empty_and_stands_on_the_configuration_that_its_cluster_begins_with(disk: FileDisk) -> None:
    assert reopen(disk) == Recovered(HardState(), BASE, [], 0)
    wal, recovered = open_wal(disk, IDENTITY, RANDOM_BELOW, 4096, Membership())
    wal.close()
    assert recovered.base == BASE, "a log that is there knows better than what its member was told"


def test_what_was_appended_comes_back(disk: FileDisk) -> None:
    write(disk, (HardState(1, "node-2", 0), entries(1, 3)), (None, entries(4, 4)), (HardState(2, "", 4), []))
    assert reopen(disk) == Recovered(HardState(2, "", 4), BASE, entries(1, 4), 0)


def test_appending_goes_on_where_it_stopped(disk: FileDisk) -> None:
    for index in range(1, 6):
        write(disk, (None, entries(index, index)))
    assert reopen(disk).entries == entries(1, 5)
    assert len(segments(disk)) == 1


def test_an_entry_overwrites_everything_from_its_index_on(disk: FileDisk) -> None:
    """A follower that gives way to another leader (paper, section 5.3)."""
    write(disk, (None, entries(1, 10)), (None, entries(4, 5, term=2)))
    assert reopen(disk).entries == entries(1, 3) + entries(4, 5, term=2)


def test_a_vote_and_a_term_survive_whatever_happens_to_the_segment_they_are_in(disk: FileDisk) -> None:
    """Pitfall (PySyncObj 84): two leaders in one term after a restart."""
    wal, _ = open_(disk, SMALL_BYTES)
    wal.append(HardState(7, "node-2", 0), [])
    for index in range(1, 20):
        wal.append(None, entries(index, index, term=7))
    wal.rebase(base_at(15, 7), 14)
    wal.close()
    assert segments(disk)[0].name > segment_name(1)
    assert reopen(disk, SMALL_BYTES).hard_state == HardState(7, "node-2", 0)


def test_segments_are_closed_when_full_and_read_in_order(disk: FileDisk) -> None:
    write_one_by_one(disk, 1, 49)
    assert len(segments(disk)) > 5
    assert all(path.stat().st_size == SMALL_BYTES for path in segments(disk))
    assert reopen(disk, SMALL_BYTES) == Recovered(HardState(1, "node-2", 48), BASE, entries(1, 49), 0)
    write(disk, (None, entries(20, 20, term=3)), segment_bytes_max=SMALL_BYTES)
    assert reopen(disk, SMALL_BYTES).entries == entries(1, 19) + entries(20, 20, term=3)


def test_a_segment_is_set_aside_as_a_whole_and_goes_on_in_its_zeros(disk: FileDisk) -> None:
    for index in range(1, 4):
        write(disk, (None, entries(index, index)))
        (segment,) = segments(disk)
        assert segment.stat().st_size == 4096
        assert segment.read_bytes()[record_starts(segment)[-1] :].strip(b"\0") == b""


def test_a_disk_without_room_for_a_segment_says_so_and_leaves_nothing_half_made(disk: FileDisk) -> None:
    wal, _ = open_(disk, SMALL_BYTES)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wal.append(None, entries(1, 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_BYTES, hard))
    try:
        with pytest.raises(DiskFailed, match=r"cannot set room aside for .*: File too large"):
            wal.append(None, [Entry(2, 1, data=b"x" * 4096)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert disk.names() == [segment_name(1)]
    with pytest.raises(DiskFailed, match="the log is closed"):
        wal.append(None, entries(2, 2))
    assert reopen(disk, SMALL_BYTES).entries == entries(1, 1)


def test_a_record_that_is_larger_than_a_segment_has_one_for_itself(disk: FileDisk) -> None:
    big = Entry(2, 1, data=b"x" * 5000)
    write(disk, (None, entries(1, 1)), (None, [big]), (None, entries(3, 3)), segment_bytes_max=SMALL_BYTES)
    first, second, third = segments(disk)
    assert second.stat().st_size == record_starts(second)[-1] > 5000
    assert first.stat().st_size == third.stat().st_size == SMALL_BYTES
    assert reopen(disk, SMALL_BYTES).entries == [*entries(1, 1), big, *entries(3, 3)]


@pytest.mark.parametrize("rest", ["zeros", "nothing"])
def test_a_tail_that_is_torn_anywhere_is_cut_and_reported(disk: FileDisk, rest: str) -> None:
    """The last append was not synced: whatever part of it is there was never acknowledged."""
    write(disk, (HardState(1), entries(1, 2)))
    (segment,) = segments(disk)
    whole = record_starts(segment)[-1]
    write(disk, (HardState(2), entries(3, 4)))
    data, end = segment.read_bytes(), record_starts(segment)[-1]
    for size in range(whole, end - 1):  # the last byte is a zero, and so as good as written
        torn = data[:size]
        segment.write_bytes(torn.ljust(len(data), b"\0") if rest == "zeros" else torn)
        left_bytes = len(torn.rstrip(b"\0")) - whole
        assert reopen(disk) == Recovered(HardState(1), BASE, entries(1, 2), max(left_bytes, 0))
        assert segment.read_bytes().rstrip(b"\0") == data[:whole].rstrip(b"\0")
        assert reopen(disk).cut_bytes == 0
    write(disk, (None, entries(3, 3, term=5)))
    assert reopen(disk).entries == entries(1, 2) + entries(3, 3, term=5)


@pytest.mark.parametrize("there", ["beginning", "end", "odd sectors"])
def test_a_record_of_which_any_sectors_are_on_the_disk_is_torn(disk: FileDisk, there: str) -> None:
    """A disk writes the sectors of an unsynced append in any order."""
    sector = 64
    write(disk, (None, entries(1, 1)))
    (segment,) = segments(disk)
    begin = record_starts(segment)[-1]
    write(disk, (HardState(3), [Entry(2, 1, data=b"abcdefgh" * 100)]))
    data, end = bytearray(segment.read_bytes()), record_starts(segment)[-1]
    middle = (begin + end) // 2
    for offset in range(begin, end):
        is_there = {
            "beginning": offset < middle, "end": offset > middle, "odd sectors": (offset - begin) // sector % 2 == 1,
        }[there]  # fmt: skip
        data[offset] = data[offset] if is_there else 0
    segment.write_bytes(data)
    recovered = reopen(disk)
    assert (recovered.hard_state, recovered.entries) == (HardState(), entries(1, 1))
    assert recovered.cut_bytes > 0
    assert set(segment.read_bytes()[begin:]) == {0}, "nothing of it may be taken for a part of what comes next"


@pytest.mark.parametrize("filling", [b"\xff" * 300, b"QWAL" * 75], ids=["ones", "magic"])
def test_a_tail_of_rubbish_is_cut(disk: FileDisk, filling: bytes) -> None:
    """File systems may have grown the file before its content was written."""
    write(disk, (None, entries(1, 2)))
    (segment,) = segments(disk)
    exchange(segment, record_starts(segment)[-1] + 50, filling)
    assert reopen(disk) == Recovered(HardState(), BASE, entries(1, 2), 350)
    exchange(segment, 4096, filling)
    assert reopen(disk).entries == entries(1, 2)
    assert reopen(disk).cut_bytes == 0


def test_a_log_that_ends_before_what_was_applied_is_refused_and_left_as_it_is(disk: FileDisk) -> None:
    """A damage within the last record looks like a torn one; what was applied shows that it is none."""
    write(disk, (HardState(1), entries(1, 2)), (None, entries(3, 4)))
    (segment,) = segments(disk)
    exchange(segment, record_starts(segment)[-1] - 3, b"\xff")
    damaged = segment.read_bytes()
    with pytest.raises(DamagedLog) as refusal:
        open_(disk, applied_index=4)
    said = refusal.value.detail
    for word in (str(disk.folder), segment.name, "ends at entry 2", "applied 4", "put this member's whole data folder"):
        assert word in said
    assert segment.read_bytes() == damaged
    wal, recovered = open_(disk, applied_index=2)
    wal.close()
    assert recovered.entries == entries(1, 2)


def test_an_empty_folder_beside_a_state_is_refused_and_stays_empty(disk: FileDisk) -> None:
    with pytest.raises(DamagedLog, match="there is no log, but the state beside it has applied 7"):
        open_(disk, applied_index=7)
    assert disk.names() == []
    assert not holds_log(disk.folder)
    reopen(disk)
    assert holds_log(disk.folder)


def test_snapshots_without_a_log_are_refused(disk: FileDisk) -> None:
    """The member has promised more than they hold: its vote, and the entries after them."""
    disk.write_atomically("snapshot-0000000000000007.json", b"{}")
    with pytest.raises(DamagedLog, match=r"there is no log, but there is snapshot-0000000000000007\.json beside it"):
        reopen(disk)
    assert not holds_log(disk.folder)


def test_data_that_looks_like_a_record_is_not_taken_for_one(disk: FileDisk) -> None:
    """Else a torn write of data that holds a copy of a log would be taken for a damage."""
    write(disk, (None, entries(1, 1)))
    (segment,) = segments(disk)
    foreign, _ = wal_records.encode_record(b"a record of another log", 0, seed=12345)
    write(disk, (None, [Entry(2, 1, data=foreign * 3)]))
    exchange(segment, record_starts(segment)[-1] - 3, b"\0\0\0")
    assert reopen(disk).entries == entries(1, 1)


def test_the_search_for_a_whole_record_ends_though_data_is_full_of_beginnings() -> None:
    """What there is no time to look at counts as a record: it could be one."""
    beginnings = (b"QWAL" + (1000).to_bytes(4, "little") + bytes(8)) * 10_000
    assert wal_records.find_record(beginnings, 0, 1) is None
    assert wal_records.find_record(beginnings, 0, 1, bytes_max=50_000) == (50 * 16, False)
    record, _ = wal_records.encode_record(b"payload", 0, 1)
    assert wal_records.find_record(beginnings + record, 0, 1) == (len(beginnings), True)


def test_any_flipped_bit_before_the_tail_refuses_to_start(disk: FileDisk) -> None:
    """What was acknowledged is unreadable: starting without it would break promises."""
    write(disk, (HardState(1), entries(1, 2)), (None, entries(3, 3)), (None, entries(4, 4)))
    (segment,) = segments(disk)
    data, last_record = segment.read_bytes(), record_starts(segment)[-2]
    for position in range(last_record):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        segment.write_bytes(damaged)
        with pytest.raises(DamagedLog, match=rf"the log is damaged: {segment.name} at offset|header of {segment.name}|"
                           rf"{segment.name} has no readable header at offset 0"):  # fmt: skip
            reopen(disk)
        assert segment.read_bytes() == bytes(damaged), "a damaged log is left as it is"


def test_a_damage_is_named_with_the_record_that_follows(disk: FileDisk) -> None:
    """Pitfall (etcd 5230; FAST '18): a damage before the tail is never taken for a torn tail."""
    write(disk, (None, entries(1, 1)), (None, entries(2, 2)))
    (segment,) = segments(disk)
    _, first, second, _ = record_starts(segment)
    exchange(segment, first + 20, b"\xee")
    with pytest.raises(DamagedLog, match=f"{segment.name} at offset {first}; a whole record follows at {second}"):
        reopen(disk)
    exchange(segment, first, bytes(second - first))
    with pytest.raises(DamagedLog, match=f"{segment.name} at offset {first}; a whole record follows at {second}"):
        reopen(disk)


def test_a_torn_tail_of_a_segment_that_is_not_the_last_refuses_to_start(disk: FileDisk) -> None:
    """The next segment was only begun when this one was synced."""
    write_one_by_one(disk, 1, 19)
    first = segments(disk)[0]
    exchange(first, record_starts(first)[-1] - 3, b"\xee")
    with pytest.raises(DamagedLog, match=rf"{first.name} at offset \d+; it is not the last segment"):
        reopen(disk, SMALL_BYTES)


def test_a_lost_write_at_the_end_of_a_segment_that_is_not_the_last_refuses_to_start(disk: FileDisk) -> None:
    """The disk has acknowledged it, and kept zeros: the next segment does not continue the chain."""
    write_one_by_one(disk, 1, 19)
    first, second, *_ = segments(disk)
    *_, begin, end = record_starts(first)
    exchange(first, begin, bytes(end - begin))
    with pytest.raises(DamagedLog, match=f"{second.name} at offset 0 does not continue the segment before it"):
        reopen(disk, SMALL_BYTES)


def test_a_missing_record_breaks_the_chain(disk: FileDisk) -> None:
    write(disk, (None, entries(1, 1)), (None, entries(2, 2)), (None, entries(2, 2, term=2)))
    (segment,) = segments(disk)
    data, (*_, second, third, _) = segment.read_bytes(), record_starts(segment)
    segment.write_bytes(data[:second] + data[third:])
    with pytest.raises(DamagedLog, match=f"offset {second} does not continue the record before it"):
        reopen(disk)


def test_a_missing_or_exchanged_segment_refuses_to_start(disk: FileDisk) -> None:
    write_one_by_one(disk, 1, 29)
    first, second, third, *_ = segments(disk)
    for lost, successor in ((first, second), (second, third)):
        kept = lost.read_bytes()
        lost.unlink()
        with pytest.raises(DamagedLog, match=f"{lost.name} is missing, {successor.name} comes in its place"):
            reopen(disk, SMALL_BYTES)
        lost.write_bytes(successor.read_bytes())
        with pytest.raises(DamagedLog, match="is missing"):
            reopen(disk, SMALL_BYTES)
        lost.write_bytes(kept)
    assert reopen(disk, SMALL_BYTES).entries == entries(1, 29)
    disk.write_atomically(segment_name(99), first.read_bytes())
    with pytest.raises(DamagedLog, match=f"{segment_name(99)} is {first.name} under another name"):
        reopen(disk, SMALL_BYTES)


def test_a_segment_of_an_older_copy_does_not_continue_the_chain(disk: FileDisk, tmp_path: Path) -> None:
    write_one_by_one(disk, 1, 29)
    with FileDisk(tmp_path / "other" / "raft") as other:
        write_one_by_one(other, 1, 29)
        segments(disk)[1].write_bytes(segments(other)[1].read_bytes())
    with pytest.raises(DamagedLog, match="at offset 0 does not continue the segment before it"):
        reopen(disk, SMALL_BYTES)


def test_a_file_that_is_larger_than_any_segment_is_refused_unread(disk: FileDisk) -> None:
    """Memory is bounded by what a segment may have, not by what a file says it has."""
    write(disk, (None, entries(1, 1)))
    (segment,) = segments(disk)
    os.truncate(segment, 1 << 40)
    with pytest.raises(DamagedLog, match=f"{segment.name} has {1 << 40} bytes, more than any segment"):
        reopen(disk)
    assert SEGMENT_FILE_BYTES_MAX < 1 << 29


def test_a_length_that_cannot_be_is_no_length(disk: FileDisk) -> None:
    write(disk, (None, entries(1, 1)))
    (segment,) = segments(disk)
    exchange(segment, record_starts(segment)[-1], b"QWAL" + b"\xff" * 12)
    assert reopen(disk).cut_bytes == 16


@pytest.mark.parametrize(
    "other", [WalIdentity("cluster-2", "node-1"), WalIdentity("cluster-1", "node-2")], ids=["cluster", "member"]
)
def test_a_log_of_another_cluster_or_member_is_refused_by_name(disk: FileDisk, other: WalIdentity) -> None:
    write(disk, (None, entries(1, 1)))
    with pytest.raises(SettingsError) as refused:
        open_wal(disk, other, RANDOM_BELOW, 4096, BOOTSTRAP)
    for name in (IDENTITY.cluster_id, IDENTITY.member, other.cluster_id, other.member, str(disk.folder)):
        assert name in refused.value.detail


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_another_format_is_refused(disk: FileDisk, version: int) -> None:
    """Whatever else its header has."""
    record, _ = wal_records.encode_record(msgspec.msgpack.encode({"format_version": version, "colour": "red"}), 0, 0)
    disk.write_atomically(segment_name(1), record)
    with pytest.raises(SettingsError, match=f"has format {version}; this version reads 2 only"):
        reopen(disk)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        msgspec.msgpack.encode((None, [(5, 1, 0, b"", 0)])),
        msgspec.msgpack.encode((None, [(0, 1, 0, b"", 0)])),
        msgspec.msgpack.encode((None, [(2, 1, 0, b"", 0), (4, 1, 0, b"", 0)])),
    ],
    ids=["no msgpack", "a gap before its entry", "index 0", "a gap within"],
)
def test_a_whole_record_that_makes_no_sense_refuses_to_start(disk: FileDisk, payload: bytes) -> None:
    write(disk, (None, entries(1, 1)))
    append_record(disk, payload)
    with pytest.raises(DamagedLog, match=r"offset \d+ (makes no sense|has entr)"):
        reopen(disk)


@pytest.mark.parametrize("payload", [b"\xc1", msgspec.msgpack.encode({"format_version": 2})])
def test_a_header_that_makes_no_sense_refuses_to_start(disk: FileDisk, payload: bytes) -> None:
    disk.write_atomically(segment_name(1), wal_records.encode_record(payload, 0, 0)[0])
    with pytest.raises(DamagedLog, match=r"the header of wal-0000000000000001\.log at offset 0 makes no sense"):
        reopen(disk)


@pytest.mark.parametrize(("first", "last"), [(3, 3), (0, 1)])
def test_a_batch_that_would_leave_a_gap_is_refused_before_it_is_written(disk: FileDisk, first: int, last: int) -> None:
    wal, _ = open_(disk)
    wal.append(None, entries(1, 1))
    with pytest.raises(InvariantViolation, match=f"entry {first} cannot come after 1 in a log that stands on 0"):
        wal.append(None, entries(first, last))
    wal.append(None, entries(2, 2))
    assert wal.last_index == 2
    wal.close()
    assert reopen(disk).entries == entries(1, 2)


def test_nothing_is_appended_after_a_failure_or_a_close(disk: FileDisk) -> None:
    """Pitfall (fsyncgate): what the disk has kept is not known."""
    wal, _ = open_(disk, SMALL_BYTES)
    wal.append(None, entries(1, 1))
    file = wal._file
    assert file is not None
    file.close()
    with pytest.raises(DiskFailed):
        wal.append(None, entries(2, 2))
    for batch in (entries(2, 2), [Entry(2, 1, data=b"so large that a new segment would begin" * 100)]):
        with pytest.raises(DiskFailed, match="closed"):
            wal.append(None, batch)
    assert reopen(disk, SMALL_BYTES).entries == entries(1, 1)


def test_a_batch_is_one_append_and_one_sync(disk: FileDisk) -> None:
    recording = CrashingDisk(disk)
    wal, _ = open_(recording, 1 << 20)
    recording.steps.clear()
    wal.append(HardState(3), entries(1, 1000))
    wal.append(None, entries(1001, 1001))
    wal.close()
    assert recording.steps == ["append", "sync"] * 2


def test_what_a_killed_process_left_unsynced_is_synced_before_it_is_believed(disk: FileDisk) -> None:
    """The kernel has what was appended before the kill, and the disk may not: a power loss could still take it away."""
    crashing = CrashingDisk(disk)
    wal, _ = open_(crashing)
    crashing.crash_after(1)
    with pytest.raises(Crash, match="sync"):
        wal.append(HardState(3, "node-2"), entries(1, 2))
    again = CrashingDisk(disk)
    _, found = open_(again)
    assert found.entries == entries(1, 2)
    assert again.steps == ["sync", "sync folder"]

"""The write-ahead log that stands on a snapshot: which entries stay, which segments go, and what a crash leaves."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quorate_core.errors import InvariantViolation
from quorate_raft.core.messages import Entry, HardState, SnapshotMeta
from quorate_raft.runtime.disk import DiskFailed, FileDisk
from quorate_raft.runtime.wal import DamagedLog, Recovered, Wal
from quorate_raft.runtime.wal_recovery import segment_name
from support.raft_disks import Crash, CrashingDisk
from support.raft_wal import (
    BASE,
    SMALL_BYTES,
    append_record,
    base_at,
    entries,
    open_,
    reopen,
    segments,
    write,
    write_one_by_one,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDisk]:
    with FileDisk(tmp_path / "raft") as opened:
        yield opened


def test_segments_that_nobody_needs_are_removed_and_the_rest_is_handed_out(disk: FileDisk) -> None:
    write_one_by_one(disk, 1, 30)
    before = segments(disk)
    wal, _ = open_(disk, SMALL_BYTES)
    wal.rebase(base_at(25), first_index_kept=20)
    wal.append(HardState(2, "node-1", 30), entries(31, 31, term=2))
    wal.close()
    assert 1 < len(segments(disk)) < len(before)
    recovered = reopen(disk, SMALL_BYTES)
    first = recovered.entries[0].index
    assert 15 < first <= 20, "those before are gone, all from 20 on are there"
    assert recovered.entries == entries(first, 30) + entries(31, 31, term=2)
    assert (recovered.base, recovered.hard_state) == (base_at(25), HardState(2, "node-1", 30))
    assert (recovered.last_index, recovered.term_at(25), recovered.term_at(31)) == (31, 1, 2)
    assert recovered.term_at(first - 1) is recovered.term_at(32) is None


def test_a_snapshot_that_the_log_does_not_lead_to_voids_it(disk: FileDisk) -> None:
    """It was installed: the leader's log went elsewhere, or further."""
    for base in (base_at(100, 3), base_at(120, 4)):
        write(disk, (HardState(1), entries(reopen(disk).last_index + 1, reopen(disk).last_index + 5)))
        wal, _ = open_(disk)
        wal.rebase(base, base.index + 1)
        assert (wal.last_index, wal.base) == (base.index, base)
        wal.close()
        assert len(segments(disk)) == 1
        assert reopen(disk) == Recovered(HardState(1), base, [], 0)
    wal, _ = open_(disk)
    with pytest.raises(InvariantViolation, match="entry 122 cannot come after 120"):
        wal.append(None, entries(122, 122))
    with pytest.raises(InvariantViolation, match="entry 120 cannot come after 120"):
        wal.append(None, entries(120, 120))
    wal.append(None, entries(121, 121, term=5))
    wal.close()
    assert reopen(disk).entries == entries(121, 121, term=5)


def test_a_snapshot_of_another_term_voids_the_log_though_it_is_longer(disk: FileDisk) -> None:
    wal, _ = open_(disk)
    wal.append(None, entries(1, 5) + entries(6, 9, term=2))
    wal.append(None, entries(8, 9, term=3))
    wal.rebase(base_at(7, 2), 1)
    assert wal.last_index == 9
    wal.rebase(base_at(8, 4), 9)
    assert wal.last_index == 8
    wal.close()
    assert reopen(disk) == Recovered(HardState(), base_at(8, 4), [], 0)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("index", "term", "is_held"),
    [(2, 1, True), (4, 2, True), (5, 4, True), (5, 2, False), (4, 1, False), (3, 1, False), (6, 2, False)],
)
def test_which_terms_the_log_holds_is_known_through_overwriting_and_a_restart(
    disk: FileDisk, index: int, term: int, is_held: bool, restarts: bool
) -> None:
    wal, _ = open_(disk)
    for batch in (entries(1, 4), entries(3, 6, term=2), entries(5, 5, term=4)):
        wal.append(None, batch)
    if restarts:
        wal.close()
        wal, _ = open_(disk)
    wal.rebase(base_at(index, term), 1)
    assert wal.last_index == (5 if is_held else index)
    wal.close()


def test_the_last_entry_can_be_the_base(disk: FileDisk) -> None:
    write_one_by_one(disk, 1, 10)
    wal, _ = open_(disk, SMALL_BYTES)
    wal.rebase(base_at(10), 11)
    assert wal.last_index == 10
    wal.append(None, entries(11, 11))
    wal.close()
    assert len(segments(disk)) == 1
    assert reopen(disk, SMALL_BYTES) == Recovered(HardState(1, "node-2", 9), base_at(10), entries(11, 11), 0)


def test_a_crash_anywhere_in_between_leaves_the_old_log_or_the_new_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Pitfall (etcd 9808): a snapshot and a log with a gap between them."""
    for base, kept in ((base_at(15), 12), (base_at(50, 4), 51)):
        seen, step, has_crashed = set(), 0, True
        while has_crashed:
            with FileDisk(tmp_path_factory.mktemp("wal")) as disk:
                write_one_by_one(disk, 1, 20)
                old = reopen(disk, SMALL_BYTES)
                has_crashed = _rebase_crashing_at(step, disk, base, kept)
                found = reopen(disk, SMALL_BYTES)
                is_new = found.base == base
                if is_new:
                    expected = entries(found.entries[0].index, 20) if base.index == 15 else []
                    assert found == Recovered(old.hard_state, base, expected, 0)
                    assert base.index != 15 or found.entries[0].index <= 12
                else:
                    assert found == old
                seen.add((is_new, has_crashed))
                write(disk, (None, entries(found.last_index + 1, found.last_index + 1, term=9)))
                assert reopen(disk).last_index == found.last_index + 1
            step += 1
        assert step > 5
        assert seen == {(False, True), (True, True), (True, False)}


def test_what_a_crash_left_of_an_older_beginning_is_removed_at_the_next_start(disk: FileDisk) -> None:
    write_one_by_one(disk, 1, 20)
    assert _rebase_crashing_at(4, disk, base_at(15), 15), "the header is there, and nothing is removed yet"
    before = segments(disk)
    found = reopen(disk, SMALL_BYTES)
    assert len(segments(disk)) < len(before)
    assert reopen(disk, SMALL_BYTES) == found


def test_the_first_segments_that_belong_to_the_log_must_be_there(disk: FileDisk) -> None:
    write_one_by_one(disk, 1, 30)
    wal, _ = open_(disk, SMALL_BYTES)
    wal.rebase(base_at(20), 15)
    wal.close()
    first, second, *_ = segments(disk)
    first.unlink()
    with pytest.raises(DamagedLog, match=f"{first.name} is missing, {second.name} comes in its place"):
        reopen(disk, SMALL_BYTES)


def test_a_base_never_goes_back_and_never_leaves_a_gap(disk: FileDisk) -> None:
    wal, _ = open_(disk)
    wal.append(None, entries(1, 9))
    wal.rebase(base_at(5), 3)
    for base, kept in ((base_at(4), 1), (base_at(7), 9)):
        with pytest.raises(InvariantViolation, match="the log stands on entry 5; it cannot stand on"):
            wal.rebase(base, kept)
    wal.close()
    assert reopen(disk).base == base_at(5)


def test_a_closed_log_has_no_new_base(disk: FileDisk) -> None:
    wal, _ = open_(disk)
    wal.close()
    with pytest.raises(DiskFailed, match="closed"):
        wal.rebase(base_at(5, 2), 6)
    assert len(segments(disk)) == 1


def test_a_gap_between_the_base_and_the_first_entry_refuses_to_start(disk: FileDisk) -> None:
    """Pitfall (etcd 9808)."""
    wal, _ = open_(disk)
    wal.rebase(base_at(5, 2), 6)
    wal.close()
    append_record(disk, msgspec.msgpack.encode((None, entries(8, 9, term=2))))
    with pytest.raises(DamagedLog, match=r"begins with entry 8, and the snapshot before it ends at 5\. Entries"):
        reopen(disk)


@pytest.mark.parametrize(
    ("last", "term", "said"),
    [(4, 1, "it ends at entry 4, .*and has a snapshot up to 5"), (6, 7, "entry 5 is of term 7, and of term 2 in")],
)
def test_a_base_that_its_entries_contradict_refuses_to_start(disk: FileDisk, last: int, term: int, said: str) -> None:
    wal, _ = open_(disk)
    wal.rebase(base_at(5, 2), 6)
    wal.close()
    append_record(disk, msgspec.msgpack.encode((None, entries(3, last, term=term))))
    with pytest.raises(DamagedLog, match=said):
        reopen(disk)


def test_entries_that_were_overwritten_from_before_the_first_that_is_left(disk: FileDisk) -> None:
    """Two leaders in turn cut the log, the second one further back than where the segment that is left begins."""
    write(disk, (None, entries(1, 9)))
    write(disk, (None, entries(6, 8, term=2)), segment_bytes_max=1)
    write(disk, (None, entries(4, 12, term=3)))
    wal, _ = open_(disk, 4096)
    wal.rebase(base_at(11, 3), 10)
    wal.close()
    assert [path.name for path in segments(disk)] == [segment_name(2), segment_name(3)]
    assert reopen(disk) == Recovered(HardState(), base_at(11, 3), entries(4, 12, term=3), 0)


def _rebase_crashing_at(step: int, disk: FileDisk, base: SnapshotMeta, first_index_kept: int) -> bool:
    """Whether the crash came before the end."""
    crashing = CrashingDisk(disk)
    wal, _ = open_(crashing, SMALL_BYTES)
    crashing.crash_after(step)
    try:
        wal.rebase(base, first_index_kept)
    except Crash:
        return True
    finally:
        wal.close()
    return False


batches = st.lists(
    st.tuples(
        st.none() | st.builds(HardState, st.integers(0, 9), st.sampled_from(["", "node-2"]), st.integers(0, 99)),
        st.integers(0, 5),
        st.integers(0, 4),
        st.binary(max_size=40),
        st.none() | st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()),
    ),
    max_size=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=batches, segment_bytes_max=st.integers(1, 900), reopen_every=st.integers(1, 4))
def test_any_history_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[tuple[HardState | None, int, int, bytes, tuple[int, int, bool] | None]],
    segment_bytes_max: int,
    reopen_every: int,
) -> None:
    """Against a model: overwritten suffixes, empty batches, segments of any size, new bases and installed ones,
    restarts in between."""
    hard_state, base, log = HardState(), BASE, list[Entry]()
    """`log` is what came after `base`; what comes back may begin earlier."""
    with FileDisk(tmp_path_factory.mktemp("wal")) as disk:
        wal, _ = open_(disk, segment_bytes_max)
        for number, (changed, count, back, data, rebased) in enumerate(batches):
            first = max(base.index + 1, base.index + len(log) + 1 - back)
            batch = [Entry(first + offset, number, data=data) for offset in range(count)]
            wal.append(changed, batch)
            hard_state = changed or hard_state
            if batch:
                log[first - base.index - 1 :] = batch
            if rebased is not None:
                base, log = _rebased(wal, base, log, *rebased)
            if number % reopen_every == 0:
                wal.close()
                wal, recovered = open_(disk, segment_bytes_max)
                _assert_model(recovered, hard_state, base, log)
        wal.close()
        _assert_model(reopen(disk, segment_bytes_max), hard_state, base, log)


def _rebased(
    wal: Wal, base: SnapshotMeta, log: list[Entry], ahead: int, trailing: int, is_installed: bool
) -> tuple[SnapshotMeta, list[Entry]]:
    if is_installed:
        installed = base_at(base.index + len(log) + 1 + ahead, 99)
        wal.rebase(installed, installed.index + 1)
        return installed, []
    ahead = min(ahead, len(log))
    taken = base_at(log[ahead - 1].index, log[ahead - 1].term) if ahead else base
    wal.rebase(taken, max(1, taken.index + 1 - trailing))
    return taken, log[ahead:]


def _assert_model(recovered: Recovered, hard_state: HardState, base: SnapshotMeta, log: list[Entry]) -> None:
    after = [entry for entry in recovered.entries if entry.index > base.index]
    assert (recovered.hard_state, recovered.base, after, recovered.cut_bytes) == (hard_state, base, log, 0)

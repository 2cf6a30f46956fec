"""Snapshots of the state under what can go wrong: work that goes on meanwhile, kill -9, disks and files that refuse."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from quorate_core.errors import InvariantViolation
from quorate_store import database, retirement, state
from quorate_store.commands import Compact
from quorate_store.database import StateUnusable
from quorate_store.model import RANGE_ALL, DeleteOp, PutOp, RangeOp
from quorate_store.state import StateMachine
from support.store_model import apply_one, entries_of, observable

MIB = 1024 * 1024
EVERYTHING = RangeOp(b"\0", RANGE_ALL)


def opened(folder: Path, map_bytes: int = 64 * MIB) -> StateMachine:
    return StateMachine(folder, map_bytes=map_bytes)


def put(machine: StateMachine, count: int, value: bytes = b"v") -> None:
    machine.apply(entries_of([PutOp(b"k%06d" % number, value) for number in range(count)], machine.applied_index + 1))


@pytest.fixture
def ahead(tmp_path: Path) -> Iterator[StateMachine]:
    machine = opened(tmp_path / "ahead")
    put(machine, 300)
    yield machine
    machine.close()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[StateMachine]:
    machine = opened(tmp_path / "behind")
    put(machine, 10)
    yield machine
    machine.close()


@pytest.fixture
def snapshot(ahead: StateMachine, tmp_path: Path) -> Path:
    path = tmp_path / "snapshot"
    ahead.save_snapshot(path)
    return path


@contextlib.contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to write beyond this in any file: a disk without room, for whoever runs the tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_copies_made_while_entries_are_applied_are_each_of_one_applied_index(tmp_path: Path) -> None:
    """Pitfall (etcd 13766): an applied index that is not that of the data."""
    machine = opened(tmp_path / "busy")
    enough = threading.Event()

    def copy_again_and_again() -> list[tuple[Path, tuple[int, int]]]:
        try:
            paths = [tmp_path / f"copy-{number}" for number in range(12)]
            return [(path, machine.save_snapshot(path)) for path in paths]
        finally:
            enough.set()

    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(copy_again_and_again)
        turn = 0
        while not enough.is_set():
            turn += 1
            machine.apply(entries_of([PutOp(b"k%d" % (turn % 50), b"%d" % turn)] * 3, machine.applied_index + 1))
            if turn % 10 == 0:
                apply_one(machine, Compact(machine.revision - 5))
                machine.sweep(100)
        copies = copying.result()
    for path, applied in copies:
        restored = opened(tmp_path / f"of-{path.name}")
        if applied[0]:
            restored.restore_snapshot(path)()
        assert (restored.applied_index, restored.applied_term) == applied
        # Of 31 entries, 30 are puts, which make a revision each, and the last is a compaction.
        assert restored.revision == 1 + applied[0] // 31 * 30 + applied[0] % 31
        restored.close()
    assert len({applied for _, applied in copies}) > 1
    machine.close()


def test_rows_and_counters_that_are_not_of_one_transaction_are_refused_at_the_start(tmp_path: Path) -> None:
    """Pitfall (etcd 13766): going on from them would be to diverge, unseen."""
    machine = opened(tmp_path / "state")
    put(machine, 5)
    machine._meta.revision -= 1
    with machine._database.write() as txn:
        machine._database.save_meta(txn, machine._meta)
    machine.close()
    with pytest.raises(InvariantViolation, match="rows end with revision 6, and the state says that it is at 5"):
        opened(tmp_path / "state")


def test_the_size_that_is_told_is_that_of_the_file(tmp_path: Path) -> None:
    machine = opened(tmp_path / "state")
    put(machine, 2_000, b"x" * 300)
    apply_one(machine, PutOp(b"large", b"x" * MIB))
    for number in range(20):
        apply_one(machine, PutOp(b"large", b"x" * (300_000 + number)))
    apply_one(machine, Compact(machine.revision))
    while not machine.is_swept:
        machine.sweep(64)
    machine.save_snapshot(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == machine.size_bytes
    assert machine.size_bytes < machine.used_bytes / 2  # pages that LMDB has free are not copied
    machine.close()


_RESTORER = """
import sys
from pathlib import Path
from quorate_store.state import StateMachine
machine = StateMachine(Path(sys.argv[1]), map_bytes=64 * 1024 * 1024)
print(machine.applied_index, flush=True)
swap = machine.restore_snapshot(Path(sys.argv[2]))
print("staged", flush=True)
swap()
print("swapped", flush=True)
while not machine.is_swept:
    machine.sweep(1)
print("given back", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("lines", [1, 2, 3, 4])
def test_kill_9_at_any_moment_of_a_restore_leaves_the_old_state_or_the_new_one(
    ahead: StateMachine, snapshot: Path, tmp_path: Path, lines: int
) -> None:
    behind = opened(tmp_path / "behind")
    put(behind, 10)
    old, new = behind.state_hash(), ahead.state_hash()
    behind.close()
    restorer = subprocess.Popen(
        [sys.executable, "-c", _RESTORER, str(tmp_path / "behind"), str(snapshot)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with restorer:
        assert restorer.stdout is not None
        for _ in range(lines):
            restorer.stdout.readline()
        os.kill(restorer.pid, signal.SIGKILL)
        restorer.wait(20)
    again = opened(tmp_path / "behind")
    assert again.state_hash() in ((old, new) if lines <= 2 else (new,))
    assert len(list((tmp_path / "behind").glob("generation-*"))) == 1
    if again.applied_index < ahead.applied_index:
        again.restore_snapshot(snapshot)()
    assert again.state_hash() == new
    again.close()


def test_a_disk_that_refuses_the_copy_leaves_nothing_behind_and_work_goes_on(
    ahead: StateMachine, tmp_path: Path
) -> None:
    path = tmp_path / "refused"
    with files_limited_to(4 * 4096), pytest.raises(StateUnusable, match=rf"cannot copy to {path} the state in"):
        ahead.save_snapshot(path)
    assert not path.exists()
    put(ahead, 5)
    ahead.save_snapshot(path)


def test_a_full_disk_is_named_when_a_copy_meets_it(ahead: StateMachine) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        pytest.raises(StateUnusable, match="the disk is full"),
        ahead._database.failing("copy"),
    ):
        ahead._database.copy_into(full.fileno())


def test_a_path_that_is_taken_is_refused_and_left_as_it_is(ahead: StateMachine, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_bytes(b"somebody's")
    with pytest.raises(StateUnusable, match="File exists"):
        ahead.save_snapshot(path)
    assert path.read_bytes() == b"somebody's"


def test_a_disk_that_refuses_a_restore_leaves_the_state_as_it_was(
    ahead: StateMachine, behind: StateMachine, snapshot: Path, tmp_path: Path
) -> None:
    before = behind.state_hash()
    with files_limited_to(4 * 4096), pytest.raises(StateUnusable, match="cannot copy a snapshot to"):
        behind.restore_snapshot(snapshot)
    assert behind.state_hash() == before
    assert len(list((tmp_path / "behind").glob("generation-*"))) == 1
    behind.restore_snapshot(snapshot)()
    assert behind.state_hash() == ahead.state_hash()


def test_a_snapshot_that_is_not_there_is_refused(behind: StateMachine, tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match="No such file"):
        behind.restore_snapshot(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused_before_it_is_read(behind: StateMachine, snapshot: Path, kept: float) -> None:
    """LMDB itself would read past the end of the file, which is a SIGBUS."""
    whole_bytes = snapshot.stat().st_size
    os.truncate(snapshot, int(whole_bytes * kept))
    with pytest.raises(StateUnusable, match=f"and should have {whole_bytes}"):
        behind.restore_snapshot(snapshot)
    put(behind, 1)


def test_a_snapshot_that_is_larger_than_the_map_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source, small = opened(tmp_path / "source"), opened(tmp_path / "small", map_bytes=MIB)
    put(source, 5_000, b"x" * 300)
    source.save_snapshot(tmp_path / "snapshot")
    with pytest.raises(StateUnusable, match=r"over this member's map of 1048576; give it a larger one"):
        small.restore_snapshot(tmp_path / "snapshot")
    put(small, 1)
    source.close()
    small.close()


def test_a_snapshot_of_another_format_is_refused(
    behind: StateMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(database, "FORMAT", 2)
        source = opened(tmp_path / "source")
        put(source, 50)
        source.save_snapshot(tmp_path / "snapshot")
        source.close()
    with pytest.raises(StateUnusable, match="a format that this release does not know"):
        behind.restore_snapshot(tmp_path / "snapshot")


def test_a_state_that_has_gone_on_is_not_replaced(behind: StateMachine, snapshot: Path) -> None:
    swap = behind.restore_snapshot(snapshot)
    put(behind, 400)
    with pytest.raises(InvariantViolation, match="gone on to 410 meanwhile"):
        swap()


def test_a_restore_that_was_not_wanted_gives_way_to_the_next(
    ahead: StateMachine, behind: StateMachine, snapshot: Path, tmp_path: Path
) -> None:
    behind.restore_snapshot(snapshot)
    put(ahead, 7)
    ahead.save_snapshot(tmp_path / "later")
    behind.restore_snapshot(tmp_path / "later")()
    assert behind.state_hash() == ahead.state_hash()
    while not behind.is_swept:
        behind.sweep(64)
    assert len(list((tmp_path / "behind").glob("generation-*"))) == 1


def test_a_replaced_state_is_given_back_in_slices(
    ahead: StateMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retirement, "TRUNCATE_SLICE_BYTES", 64 * 1024)
    large = opened(tmp_path / "large")
    put(large, 290, b"x" * 2_000)
    put(ahead, 10)
    ahead.save_snapshot(tmp_path / "snapshot")
    before = large._database
    large.restore_snapshot(tmp_path / "snapshot")()
    [retired] = large._retired
    sizes = []
    while not large.is_swept:
        large.sweep(100)
        sizes.append(len(retired._state.mvcc.index))
    assert sizes[:3] == [190, 90, 0]
    assert len(sizes) > 3 + 290 * 2_000 // (64 * 1024)
    assert before._is_closed
    assert [path.name for path in (tmp_path / "large").glob("generation-*")] == ["generation-1"]
    put(large, 5)
    large.close()


def test_a_replaced_state_that_is_being_copied_is_given_back_when_the_copy_is_made(
    ahead: StateMachine, behind: StateMachine, snapshot: Path
) -> None:
    behind.restore_snapshot(snapshot)()
    [retired] = behind._retired
    with retired._state.database._copying:  # as a copy holds it
        while not behind.is_swept:
            behind.sweep(100)
        assert list(behind._retired) == [retired]
        put(behind, 1)
    assert not behind.is_swept
    while not behind.is_swept:
        behind.sweep(100)
    assert not behind._retired


def test_a_state_that_was_replaced_before_it_could_be_copied_says_so(
    behind: StateMachine, snapshot: Path, tmp_path: Path
) -> None:
    replaced = behind._database
    behind.restore_snapshot(snapshot)()
    while not behind.is_swept:
        behind.sweep(100)
    with pytest.raises(StateUnusable, match="replaced, before it could be copied"):
        replaced.copy(tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_states_that_nobody_gives_back_do_not_pile_up(
    ahead: StateMachine, behind: StateMachine, tmp_path: Path
) -> None:
    for number in range(state.RETIRED_MAX + 3):
        put(ahead, 1)
        ahead.save_snapshot(tmp_path / f"snapshot-{number}")
        behind.restore_snapshot(tmp_path / f"snapshot-{number}")()
    assert len(behind._retired) == state.RETIRED_MAX
    assert len(list((tmp_path / "behind").glob("generation-*"))) == state.RETIRED_MAX + 1
    assert behind.state_hash() == ahead.state_hash()


def test_a_closed_state_is_whole_after_a_restart_of_the_machine_though_it_was_restored(
    ahead: StateMachine, snapshot: Path, tmp_path: Path
) -> None:
    machine = StateMachine(tmp_path / "state", map_bytes=64 * MIB, boot_id="boot-1")
    machine.restore_snapshot(snapshot)()
    machine.close()
    again = StateMachine(tmp_path / "state", map_bytes=64 * MIB, boot_id="boot-2")
    assert again.state_hash() == ahead.state_hash()
    again.close()


def test_a_failed_machine_is_neither_copied_nor_restored(behind: StateMachine, snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(InvariantViolation):
        behind.apply(entries_of([PutOp(b"k", b"")], first_index=99))
    for attempt in (lambda: behind.save_snapshot(tmp_path / "copy"), lambda: behind.restore_snapshot(snapshot)):
        with pytest.raises(InvariantViolation, match="reopened"):
            attempt()


def test_a_long_read_goes_on_in_the_state_that_replaces_its_own(ahead: StateMachine, tmp_path: Path) -> None:
    """What a revision holds is the same in both."""
    reader = opened(tmp_path / "reader")
    put(reader, 300)
    scan = reader.scan(EVERYTHING)
    expected = ahead.range(EVERYTHING)
    assert not scan.step(100)
    for number in range(0, 300, 3):
        apply_one(ahead, DeleteOp(b"k%06d" % number))
    put(ahead, 400, b"changed")
    ahead.save_snapshot(tmp_path / "snapshot")
    reader.restore_snapshot(tmp_path / "snapshot")()
    while not scan.step(100):
        pass
    assert scan.result() == expected
    assert observable(reader) == observable(ahead)
    reader.close()

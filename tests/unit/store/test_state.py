"""The state machine under what can go wrong: kill -9, doubtful files, full stores and maps, wrong entries."""

import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from quorate_core.errors import (
    Compacted,
    Conflict,
    InvalidRequest,
    InvariantViolation,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    SettingsError,
)
from quorate_raft.core.messages import Entry, EntryKind
from quorate_store import database, generations
from quorate_store.commands import (
    COMMAND_VERSION,
    Compact,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseIncarnation,
    LeaseRemaining,
    LeaseRevoke,
    SetQuota,
    decode_command,
    encode_command,
)
from quorate_store.database import StateUnusable
from quorate_store.machine_boot import MARKER_NAME
from quorate_store.model import (
    RANGE_ALL,
    REQUEST_BYTES_MAX,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
)
from quorate_store.mvcc import row_cost_bytes
from quorate_store.read_budget import TXN_BYTES_READ_MAX
from quorate_store.state import Applied, MapFull, StateMachine
from structlog.testing import capture_logs
from support.store_model import apply_one, entries_of, observable

MIB = 1024 * 1024


def opened(folder: Path, **options: object) -> StateMachine:
    return StateMachine(folder / "state", **{"map_bytes": 64 * MIB, **options})  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    made = opened(tmp_path)
    yield made
    made.close()


def test_a_new_store_is_empty_at_revision_one(machine: StateMachine) -> None:
    assert (machine.revision, machine.compact_revision, machine.applied_index) == (1, 0, 0)
    assert machine.range(RangeOp(b"\0", RANGE_ALL)).count == 0
    assert machine.logical_bytes == 0


def test_entries_without_a_command_are_applied_too(machine: StateMachine) -> None:
    put = encode_command(PutOp(b"k", b"v"))
    results = machine.apply([Entry(1, 3, EntryKind.NO_OP), Entry(2, 3, data=put), Entry(3, 4, EntryKind.NO_OP)])
    assert list(results) == [None, PutResult(2), None]
    assert (machine.applied_index, machine.applied_term) == (3, 4)


def test_a_command_that_deserves_an_error_is_applied_and_changes_nothing(machine: StateMachine) -> None:
    [result] = machine.apply(entries_of([PutOp(b"k", b"v", lease=9)]))
    assert isinstance(result, NotFound)
    assert (machine.applied_index, machine.revision) == (1, 1)


def test_a_gap_between_entries_is_terminal(machine: StateMachine) -> None:
    with pytest.raises(InvariantViolation, match="entry 2 was handed over; 0"):
        machine.apply(entries_of([PutOp(b"k", b"v")], first_index=2))
    with pytest.raises(InvariantViolation, match="reopened"):
        machine.apply(entries_of([PutOp(b"k", b"v")]))
    with pytest.raises(InvariantViolation, match="reopened"):
        machine.range(RangeOp(b"k"))


@pytest.mark.parametrize("data", [b"", bytes([COMMAND_VERSION + 1]), bytes([COMMAND_VERSION]) + b"\x91\xa3odd"])
def test_a_command_that_cannot_be_read_is_terminal_and_not_skipped(tmp_path: Path, data: bytes) -> None:
    """To skip it would be to diverge from the members that can read it."""
    machine = opened(tmp_path)
    machine.apply(entries_of([PutOp(b"k", b"v")]))
    with pytest.raises(InvariantViolation):
        machine.apply([*entries_of([PutOp(b"k", b"w")], first_index=2), Entry(3, 1, data=data)])
    machine.close()
    reopened = opened(tmp_path)
    assert reopened.applied_index == 1  # nothing of the batch was kept
    assert reopened.range(RangeOp(b"k")).kvs[0].value == b"v"
    reopened.close()


def test_every_command_comes_back_from_its_bytes() -> None:
    commands = [
        PutOp(b"k", b"\x00\xff", 2**63 - 1, True),
        DeleteOp(b"k", RANGE_ALL, True),
        TxnOp((), (PutOp(b"k", b""), TxnOp((), (DeleteOp(b"l"),))), (RangeOp(b"k", b"", 1, 2, True, True),)),
        Compact(2**40),
        LeaseGrant(1, 60),
        LeaseRevoke(1),
        LeaseExpire(3, (LeaseIncarnation(1, 2),)),
        LeaseCheckpoint(3, (LeaseRemaining(1, 2, 3_000),)),
        SetQuota(5),
    ]
    assert [decode_command(encode_command(command)) for command in commands] == commands


def test_a_command_over_the_limit_is_refused_before_it_is_proposed() -> None:
    with pytest.raises(PayloadTooLarge):
        encode_command(PutOp(b"k", b"x" * REQUEST_BYTES_MAX))


_WRITER = """
import sys
from pathlib import Path
from quorate_raft.core.messages import Entry
from quorate_store.commands import encode_command
from quorate_store.model import PutOp
from quorate_store.state import StateMachine
machine = StateMachine(Path(sys.argv[1]) / "state", map_bytes=64 * 1024 * 1024)
while True:
    first = machine.applied_index + 1
    size = first % 7 + 1
    machine.apply([
        Entry(index, 1, data=encode_command(PutOp(b"k%d" % (index % 3), b"%d" % index)))
        for index in range(first, first + size)
    ])
    print(machine.applied_index, flush=True)
"""


def test_kill_9_in_the_middle_of_applying_loses_no_batch_and_tears_none(tmp_path: Path) -> None:
    """Pitfall (etcd 13766): the applied index is exactly that of the data, whenever the process dies."""
    before = 0
    for batches in (3, 200, 37):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        with writer.stdout:
            for _ in range(batches):
                reported = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(20)
        machine = opened(tmp_path)
        applied = machine.applied_index
        assert applied >= reported > before
        assert machine.revision == applied + 1
        newest = {kv.key: int(kv.value) for kv in machine.range(RangeOp(b"\0", RANGE_ALL)).kvs}
        expected = {b"k%d" % (index % 3): index for index in range(max(1, applied - 2), applied + 1)}
        assert newest == expected
        before = applied
        machine._database.abandon()


def _closed_badly(folder: Path, boot_id: str) -> None:
    machine = opened(folder, boot_id=boot_id)
    machine.apply(entries_of([PutOp(b"k", b"v")], machine.applied_index + 1))
    machine._database.abandon()


def test_files_of_a_boot_that_ended_without_a_close_are_discarded(tmp_path: Path) -> None:
    _closed_badly(tmp_path, "boot-1")
    machine = opened(tmp_path, boot_id="boot-2")
    assert (machine.applied_index, machine.revision) == (0, 1)
    machine.apply(entries_of([PutOp(b"k", b"again")]))
    assert machine.range(RangeOp(b"k")).kvs[0].value == b"again"
    machine.close()


def test_files_of_this_boot_are_kept_though_the_process_was_killed(tmp_path: Path) -> None:
    _closed_badly(tmp_path, "boot-1")
    machine = opened(tmp_path, boot_id="boot-1")
    assert machine.range(RangeOp(b"k")).kvs[0].value == b"v"
    machine.close()


def test_files_that_were_closed_are_kept_over_a_boot_and_doubted_once_opened_again(tmp_path: Path) -> None:
    machine = opened(tmp_path, boot_id="boot-1")
    machine.apply(entries_of([PutOp(b"k", b"v")]))
    machine.close()
    machine = opened(tmp_path, boot_id="boot-2")
    assert machine.applied_index == 1
    machine._database.abandon()
    machine = opened(tmp_path, boot_id="boot-3")
    assert machine.applied_index == 0
    machine.close()


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_files_without_a_readable_marker_are_discarded(tmp_path: Path, damage: bytes | None) -> None:
    _closed_badly(tmp_path, "boot-1")
    marker = tmp_path / "state" / MARKER_NAME
    if damage is None:
        marker.unlink()
    else:
        marker.write_bytes(damage)
    machine = opened(tmp_path, boot_id="boot-1")
    assert machine.applied_index == 0
    machine.close()


def test_a_marker_that_cannot_be_written_fails_the_start_naming_the_folder_and_the_reason(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "state" / f"{MARKER_NAME}.new").mkdir()
    with pytest.raises(StateUnusable) as refusal:
        opened(tmp_path)
    assert refusal.value.detail.startswith(f"cannot open the state in {tmp_path / 'state'}: Is a directory (")
    assert refusal.value.detail.endswith(f"{MARKER_NAME}.new)")


def test_a_marker_that_cannot_be_written_at_the_end_only_makes_the_files_doubtful(tmp_path: Path) -> None:
    machine = opened(tmp_path, boot_id="boot-1")
    apply_one(machine, PutOp(b"k", b"v"))
    aside = tmp_path / "state" / f"{MARKER_NAME}.new"
    aside.mkdir()
    with capture_logs() as logs:
        machine.close()
    assert [entry["event"] for entry in logs] == ["state_not_marked_as_whole"]
    assert str(tmp_path / "state") in logs[0]["reason"]
    aside.rmdir()
    again = opened(tmp_path, boot_id="boot-1")
    assert again.applied_index == 1
    again.close()


def test_a_full_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(generations, "write_marker", full)
    with pytest.raises(StateUnusable, match="the disk is full"):
        opened(tmp_path)


def test_files_that_lmdb_cannot_read_are_named_with_the_way_out(tmp_path: Path) -> None:
    opened(tmp_path).close()
    next((tmp_path / "state").glob("*/data.mdb")).write_bytes(b"no pages of lmdb" * 4096)
    with pytest.raises(StateUnusable, match=r"remove the folder, and the newest snapshot and the log rebuild it"):
        opened(tmp_path)


def test_on_a_machine_without_boot_ids_only_a_clean_close_is_believed(tmp_path: Path) -> None:
    _closed_badly(tmp_path, "")
    machine = opened(tmp_path, boot_id="")
    assert machine.applied_index == 0
    machine.apply(entries_of([PutOp(b"k", b"v")]))
    machine.close()
    machine = opened(tmp_path, boot_id="")
    assert machine.applied_index == 1
    machine.close()


def test_a_state_of_another_format_is_refused_by_name(
    tmp_path: Path, machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = StateMachine(tmp_path / "other", map_bytes=MIB)
    other.apply(entries_of([PutOp(b"k", b"v")]))
    other.close()
    monkeypatch.setattr(database, "FORMAT", 2)
    with pytest.raises(SettingsError, match="format 1"):
        StateMachine(tmp_path / "other", map_bytes=MIB)


def test_a_full_store_refuses_puts_and_grants_and_does_the_rest(machine: StateMachine) -> None:
    apply_one(machine, LeaseGrant(1, 60))
    apply_one(machine, PutOp(b"leased", b"x" * 4_000, lease=1))
    apply_one(machine, PutOp(b"a", b"x" * 4_000))
    apply_one(machine, SetQuota(machine.logical_bytes))
    before = observable(machine)["content"]
    assert isinstance(apply_one(machine, PutOp(b"b", b"")), QuotaExceeded)
    assert isinstance(apply_one(machine, TxnOp((), (DeleteOp(b"a"), PutOp(b"b", b"")))), QuotaExceeded)
    assert isinstance(apply_one(machine, LeaseGrant(2, 60)), QuotaExceeded)
    assert isinstance(apply_one(machine, LeaseGrant(1, 60)), Conflict)
    assert observable(machine)["content"] == before
    assert machine.range(RangeOp(b"a")).count == 1
    assert apply_one(machine, DeleteOp(b"a")).deleted == 1
    assert apply_one(machine, LeaseRevoke(1)) == machine.revision
    assert apply_one(machine, Compact(machine.revision)) is None
    assert apply_one(machine, PutOp(b"b", b"x" * 4_000)) == PutResult(machine.revision)


def test_overwriting_fills_the_store_until_history_is_compacted(machine: StateMachine) -> None:
    apply_one(machine, SetQuota(100_000))
    writes = 0
    while not isinstance(apply_one(machine, PutOp(b"k", b"x" * 1_000)), QuotaExceeded):
        writes += 1
    assert 50 < writes < 100
    apply_one(machine, Compact(machine.revision))
    assert machine.logical_bytes < 1_500
    assert apply_one(machine, PutOp(b"k", b"")) == PutResult(machine.revision)


def test_the_byte_count_is_that_of_the_rows_once_they_are_swept(machine: StateMachine) -> None:
    for number in range(60):
        apply_one(machine, PutOp(b"k%d" % (number % 5), b"x" * (number * 97 % 5_000)))
        if number % 7 == 0:
            apply_one(machine, DeleteOp(b"k%d" % (number % 5)))
        if number % 20 == 19:
            apply_one(machine, Compact(machine.revision - 3))
            while not machine.is_swept:
                machine.sweep(3)
            with machine._database.read() as txn:
                rows = [len(database._encoder.encode(row)) for _, _, row in machine._database.rows_from(txn, 0)]
            assert machine.logical_bytes == sum(row_cost_bytes(size) for size in rows)


def test_a_full_map_is_terminal_and_loses_nothing(tmp_path: Path) -> None:
    machine = opened(tmp_path, map_bytes=MIB)
    value = b"x" * 1_000
    entries = entries_of([PutOp(b"k", value)] * 2_000)
    with pytest.raises(MapFull):
        [machine.apply([entry]) for entry in entries]
    with pytest.raises(InvariantViolation):
        apply_one(machine, PutOp(b"k", value))
    machine.close()
    larger = opened(tmp_path, map_bytes=8 * MIB)
    assert larger.revision == larger.applied_index + 1 > 100
    assert larger.range(RangeOp(b"k")).kvs[0].version == larger.applied_index
    apply_one(larger, PutOp(b"k", value))
    larger.close()


def test_leases_and_their_keys_survive_a_restart(tmp_path: Path) -> None:
    machine = opened(tmp_path)
    apply_one(machine, LeaseGrant(1, 60))
    apply_one(machine, LeaseGrant(2, 60))
    for key in (b"a", b"b", b"c"):
        apply_one(machine, PutOp(key, b"", lease=1))
    apply_one(machine, PutOp(b"b", b"", lease=2))
    apply_one(machine, PutOp(b"c", b""))
    apply_one(machine, LeaseCheckpoint(1, (LeaseRemaining(1, 1, 5_000),)))
    machine.close()
    machine = opened(tmp_path)
    assert [machine.leases.keys(lease) for lease in (1, 2)] == [[b"a"], [b"b"]]
    row = machine.leases.get(1)
    assert row is not None
    assert (row.ttl_s, row.generation, row.remaining_ms) == (60, 1, 5_000)
    machine.close()


def test_a_checkpoint_or_an_end_from_another_term_or_for_another_grant_is_void(machine: StateMachine) -> None:
    apply_one(machine, LeaseGrant(1, 60))
    apply_one(machine, LeaseRevoke(1))
    apply_one(machine, LeaseGrant(1, 60))
    generation = machine.applied_index
    apply_one(machine, PutOp(b"k", b"", lease=1))
    before = observable(machine)
    for command in (
        LeaseExpire(2, (LeaseIncarnation(1, generation),)),
        LeaseExpire(1, (LeaseIncarnation(1, 1), LeaseIncarnation(5, 1))),
        LeaseCheckpoint(2, (LeaseRemaining(1, generation, 5),)),
        LeaseCheckpoint(1, (LeaseRemaining(1, 1, 5),)),
    ):
        assert apply_one(machine, command) is None
    after = observable(machine)
    assert {**after, "applied": None} == {**before, "applied": None}
    assert apply_one(machine, LeaseExpire(1, (LeaseIncarnation(1, generation),))) is None
    assert machine.range(RangeOp(b"k")).count == 0


def test_those_who_listen_hear_of_a_batch_once_it_is_in(machine: StateMachine) -> None:
    heard: list[tuple[int, int, list[bytes]]] = []

    def listen(applied: Applied) -> None:
        keys = [event.kv.key for _, events in applied.changes for event in events]
        heard.append((applied.revision, machine.range(RangeOp(b"\0", RANGE_ALL)).count, keys))

    machine.add_applied_listener(listen)
    machine.apply(entries_of([PutOp(b"a", b""), PutOp(b"b", b""), Compact(99)]))
    machine.apply(entries_of([LeaseGrant(1, 60)], first_index=4))
    assert heard == [(3, 2, [b"a", b"b"]), (3, 2, [])]


def test_refusals_that_are_kept_take_no_reader_s_place(machine: StateMachine) -> None:
    """LMDB has room for 126 readers, and a traceback keeps its frames, with the transaction in them."""
    for _ in range(10):
        apply_one(machine, PutOp(b"k", b"v"))
    apply_one(machine, Compact(8))
    kept: list[Compacted] = []
    for _ in range(200):
        with pytest.raises(Compacted) as caught:
            machine.events(2, b"a", b"z", previous=False, rows_max=10)
        kept.append(caught.value)
        with pytest.raises(Compacted) as caught:
            machine.read_txn(TxnOp((), (RangeOp(b"k", revision=2),)))
        kept.append(caught.value)
    assert machine.range(RangeOp(b"k")).count == 1
    assert len(kept) == 400


MANY = TXN_BYTES_READ_MAX // (2 * MIB) + 1
"""Keys of a mebibyte each: what reads all of them twice is over the limit."""


def _fill(machine: StateMachine) -> None:
    for number in range(MANY):
        apply_one(machine, PutOp(b"%d" % number, bytes(MIB)))


def _reading_much() -> TxnOp:
    everything = RangeOp(b"\0", RANGE_ALL)
    return TxnOp((), (everything, everything, PutOp(b"new", b"")))


def test_a_transaction_that_reads_too_much_is_refused_before_it_changes_anything(machine: StateMachine) -> None:
    _fill(machine)
    revision = machine.revision
    refusal = apply_one(machine, _reading_much())
    assert isinstance(refusal, InvalidRequest)
    assert machine.revision == revision
    with pytest.raises(InvalidRequest):
        machine.read_txn(TxnOp((), (RangeOp(b"\0", RANGE_ALL),) * 2))
    one = machine.read_txn(TxnOp((), (RangeOp(b"\0", RANGE_ALL), RangeOp(b"\0", RANGE_ALL, keys_only=True))))
    assert [len(result.kvs) for result in one.results if isinstance(result, RangeResult)] == [MANY] * 2


def test_an_old_transaction_in_the_log_is_applied_as_it_was_whatever_it_reads(machine: StateMachine) -> None:
    _fill(machine)
    written_before = bytes([2]) + encode_command(_reading_much())[1:]
    [result] = machine.apply([Entry(machine.applied_index + 1, 1, EntryKind.NORMAL, written_before)])
    assert isinstance(result, TxnResult)
    assert machine.range(RangeOp(b"new")).count == 1


def test_comparisons_are_counted_too(machine: StateMachine) -> None:
    _fill(machine)
    compare = Compare(b"\0", CompareTarget.VERSION, CompareResult.GREATER, 0, RANGE_ALL)
    refusal = apply_one(machine, TxnOp((compare, compare), (PutOp(b"new", b""),)))
    assert isinstance(refusal, InvalidRequest)
    unlike = Compare(b"\0", CompareTarget.VERSION, CompareResult.GREATER, 1, RANGE_ALL)
    result = apply_one(machine, TxnOp((unlike,) * 100, (), (PutOp(b"new", b""),)))
    assert isinstance(result, TxnResult), "what comes after the first comparison that fails is not read"


def test_the_garbage_collector_runs_again_after_a_load_and_after_one_that_failed(
    machine: StateMachine, tmp_path: Path
) -> None:
    apply_one(machine, PutOp(b"k", b"v"))
    assert gc.isenabled()
    machine._meta.revision += 1
    machine.sweep(1)  # writes the counters, which the rows do not go with any more
    machine.abandon()
    with pytest.raises(InvariantViolation, match="the rows end with revision 2"):
        opened(tmp_path)
    assert gc.isenabled()

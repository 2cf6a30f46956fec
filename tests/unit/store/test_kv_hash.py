"""The hash of key revisions: equal on members that have applied the same, however each keeps house, on no others."""

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quorate_core.errors import Compacted, FutureRevision, InvalidRequest, TooManyRequests, Unavailable
from quorate_raft.core.messages import Entry
from quorate_store import database as database_module
from quorate_store import raft_engine
from quorate_store.commands import Command, Compact, encode_command
from quorate_store.model import DeleteOp, PutOp, StateHash, TxnOp
from quorate_store.pacing import SLICE_ITEMS
from quorate_store.state import StateMachine
from quorate_store.state_hash import hash_of_revisions
from support.store_local import local_store_and_machine

MIB = 1024 * 1024
PATIENCE_S = 20.0


def opened(folder: Path) -> StateMachine:
    return StateMachine(folder, map_bytes=64 * MIB, boot_id="boot-1")


def apply(machine: StateMachine, *commands: Command) -> None:
    first = machine.applied_index + 1
    machine.apply([Entry(first + at, 1, data=encode_command(command)) for at, command in enumerate(commands)])


def sweep(machine: StateMachine) -> None:
    while not machine.is_swept:
        machine.sweep(1)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    made = opened(tmp_path / "state")
    yield made
    made.close()


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
WRITES = st.one_of(
    st.builds(PutOp, KEYS, st.binary(max_size=3)),
    st.builds(DeleteOp, KEYS),
    st.builds(lambda key, value: TxnOp((), (PutOp(key, value), DeleteOp(b"e"), PutOp(b"f", value))), KEYS, st.binary()),
    st.just(DeleteOp(b"a", b"z")),
)
COMPACTIONS = st.builds(Compact, st.integers(1, 40))
"""Those that cannot be are refused by every member alike."""
COMMANDS = st.lists(st.one_of(WRITES, WRITES, WRITES, COMPACTIONS), max_size=40)
HOUSEKEEPING = st.lists(st.integers(0, 4), max_size=60)
"""Rows to look at in a sweep after each entry; beyond the list: none."""


def play(machine: StateMachine, commands: list[Command], sweeps: list[int]) -> None:
    for at, command in enumerate(commands):
        apply(machine, command)
        rows = sweeps[at] if at < len(sweeps) else 0
        if rows and not machine.is_swept:
            machine.sweep(rows)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(commands=COMMANDS, sweeps=HOUSEKEEPING, other_sweeps=HOUSEKEEPING, at=st.integers(0, 40))
def test_members_with_the_same_entries_agree_whenever_each_has_swept_or_was_restored(
    commands: list[Command], sweeps: list[int], other_sweeps: list[int], at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, other, restored = (opened(Path(folder) / name) for name in ("one", "other", "restored"))
        with closing(one), closing(other), closing(restored):
            play(one, commands, sweeps)
            play(other, commands[:at], other_sweeps)
            if other.applied_index:
                other.save_snapshot(Path(folder) / "snapshot")
                restored.restore_snapshot(Path(folder) / "snapshot")()
            play(restored, commands[at:], other_sweeps)
            play(other, commands[at:], [])
            oldest = max(1, one.compact_revision)
            for revision in (0, *range(oldest, one.revision + 1)):
                hashed = one.revisions_hash(revision)
                assert hashed.compact_revision == one.compact_revision
                assert hashed.revision == (revision or one.revision)
                assert other.revisions_hash(revision) == hashed
                assert restored.revisions_hash(revision) == hashed
            found = one.revisions_hash()
            for machine in (one, restored):
                sweep(machine)
                assert machine.revisions_hash() == found


def test_a_hash_stays_while_writes_go_on_and_changes_with_a_compaction(machine: StateMachine) -> None:
    apply(machine, PutOp(b"a", b"1"), PutOp(b"a", b"2"), PutOp(b"b", b"1"))
    before = machine.revisions_hash(4)
    apply(machine, PutOp(b"a", b"3"), DeleteOp(b"b"))
    assert machine.revisions_hash(4) == before
    assert machine.revisions_hash() == machine.revisions_hash(6)
    assert machine.revisions_hash().hash != before.hash
    apply(machine, Compact(3))
    unswept = machine.revisions_hash(4)
    assert (unswept.compact_revision, unswept.hash != before.hash) == (3, True)
    sweep(machine)
    assert machine.revisions_hash(4) == unswept


def test_every_byte_of_a_row_counts(tmp_path: Path) -> None:
    """Damage that the state machine itself does not see: a byte of a stored row, each in turn."""
    machine = opened(tmp_path / "state")
    apply(machine, PutOp(b"key", b"value"), PutOp(b"other", b"value"))
    whole = machine.revisions_hash()
    machine.close()
    files = next((tmp_path / "state").glob("generation-*"))
    row_bytes = 0
    with lmdb.open(str(files), map_size=64 * MIB, max_dbs=2) as env:
        rows = env.open_db(b"revisions")
        with env.begin() as txn, txn.cursor(db=rows) as cursor:
            assert cursor.first()
            key, row = cursor.item()
            row_bytes = len(row)
    assert row_bytes > len(b"key" + b"value")
    for at in range(row_bytes):
        damaged = row[:at] + bytes([row[at] ^ 1]) + row[at + 1 :]
        database = database_module.Database(files, 64 * MIB)
        with database.write() as txn:
            txn.put(key, damaged, db=database._revisions)
        assert raw_hash(database) != whole.hash, at
        with database.write() as txn:
            txn.put(key, row, db=database._revisions)
        assert raw_hash(database) == whole.hash
        database.abandon()


def raw_hash(database: database_module.Database) -> int:
    return hash_of_revisions(database, 0).hash


def test_when_a_change_was_counts_too(tmp_path: Path) -> None:
    """The same rows in the same order: in one revision, and in two."""
    both = (PutOp(b"a", b"2"), PutOp(b"b", b"2"))
    hashes = []
    for name, writes in (("one", (TxnOp((), both), PutOp(b"c", b""))), ("two", both)):
        machine = opened(tmp_path / name)
        apply(machine, PutOp(b"a", b"1"), PutOp(b"b", b"1"), *writes)
        hashes.append(machine.revisions_hash(4 if name == "one" else 5).hash)
        machine.close()
    assert hashes[0] != hashes[1]


def test_a_revision_that_is_gone_or_not_there_yet_has_no_hash(machine: StateMachine) -> None:
    apply(machine, PutOp(b"a", b"1"), PutOp(b"a", b"2"), PutOp(b"a", b"3"), Compact(3))
    with pytest.raises(Compacted, match="3"):
        machine.revisions_hash(2)
    assert machine.revisions_hash(3).revision == 3
    with pytest.raises(FutureRevision):
        machine.revisions_hash(5)


def test_an_empty_store_has_a_hash(machine: StateMachine) -> None:
    assert machine.revisions_hash() == StateHash(0, 0, 1)


def test_what_is_written_swept_and_compacted_meanwhile_does_not_change_it(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader stands between two slices while all of it happens."""
    apply(machine, *[PutOp(b"k%d" % number, b"v") for number in range(3 * SLICE_ITEMS)])
    apply(machine, PutOp(b"k1", b"newer"))
    expected = machine.revisions_hash()
    reader_waits, go_on = threading.Event(), threading.Event()
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 2:  # the first one is before anything is read
            reader_waits.set()
            assert go_on.wait(PATIENCE_S)

    monkeypatch.setattr(database_module, "let_others_run", pause)
    found: list[StateHash] = []
    reader = threading.Thread(target=lambda: found.append(machine.revisions_hash()))
    reader.start()
    assert reader_waits.wait(PATIENCE_S)
    apply(machine, DeleteOp(b"k", b"l"), PutOp(b"z", b"1"), Compact(machine.revision + 2))
    sweep(machine)
    go_on.set()
    reader.join(PATIENCE_S)
    assert found == [expected]
    assert machine.revisions_hash() != expected


def test_closing_does_not_wait_for_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = opened(tmp_path / "state")
    apply(machine, *[PutOp(b"k%d" % number, b"v") for number in range(4 * SLICE_ITEMS)])
    entered, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        entered.set()
        assert go_on.wait(PATIENCE_S)

    monkeypatch.setattr(database_module, "let_others_run", pause)
    refused: list[Exception] = []

    def read() -> None:
        try:
            machine.revisions_hash()
        except Unavailable as error:
            refused.append(error)

    def close() -> None:
        machine.close()
        closed.set()

    reader, closer = threading.Thread(target=read), threading.Thread(target=close)
    reader.start()
    assert entered.wait(PATIENCE_S)
    closer.start()
    while not machine._database._is_ending:
        closer.join(0.001)
    go_on.set()
    assert closed.wait(PATIENCE_S)
    reader.join(PATIENCE_S)
    assert pauses == 1
    assert len(refused) == 1


async def test_the_store_works_out_one_hash_at_a_time_and_bounds_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local_store_and_machine(tmp_path) as (store, machine):
        await store.put(b"a", b"1")
        running, most = 0, 0
        go_on = threading.Event()

        def pause() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            assert go_on.wait(PATIENCE_S)
            running -= 1

        monkeypatch.setattr(database_module, "let_others_run", pause)
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            asked = [group.create_task(store.hash()) for _ in range(raft_engine.HASHES_WAITING_MAX)]
            await asyncio.sleep(0)
            with pytest.raises(TooManyRequests):
                await store.hash()
            go_on.set()
        assert {task.result() for task in asked} == {machine.revisions_hash()}
        assert most == 1
        with pytest.raises(InvalidRequest):
            await store.hash(-1)

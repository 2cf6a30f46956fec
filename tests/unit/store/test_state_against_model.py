"""The state machine does what a dictionary a revision does, for any sequence of commands, batches and sweeps."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import Compacted, InvalidRequest
from quorate_store.commands import Command, Compact, LeaseExpire, LeaseGrant, LeaseIncarnation, LeaseRevoke
from quorate_store.model import (
    RANGE_ALL,
    Arrangement,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    PutOp,
    RangeOp,
    SortOrder,
    SortTarget,
    TxnOp,
)
from quorate_store.state import StateMachine
from quorate_store.transactions import validate_txn
from support.store_model import TERM, DictStore, apply_one, entries_of, observable, range_of, same_outcome

KEYS = [b"a", b"a/1", b"a/2", b"b", b"b\xff", b"\xff\xff"]
keys = st.sampled_from(KEYS)
ends = st.sampled_from([b"", b"", b"", RANGE_ALL, b"a0", b"b", b"c"])
values = st.sampled_from([b"", b"x", b"yy", b"z" * 3_000])
leases = st.sampled_from([0, 0, 1, 2])
revisions = st.integers(0, 12)

arrangements = st.builds(
    Arrangement,
    st.sampled_from(SortOrder),
    st.sampled_from(SortTarget),
    *(st.sampled_from([0, 0, 0, low]) for low in (3, 6, 2, 5)),
)
ranges = st.builds(
    RangeOp, keys, ends, st.integers(0, 3), revisions, st.booleans(), st.booleans(), st.none() | arrangements
)
puts = (
    st.builds(PutOp, keys, values, leases, st.booleans())
    | st.builds(PutOp, keys, st.just(b""), leases, st.booleans(), ignore_value=st.just(True))
    | st.builds(PutOp, keys, values, st.just(0), st.booleans(), ignore_lease=st.just(True))
)
deletes = st.builds(DeleteOp, keys, ends, st.booleans())
numbers = st.builds(
    Compare,
    keys,
    st.sampled_from([CompareTarget.VERSION, CompareTarget.CREATE, CompareTarget.MOD, CompareTarget.LEASE]),
    st.sampled_from(CompareResult),
    st.integers(0, 4),
    ends,
)
contents = st.builds(Compare, keys, st.just(CompareTarget.VALUE), st.sampled_from(CompareResult), values, ends)
compares = st.lists(numbers | contents, max_size=2).map(tuple)


def _txns(operations: st.SearchStrategy[Any]) -> st.SearchStrategy[TxnOp]:
    branch = st.lists(operations, max_size=3).map(tuple)
    return st.builds(TxnOp, compares, branch, branch)


def _is_valid(command: Command) -> bool:
    if isinstance(command, TxnOp):
        try:
            validate_txn(command)
        except InvalidRequest:
            return False
    return True


simple = ranges | puts | deletes
txns = _txns(simple | _txns(simple)).filter(_is_valid)
lease_commands: st.SearchStrategy[Command] = (
    st.builds(LeaseGrant, st.sampled_from([1, 2]), st.integers(1, 60))
    | st.builds(LeaseRevoke, st.sampled_from([1, 2]))
    | st.builds(
        LeaseExpire,
        st.sampled_from([TERM, TERM, TERM + 1]),
        st.lists(st.builds(LeaseIncarnation, st.sampled_from([1, 2]), st.integers(1, 10)), max_size=2).map(tuple),
    )
)
commands: st.SearchStrategy[Command] = puts | puts | deletes | txns | lease_commands | st.builds(Compact, revisions)
histories = st.lists(commands, max_size=25)


MEMORY = Path("/dev/shm")
"""Where there is one, thousands of short-lived stores need no disk to sync to."""


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)


@contextmanager
def fresh_machine() -> Iterator[StateMachine]:
    with temporary_folder() as folder:
        machine = StateMachine(Path(folder) / "state", map_bytes=64 * 1024 * 1024)
        try:
            yield machine
        finally:
            machine.close()


@settings(max_examples=120, deadline=None)
@given(histories, st.integers(1, 4))
def test_every_result_and_every_kept_revision_is_as_in_the_model(history: list[Command], sweep_rows: int) -> None:
    model = DictStore()
    with fresh_machine() as machine:
        for command in history:
            real, expected = apply_one(machine, command), model.apply(command)
            assert same_outcome(real, expected), (command, real, expected)
            machine.sweep(sweep_rows)
        assert (machine.revision, machine.compact_revision) == (model.revision, model.compact_revision)
        oldest = max(1, model.compact_revision)
        for revision in range(oldest, model.revision + 1):
            op = RangeOp(b"\0", RANGE_ALL, revision=revision)
            assert machine.range(op) == range_of(model.snapshots[revision], op, model.revision)
        for start in range(oldest, model.revision + 1):
            events, reached = machine.events(start, b"\0", RANGE_ALL, previous=False, rows_max=10**6)
            expected = [(e.kind, e.kv) for r in range(start, model.revision + 1) for e in model.events.get(r, [])]
            assert [(e.kind, e.kv) for e in events] == expected
            assert reached == model.revision
        later, _ = machine.events(oldest + 1, b"\0", RANGE_ALL, previous=True, rows_max=10**6)
        assert later == [e for r in range(oldest + 1, model.revision + 1) for e in model.events.get(r, [])]
        held = {lease: set(machine.leases.keys(lease)) for lease, _ in machine.leases}
        now = model.snapshots[model.revision]
        assert held == {lease: {k for k, kv in now.items() if kv.lease == lease} for lease in model.leases}


@settings(max_examples=60, deadline=None)
@given(histories, st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 4))
def test_batches_and_sweeps_of_any_size_end_in_the_same_state(
    history: list[Command], batch_sizes: list[int], sweep_rows: int
) -> None:
    entries = entries_of(history)
    with fresh_machine() as one, fresh_machine() as other:
        results = list(one.apply(entries))
        others: list[Any] = []
        first, turn = 0, 0
        while first < len(entries):
            size = batch_sizes[turn % len(batch_sizes)]
            others += other.apply(entries[first : first + size])
            other.sweep(sweep_rows)
            first, turn = first + size, turn + 1
        assert all(same_outcome(a, b) for a, b in zip(results, others, strict=True))
        assert observable(one) == observable(other)


@settings(max_examples=40, deadline=None)
@given(histories, histories, st.integers(0, 4))
def test_a_reopened_machine_goes_on_as_if_it_had_never_stopped(
    before: list[Command], after: list[Command], sweep_rows: int
) -> None:
    with temporary_folder() as folder, fresh_machine() as steady:
        steady.apply(entries_of(before + after))
        machine = StateMachine(Path(folder) / "state", map_bytes=64 * 1024 * 1024)
        machine.apply(entries_of(before))
        if sweep_rows:
            machine.sweep(sweep_rows)
        seen = observable(machine)
        machine.close()
        machine = StateMachine(Path(folder) / "state", map_bytes=64 * 1024 * 1024)
        assert observable(machine) == seen
        machine.apply(entries_of(after, first_index=len(before) + 1))
        while not machine.is_swept:
            machine.sweep(sweep_rows or 1)
        assert observable(machine) == observable(steady)
        machine.close()


@settings(max_examples=60, deadline=None)
@given(histories, histories, histories, st.integers(0, 4), st.integers(0, 4))
def test_a_snapshot_at_any_point_and_what_came_after_it_make_the_same_state(
    before: list[Command], between: list[Command], after: list[Command], saver_sweeps: int, restorer_sweeps: int
) -> None:
    """Whatever the restoring member had, and however far each has swept; the hash says so too."""
    with temporary_folder() as folder, fresh_machine() as saver, fresh_machine() as restorer, fresh_machine() as steady:
        for machine, sweep_rows in ((saver, saver_sweeps), (restorer, restorer_sweeps), (steady, 0)):
            machine.apply(entries_of(before))
            if sweep_rows:
                machine.sweep(sweep_rows)
        hashes = {saver.state_hash(), restorer.state_hash(), steady.state_hash()}
        saver.apply(entries_of([*between, PutOp(b"a", b"last")], len(before) + 1))
        path = Path(folder) / "snapshot"
        saver.save_snapshot(path)
        assert path.stat().st_size == saver.size_bytes
        restorer.restore_snapshot(path)()
        steady.apply(entries_of([*between, PutOp(b"a", b"last")], len(before) + 1))
        hashes_after = set[str]()
        for machine in (steady, saver, restorer):
            machine.apply(entries_of(after, machine.applied_index + 1))
            if machine is not steady:
                machine.sweep(1)
            assert observable(machine) == observable(steady)
            hashes_after.add(machine.state_hash())
        while not restorer.is_swept:
            restorer.sweep(2)
        hashes_after.add(restorer.state_hash())
        assert observable(restorer) == observable(steady)
        assert len(hashes) == len(hashes_after) == 1
        assert hashes != hashes_after


@settings(max_examples=40, deadline=None)
@given(histories, st.integers(1, 3), st.integers(1, 12))
def test_history_read_in_slices_is_the_history(history: list[Command], rows_max: int, start: int) -> None:
    with fresh_machine() as machine:
        machine.apply(entries_of(history))
        if start < machine.compact_revision:
            with pytest.raises(Compacted):
                machine.events(start, b"a", b"c", previous=True, rows_max=rows_max)
            return
        whole, _ = machine.events(start, b"a", b"c", previous=True, rows_max=10**6)
        found: list[Any] = []
        next_revision = start
        while next_revision <= machine.revision:
            events, reached = machine.events(next_revision, b"a", b"c", previous=True, rows_max=rows_max)
            assert reached >= next_revision
            found += events
            next_revision = reached + 1
        assert found == whole


@settings(max_examples=40, deadline=None)
@given(histories, ranges, st.integers(1, 3))
def test_a_range_read_in_slices_is_of_one_revision(history: list[Command], op: RangeOp, keys_max: int) -> None:
    """Writes between two slices change nothing about the answer."""
    with fresh_machine() as machine:
        machine.apply(entries_of(history))
        if op.revision > machine.revision or 0 < op.revision < machine.compact_revision:
            return
        expected = machine.range(op)
        scan = machine.scan(op)
        while not scan.step(keys_max):
            apply_one(machine, PutOp(b"a/1", b"changed meanwhile"))
            apply_one(machine, DeleteOp(b"b", RANGE_ALL))
        assert scan.result() == expected

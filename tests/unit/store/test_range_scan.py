"""Pages of one revision of the past: what they hold, what they count, and that a page costs what it holds."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_store.commands import Compact, LeaseGrant, LeaseRevoke
from quorate_store.model import RANGE_ALL, Compare, CompareResult, CompareTarget, DeleteOp, PutOp, RangeOp, TxnOp
from quorate_store.state import StateMachine
from support.store_model import DictStore, apply_one, entries_of, range_of
from unit.store.test_state_against_model import fresh_machine

KEYS = [b"k%02d" % number for number in range(12)]
ROWS_MAX = 50
"""Keys, or changes, of a slice."""

changes = st.builds(PutOp, st.sampled_from(KEYS), st.sampled_from([b"x", b"y"])) | st.builds(
    DeleteOp, st.sampled_from(KEYS), st.sampled_from([b"", b"", b"", b"k06", RANGE_ALL])
)
histories = st.lists(changes, max_size=30)
pages = st.builds(
    RangeOp, st.sampled_from(KEYS), st.sampled_from([RANGE_ALL, b"k09", b"k03"]), st.integers(0, 4), st.just(0),
    st.booleans(), st.booleans(),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(histories, histories, histories, pages, st.integers(1, 7), st.booleans(), st.booleans())
def test_a_page_of_the_past_counts_what_was_alive_then(
    before: list[PutOp | DeleteOp],
    since: list[PutOp | DeleteOp],
    meanwhile: list[PutOp | DeleteOp],
    page: RangeOp,
    keys_max: int,
    is_compacted: bool,
    is_counted: bool,
) -> None:
    """Whatever came and went since that revision, and comes and goes between two slices, and though all that may be
    forgotten was swept."""
    model = DictStore()
    with fresh_machine() as machine:
        for command in before:
            apply_one(machine, command)
            model.apply(command)
        op = RangeOp(page.key, page.range_end, page.limit, machine.revision, page.keys_only, page.count_only)
        for command in since:
            apply_one(machine, command)
        if is_compacted and op.revision > 1:
            apply_one(machine, Compact(op.revision))
            while not machine.is_swept:
                machine.sweep(3)
        present, left = machine.revision, iter(meanwhile)
        scan = machine.scan(op, is_counted=is_counted)
        while not scan.step(keys_max):
            if (change := next(left, None)) is not None:
                apply_one(machine, change)
        found, expected = scan.result(), range_of(model.snapshots[op.revision], op, present)
        assert (found.revision, found.kvs, found.more) == (present, expected.kvs, expected.more)
        assert found.count == expected.count or not is_counted


@pytest.fixture
def machine() -> Iterator[StateMachine]:
    with fresh_machine() as made:
        yield made


def fill(machine: StateMachine, keys: int) -> int:
    """Returns the revision."""
    machine.apply(entries_of([PutOp(b"k%06d" % number, b"v") for number in range(keys)], machine.applied_index + 1))
    return machine.revision


def steps_of(machine: StateMachine, op: RangeOp, count: int, between: Callable[[], object] = lambda: None) -> int:
    """Slices that it takes to answer `op`, which counts `count`."""
    scan, steps = machine.scan(op), 1
    while not scan.step(ROWS_MAX):
        between()
        steps += 1
    assert scan.result().count == count
    return steps


@pytest.mark.parametrize("limit", [10, 40])
def test_a_page_does_not_cost_what_comes_after_it(machine: StateMachine, limit: int) -> None:
    """A node reads its registry in pages of one revision: if each walked to the end, the whole would cost the square
    of what there is."""
    revision = fill(machine, 5_000)
    for number in range(ROWS_MAX // 2):
        apply_one(machine, DeleteOp(b"k%06d" % number))
    fill(machine, 10)
    for first in (b"k", b"k002000", b"k004990"):
        behind = 5_000 - int(first[1:] or b"0")
        assert steps_of(machine, RangeOp(first, RANGE_ALL, limit, revision), behind) <= 2
        assert steps_of(machine, RangeOp(first, RANGE_ALL, revision=revision, count_only=True), behind) == 1


def test_a_page_that_is_not_counted_ends_with_the_key_that_says_there_is_more(machine: StateMachine) -> None:
    """However much has changed since: a node that begins with a snapshot reads its registry at that revision, while the
    log after it is applied."""
    revision = fill(machine, 1_000)
    fill(machine, 1_000)
    for number in range(0, 900, 3):
        apply_one(machine, DeleteOp(b"k%06d" % number))
    for first, limit, more in (
        (b"k000100", 10, True),
        (b"k000990", 10, False),
        (b"k000990", 9, True),
        (b"l", 1, False),
    ):
        op = RangeOp(first, RANGE_ALL, limit, revision)
        scan = machine.scan(op, is_counted=False)
        assert scan.step(limit + 1)
        page, counted = scan.result(), machine.range(op)
        assert (page.kvs, page.more) == (counted.kvs, counted.more) == (counted.kvs, more)
        assert page.count > len(page.kvs) if more else page.count == len(page.kvs)
    only = machine.scan(RangeOp(b"k", RANGE_ALL, revision=revision, count_only=True), is_counted=False)
    while not only.step(ROWS_MAX):
        pass
    assert only.result().count == 1_000


def test_a_page_of_the_present_does_not_either(machine: StateMachine) -> None:
    fill(machine, 5_000)
    assert steps_of(machine, RangeOp(b"k", RANGE_ALL, 10), 5_000) <= 2


@pytest.mark.parametrize("changes_since", [1_000, 60])
def test_a_small_range_does_not_cost_what_has_changed_since(machine: StateMachine, changes_since: int) -> None:
    revision = fill(machine, 20)
    for number in range(changes_since):
        apply_one(machine, PutOp(b"other", b"%d" % number))
    assert steps_of(machine, RangeOp(b"k", b"l", 5, revision), 20) <= 2


def test_one_revision_that_has_changed_more_than_is_there_is_not_read_to_its_end(machine: StateMachine) -> None:
    fill(machine, 60)
    apply_one(machine, LeaseGrant(7, 60))
    for first in range(0, 1_000, 100):
        puts = tuple(PutOp(b"leased%04d" % number, b"", lease=7) for number in range(first, first + 100))
        apply_one(machine, TxnOp((), puts))
    revision = machine.revision
    apply_one(machine, LeaseRevoke(7))
    # A slice for the page, two of changes until they are more than the range holds, and two to walk to its end.
    assert steps_of(machine, RangeOp(b"k", b"l", 1, revision), 60) <= 5


def test_writers_who_are_faster_than_the_reader_do_not_keep_it(machine: StateMachine) -> None:
    """What it has to look at of changes grows as fast as it looks; of keys, it does not."""
    revision = fill(machine, 200)
    apply_one(machine, PutOp(b"k000000", b"changed"))

    def write() -> None:
        machine.apply(entries_of([PutOp(b"other", b"%d" % n) for n in range(2 * ROWS_MAX)], machine.applied_index + 1))

    assert steps_of(machine, RangeOp(b"k", RANGE_ALL, 10, revision), 200, between=write) <= 10


def test_a_page_inside_a_transaction_counts_what_it_has_written_itself_as_later(machine: StateMachine) -> None:
    revision = fill(machine, 30)
    page = RangeOp(b"k", RANGE_ALL, 5, revision)
    put, delete = PutOp(b"k000001/new", b""), DeleteOp(b"k000002")
    exists = Compare(b"k000000", CompareTarget.VERSION, CompareResult.GREATER, 0)
    result = apply_one(machine, TxnOp((exists,), (put, delete, page), ()))
    assert result.results[2].count == 30
    assert machine.range(page).count == 30
    assert machine.range(RangeOp(b"k", RANGE_ALL, count_only=True)).count == 30
    assert steps_of(machine, RangeOp(b"k", RANGE_ALL, 5), 30) <= 2


def test_the_state_need_not_be_the_one_that_was_begun_in(tmp_path: Path) -> None:
    """A snapshot is taken over between two slices, when changes are counted already."""
    with fresh_machine() as machine, fresh_machine() as ahead:
        revision = fill(machine, 400)
        fill(ahead, 400)
        for each in (machine, ahead):
            for number in range(0, 3 * ROWS_MAX, 2):
                apply_one(each, DeleteOp(b"k%06d" % number))
        scan = machine.scan(RangeOp(b"k", RANGE_ALL, 10, revision))
        assert not scan.step(ROWS_MAX)
        assert not scan.step(ROWS_MAX)
        fill(ahead, 300)
        ahead.save_snapshot(tmp_path / "snapshot")
        machine.restore_snapshot(tmp_path / "snapshot")()
        while not scan.step(ROWS_MAX):
            pass
        assert scan.result().count == 400

"""The guard of a write with a request id, and its answer made again: pure, against the real machine and a model."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import Conflict, InvalidRequest, QuorateError
from quorate_store.model import (
    RANGE_ALL,
    TXN_OPERATIONS_MAX,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    Operation,
    OperationResult,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
    prefix_end,
)
from quorate_store.past_answer import PastAnswer, answer_without_history
from quorate_store.request_guard import (
    REQUEST_ID_BYTES_MAX,
    REQUESTS_PREFIX,
    Guard,
    Marker,
    Write,
    digest_of,
    marker_key,
)
from quorate_store.state import StateMachine
from quorate_store.transactions import is_read_only, validate_txn
from support.store_model import DictStore, apply_one
from unit.store.test_state_against_model import deletes, fresh_machine, lease_commands, puts, txns


def is_guardable(write: Write) -> bool:
    if isinstance(write, TxnOp) and is_read_only(write):
        return False
    try:
        Guard(write, "id")
    except InvalidRequest:
        return False
    return True


writes: st.SearchStrategy[Write] = (puts | deletes | txns).filter(is_guardable)


def answer_again(machine: StateMachine, write: Write, revision: int) -> OperationResult:
    past = PastAnswer(write, revision)
    decided = past.decide({op: machine.range(op) for op in past.reads_of_comparisons()})
    return past.answer(decided, {op: machine.range(op) for op in past.reads_of_operations(decided)})


def without_guard(model: DictStore, write: Write, revision: int) -> Any:
    """What `write` would answer now without its guard, or the error; a transaction is told the `revision`."""
    answer = deepcopy(model).apply(write)
    return msgspec.structs.replace(answer, revision=revision) if isinstance(answer, TxnResult) else answer


@settings(max_examples=150, deadline=None)
@given(st.lists(writes | writes | lease_commands, max_size=12))
def test_a_guarded_write_does_and_answers_what_it_would_without_and_the_same_again(history: list[Any]) -> None:
    model = DictStore()
    with fresh_machine() as machine:
        for number, command in enumerate(history):
            # The machine has second attempts as entries too, and a lease's generation is the index of its entry.
            model.index = machine.applied_index
            if not isinstance(command, Write):
                apply_one(machine, command)
                model.apply(command)
                continue
            guard = Guard(command, str(number))
            expected = without_guard(model, command, machine.revision + 1)
            result = apply_one(machine, guard.transaction(0))
            model.apply(guard.transaction(0))
            if isinstance(expected, QuorateError):
                assert type(result) is type(expected)
                continue
            assert guard.marker_in(result) is None
            assert guard.answer_in(result) == expected
            assert same_again(machine, guard, model.revision) == expected
        assert machine.revision == model.revision
        for number, command in enumerate(history):  # and still, when others have written since
            if isinstance(command, Write):
                guard = Guard(command, str(number))
                [marker] = machine.range(RangeOp(guard.key)).kvs or [None]
                if marker is not None:
                    same_again(machine, guard, marker.mod_revision)


def same_again(machine: StateMachine, guard: Guard, revision: int) -> OperationResult:
    """What a second attempt changes (nothing) and answers."""
    before = machine.revision
    repeated = apply_one(machine, guard.transaction(0))
    assert machine.revision == before
    marker = guard.marker_in(repeated)
    assert marker is not None
    assert (marker.create_revision, marker.version) == (revision, 1)
    left = Marker.decode(marker.value)
    assert left.digest == digest_of(guard.write)
    answer = answer_again(machine, guard.write, revision)
    assert answer_without_history(guard.write, revision, succeeded=left.succeeded) in (None, answer)
    if isinstance(answer, TxnResult):
        assert left.succeeded == answer.succeeded
    return answer


IS_ABSENT = Compare(b"k", CompareTarget.VERSION, CompareResult.EQUAL, 0)


def many_puts(count: int, first: int = 0) -> tuple[Operation, ...]:
    return tuple(PutOp(b"k%d" % number, b"v") for number in range(first, first + count))


ALL = TXN_OPERATIONS_MAX
LEGAL = {
    "puts in both branches": TxnOp((IS_ABSENT,), many_puts(ALL), many_puts(ALL)),
    "an odd number": TxnOp((), many_puts(ALL - 1)),
    "with many comparisons": TxnOp((IS_ABSENT,) * (ALL - 3), many_puts(ALL)),
    "nothing but comparisons": TxnOp((IS_ABSENT,) * (ALL - 1), many_puts(ALL - 2)),
    "nested": TxnOp((), (TxnOp((IS_ABSENT,), many_puts(ALL - 20, 20)), *many_puts(19))),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_transaction_of_as_many_operations_as_are_allowed_stays_one_with_its_guard(name: str) -> None:
    txn = LEGAL[name]
    validate_txn(txn)
    guard = Guard(txn, "id")
    validate_txn(guard.transaction(1))
    with fresh_machine() as machine:
        answer = guard.answer_in(apply_one(machine, guard.transaction(0)))
        assert isinstance(answer, TxnResult)
        assert len(answer.results) == len(txn.success)
        assert answer.results[0] in (PutResult(2), TxnResult(2, True, (PutResult(2),) * (ALL - 20)))
        assert answer == answer_again(machine, txn, 2)


@pytest.mark.parametrize(
    "txn",
    [TxnOp((IS_ABSENT,) * ALL, many_puts(1)), TxnOp((), (TxnOp((), (TxnOp((), many_puts(ALL - 2)),)),))],
    ids=["as many comparisons as are allowed", "three levels"],
)
def test_one_that_has_no_room_for_a_guard_is_refused(txn: TxnOp) -> None:
    validate_txn(txn)
    with pytest.raises(InvalidRequest, match="with a request id, which takes up to three"):
        Guard(txn, "id")


@pytest.mark.parametrize(
    ("write", "is_refused"),
    [
        (PutOp(REQUESTS_PREFIX + b"other", b""), True),
        (PutOp(b"quorate/other", b""), False),
        (DeleteOp(REQUESTS_PREFIX + b"other"), True),
        (DeleteOp(b"\0", RANGE_ALL), True),
        (DeleteOp(b"a", b"z"), True),
        (DeleteOp(REQUESTS_PREFIX + b"a", REQUESTS_PREFIX + b"b"), True),
        (DeleteOp(b"quorate/", prefix_end(b"quorate/")), True),
        (DeleteOp(b"quorate/", REQUESTS_PREFIX), False),
        (DeleteOp(prefix_end(REQUESTS_PREFIX), RANGE_ALL), False),
        (DeleteOp(b"z", b"a"), False),
        (DeleteOp(b"zone/", prefix_end(b"zone/")), False),
        (TxnOp((), (), (TxnOp((), (DeleteOp(b"\0", RANGE_ALL),)),)), True),
        (TxnOp((), (PutOp(b"k", b""),)), False),
    ],
)
def test_a_write_with_an_id_cannot_touch_markers(write: Write, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(InvalidRequest, match="cannot change keys under quorate/requests/"):
            Guard(write, "id")
    else:
        Guard(write, "id")


@pytest.mark.parametrize("request_id", ["", "x" * (REQUEST_ID_BYTES_MAX + 1), "é" * REQUEST_ID_BYTES_MAX, "\ud800"])
def test_an_id_is_text_of_bounded_length(request_id: str) -> None:
    with pytest.raises(InvalidRequest):
        marker_key(request_id)


def test_ids_of_any_text_have_keys_of_their_own() -> None:
    ids = ["a", "a/b", "a b", "ü", "x" * REQUEST_ID_BYTES_MAX]
    assert len({marker_key(one) for one in ids}) == len(ids)
    assert all(marker_key(one).startswith(REQUESTS_PREFIX) for one in ids)


PUT = PutOp(b"k", b"v")


@pytest.mark.parametrize(
    "change",
    [
        lambda: PutOp(b"k", b"w"),
        lambda: PutOp(b"l", b"v"),
        lambda: PutOp(b"k", b"v", 1),
        lambda: PutOp(b"k", b"v", 0, True),
        lambda: DeleteOp(b"k", b"v"),
        lambda: TxnOp((), (PUT,)),
    ],
)
def test_writes_that_differ_in_anything_have_other_digests(change: Callable[[], Write]) -> None:
    assert digest_of(change()) != digest_of(PUT)
    assert digest_of(PutOp(b"k", b"v")) == digest_of(PUT)


@pytest.mark.parametrize("data", [b"", b"\x02" + bytes(17), b"\x01\x01short"])
def test_a_marker_that_another_release_has_written_is_no_answer(data: bytes) -> None:
    with pytest.raises(Conflict, match="another way"):
        Marker.decode(data)


def test_a_range_after_writes_of_the_same_transaction_is_made_again_with_its_limit() -> None:
    txn = TxnOp(
        (),
        (
            RangeOp(b"a", b"z", limit=1),
            PutOp(b"a1", b"new", previous=True),
            DeleteOp(b"c", b"e", previous=True),
            RangeOp(b"a", b"z", limit=2),
            RangeOp(b"a", b"z", count_only=True),
            RangeOp(b"a1", keys_only=True),
            RangeOp(b"x", b"y", limit=1),
            RangeOp(b"a", b"z", revision=2),
        ),
    )
    with fresh_machine() as machine:
        for key in (b"a0", b"b", b"c", b"d", b"x1", b"x2"):
            apply_one(machine, PutOp(key, key))
        guard = Guard(txn, "id")
        first = guard.answer_in(apply_one(machine, guard.transaction(0)))
        revision = machine.revision
        for key in (b"a0", b"a1", b"b", b"c", b"d", b"x1"):
            apply_one(machine, PutOp(key, b"later"))
        again = answer_again(machine, txn, revision)
    assert again == first
    assert isinstance(again, TxnResult)
    cut, counted = again.results[3], again.results[4]
    assert isinstance(cut, RangeResult)
    assert isinstance(counted, RangeResult)
    assert ([kv.key for kv in cut.kvs], cut.count, cut.more) == ([b"a0", b"a1"], 5, True)
    assert counted.count == 5

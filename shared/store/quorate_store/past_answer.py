"""The answer that a write got, made again from history. Pure.

Theory of operation. A write was applied at a revision; the state just before that one is in history, as long as it is
not compacted. There the comparisons are decided again, and the operations done again in a copy of what they touch, so
that previous values, counts and ranges come out as they did. What must be read of history for that is known in two
steps: the comparisons say which operations were done, and these what they looked at.

    past = PastAnswer(write, revision)
    compared = {op: result for op in past.reads_of_comparisons()}
    decided = past.decide(compared)
    done = {op: result for op in past.reads_of_operations(decided)}
    past.answer(decided, done)
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from quorate_store.arrangement import arranged, whole_of
from quorate_store.key_index import is_in_range
from quorate_store.model import (
    Compare,
    DeleteOp,
    DeleteResult,
    KeyValue,
    OperationResult,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
)
from quorate_store.request_guard import Write
from quorate_store.transactions import DecidedTxn, decide, flatten

Reads = Mapping[RangeOp, RangeResult]
"""What history says, by what it was asked."""


def answer_without_history(write: Write, revision: int, *, succeeded: bool) -> OperationResult | None:
    """The answer, if it follows from the revision and the branch alone; else None."""
    if isinstance(write, PutOp):
        return None if write.previous else PutResult(revision)
    if isinstance(write, DeleteOp):
        return None
    branch = write.success if succeeded else write.failure
    if all(isinstance(operation, PutOp) and not operation.previous for operation in branch):
        return TxnResult(revision, succeeded, tuple(PutResult(revision) for _ in branch))
    return None


class PastAnswer:
    """To a write that was applied at `revision`."""

    def __init__(self, write: Write, revision: int) -> None:
        self._write = write
        self._revision = revision
        self._txn = write if isinstance(write, TxnOp) else TxnOp((), (write,))

    def reads_of_comparisons(self) -> list[RangeOp]:
        return [self._before(compare.key, compare.range_end) for compare in _comparisons(self._txn)]

    def decide(self, reads: Reads) -> DecidedTxn:
        return decide(self._txn, lambda key, range_end: reads[self._before(key, range_end)].kvs)

    def reads_of_operations(self, decided: DecidedTxn) -> list[RangeOp]:
        """One for each operation, in order."""
        reads: list[RangeOp] = []
        writes: list[PutOp | DeleteOp] = []
        for operation in flatten(decided):
            reads.append(self._read_of(operation, writes))
            if not isinstance(operation, RangeOp):
                writes.append(operation)
        return reads

    def answer(self, decided: DecidedTxn, reads: Reads) -> OperationResult:
        replay = _Replay(self._revision, [reads[read] for read in self.reads_of_operations(decided)])
        results = replay.txn(decided)
        if isinstance(self._write, TxnOp):
            return TxnResult(self._revision, decided.succeeded, results)
        return results[0]

    def _before(self, key: bytes, range_end: bytes) -> RangeOp:
        return RangeOp(key, range_end, revision=self._revision - 1)

    def _read_of(self, operation: RangeOp | PutOp | DeleteOp, writes: Sequence[PutOp | DeleteOp]) -> RangeOp:
        if isinstance(operation, PutOp):
            return self._before(operation.key, b"")
        if isinstance(operation, DeleteOp):
            before = self._before(operation.key, operation.range_end)
            return before if operation.previous else replace(before, keys_only=True)
        whole = whole_of(operation)
        if operation.revision:
            return whole
        if any(_may_overlap(operation, write) for write in writes):
            return self._before(operation.key, operation.range_end)
        return RangeOp(
            whole.key, whole.range_end, whole.limit, self._revision - 1, whole.keys_only, whole.count_only
        )  # fmt: skip


class _Replay:
    """Does operations again, in order. `reads`: what each of them found before the first of them."""

    def __init__(self, revision: int, reads: Sequence[RangeResult]) -> None:
        self._revision = revision
        self._reads = iter(reads)
        self._changed: dict[bytes, KeyValue | None] = {}
        """Keys as the operations have left them; None for what they have deleted."""

    @property
    def _present(self) -> int:
        return self._revision if self._changed else self._revision - 1

    def txn(self, decided: DecidedTxn) -> tuple[OperationResult, ...]:
        return tuple([self._operation(operation) for operation in decided.operations])

    def _operation(self, operation: RangeOp | PutOp | DeleteOp | DecidedTxn) -> OperationResult:
        if isinstance(operation, DecidedTxn):
            results = self.txn(operation)
            return TxnResult(self._present, operation.succeeded, results)
        read = next(self._reads)
        if isinstance(operation, PutOp):
            return self._put(operation, read)
        if isinstance(operation, DeleteOp):
            return self._delete(operation, read)
        return arranged(operation, self._range(whole_of(operation), read))

    def _put(self, op: PutOp, read: RangeResult) -> PutResult:
        [before] = self._as_of_now(op.key, b"", read) or (None,)
        created, version = (self._revision, 0) if before is None else (before.create_revision, before.version)
        value = before.value if op.ignore_value and before is not None else op.value
        lease = before.lease if op.ignore_lease and before is not None else op.lease
        self._changed[op.key] = KeyValue(op.key, value, created, self._revision, version + 1, lease)
        return PutResult(self._present, before if op.previous else None)

    def _delete(self, op: DeleteOp, read: RangeResult) -> DeleteResult:
        gone = self._as_of_now(op.key, op.range_end, read)
        self._changed.update(dict.fromkeys((kv.key for kv in gone), None))
        return DeleteResult(self._present, len(gone), tuple(gone) if op.previous else ())

    def _range(self, op: RangeOp, read: RangeResult) -> RangeResult:
        if op.revision or not any(is_in_range(key, op.key, op.range_end) for key in self._changed):
            kvs = read.kvs[: op.limit] if op.limit else read.kvs
            return _shaped(op, self._present, kvs, read.count)
        kvs = tuple(self._as_of_now(op.key, op.range_end, read))
        return _shaped(op, self._present, kvs[: op.limit] if op.limit else kvs, len(kvs))

    def _as_of_now(self, key: bytes, range_end: bytes, read: RangeResult) -> list[KeyValue]:
        """What the range holds after the operations so far, in order of key."""
        found: dict[bytes, KeyValue | None] = {kv.key: kv for kv in read.kvs}
        found.update({one: kv for one, kv in self._changed.items() if is_in_range(one, key, range_end)})
        return [kv for _, kv in sorted(found.items()) if kv is not None]


def _shaped(op: RangeOp, present: int, kvs: tuple[KeyValue, ...], count: int) -> RangeResult:
    if op.count_only:
        return RangeResult(present, (), count)
    if op.keys_only:
        kvs = tuple(KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs)
    return RangeResult(present, kvs, count, count > len(kvs))


def _comparisons(txn: TxnOp) -> Iterable[Compare]:
    yield from txn.compare
    for operation in (*txn.success, *txn.failure):
        if isinstance(operation, TxnOp):
            yield from _comparisons(operation)


def _may_overlap(read: RangeOp, write: PutOp | DeleteOp) -> bool:
    if isinstance(write, PutOp):
        return is_in_range(write.key, read.key, read.range_end)
    return is_in_range(write.key, read.key, read.range_end) or is_in_range(read.key, write.key, write.range_end)

"""What a transaction may be, and which of its branches it takes. Pure: the store's keys come in as a lookup.

All comparisons, those of nested transactions too, are decided against the state before the transaction (as etcd
does), so that everything a transaction will do is known, and can be refused, before it changes anything.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quorate_core.errors import InvalidRequest

from quorate_store.key_index import is_in_range
from quorate_store.model import (
    TXN_OPERATIONS_MAX,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    KeyValue,
    Operation,
    PutOp,
    RangeOp,
    TxnOp,
)
from quorate_store.refusals import DuplicateKey, KeyNotProvided, LeaseProvided, TooManyOperations, ValueProvided

LookUp = Callable[[bytes, bytes], Iterable[KeyValue]]
"""(key, range_end) to what is there."""

LEASE_TTL_S_MAX = 9_000_000_000
"""etcd's limit."""
INTEGER_MAX = 2**63 - 1
TXN_TREE_OPERATIONS_MAX = 1_024
"""In a transaction and all that are nested in it. etcd bounds only each list; nested lists can be many, and whether a
key is written twice takes a look at each pair of a put and a deletion."""


@dataclass(frozen=True, slots=True)
class DecidedTxn:
    """A transaction whose branches are chosen."""

    succeeded: bool
    operations: tuple["Decided", ...]


Decided = RangeOp | PutOp | DeleteOp | DecidedTxn


def decide(txn: TxnOp, look_up: LookUp) -> DecidedTxn:
    succeeded = all(holds(compare, look_up) for compare in txn.compare)
    branch = txn.success if succeeded else txn.failure
    return DecidedTxn(succeeded, tuple(decide(op, look_up) if isinstance(op, TxnOp) else op for op in branch))


def flatten(decided: DecidedTxn) -> Iterable[RangeOp | PutOp | DeleteOp]:
    """All operations that will be done, in order."""
    for operation in decided.operations:
        if isinstance(operation, DecidedTxn):
            yield from flatten(operation)
        else:
            yield operation


def holds(compare: Compare, look_up: LookUp) -> bool:
    """Whether `compare` holds for every key in its range. An absent key has 0 for all numbers and no value, so no
    comparison of values holds for it; a range without keys is such an absent key (etcd's applyCompare)."""
    found = False
    for kv in look_up(compare.key, compare.range_end):
        found = True
        if not _holds_for(compare, kv):
            return False
    if found:
        return True
    return compare.target is not CompareTarget.VALUE and _holds_for(compare, KeyValue(compare.key, b"", 0, 0, 0))


def _holds_for(compare: Compare, kv: KeyValue) -> bool:
    # The operand's type was checked when the request was validated.
    actual, operand = _subject(compare.target, kv), compare.operand
    match compare.result:
        case CompareResult.EQUAL:
            return actual == operand
        case CompareResult.NOT_EQUAL:
            return actual != operand
        case CompareResult.GREATER:
            return actual > operand  # type: ignore[operator]
        case CompareResult.LESS:
            return actual < operand  # type: ignore[operator]


def _subject(target: CompareTarget, kv: KeyValue) -> int | bytes:
    match target:
        case CompareTarget.VERSION:
            return kv.version
        case CompareTarget.CREATE:
            return kv.create_revision
        case CompareTarget.MOD:
            return kv.mod_revision
        case CompareTarget.LEASE:
            return kv.lease
        case CompareTarget.VALUE:
            return kv.value


def is_read_only(txn: TxnOp) -> bool:
    """Whether neither branch can change anything, so that no log entry is needed."""
    return all(
        isinstance(op, RangeOp) or (isinstance(op, TxnOp) and is_read_only(op)) for op in (*txn.success, *txn.failure)
    )


def validate_txn(txn: TxnOp) -> None:
    """Raises TooManyOperations, DuplicateKey, or InvalidRequest for a wrong field anywhere inside."""
    if _count_operations(txn) > TXN_TREE_OPERATIONS_MAX:
        raise TooManyOperations(f"over {TXN_TREE_OPERATIONS_MAX} operations in all the transactions of one request")
    _validate_operations(txn, TXN_OPERATIONS_MAX)
    for branch in (txn.success, txn.failure):
        _writes_of(branch)


def _count_operations(txn: TxnOp) -> int:
    """With those of both branches, at any depth."""
    nested = sum(_count_operations(op) for op in (*txn.success, *txn.failure) if isinstance(op, TxnOp))
    return len(txn.success) + len(txn.failure) + nested


def _validate_operations(txn: TxnOp, operations_max: int) -> None:
    # etcd's rule: the longest list counts, and what is nested has to do with what is left.
    operations = max(len(txn.compare), len(txn.success), len(txn.failure))
    if operations > operations_max:
        raise TooManyOperations(f"too many operations in one transaction; the limit is {TXN_OPERATIONS_MAX}")
    for compare in txn.compare:
        validate_compare(compare)
    for operation in (*txn.success, *txn.failure):
        if isinstance(operation, TxnOp):
            _validate_operations(operation, operations_max - operations)
        else:
            validate_operation(operation)


def validate_operation(operation: RangeOp | PutOp | DeleteOp) -> None:
    require_key(operation.key)
    if isinstance(operation, PutOp):
        require_integer("lease", operation.lease)
        if operation.ignore_value and operation.value:
            raise ValueProvided("a put that keeps the value of its key has a value")
        if operation.ignore_lease and operation.lease:
            raise LeaseProvided("a put that keeps the lease of its key has a lease")
    elif isinstance(operation, RangeOp):
        require_integer("limit", operation.limit)
        require_integer("revision", operation.revision)


def validate_compare(compare: Compare) -> None:
    require_key(compare.key)
    wants = bytes if compare.target is CompareTarget.VALUE else int
    if not isinstance(compare.operand, wants):
        raise InvalidRequest(
            f"a comparison of {compare.target.value} takes {wants.__name__}, not {type(compare.operand).__name__}"
        )


def require_key(key: bytes) -> None:
    if not key:
        raise KeyNotProvided("key is not provided")


def require_integer(name: str, number: int) -> None:
    if not 0 <= number <= INTEGER_MAX:
        raise InvalidRequest(f"{name} is {number}; it must be from 0 to {INTEGER_MAX}")


@dataclass(slots=True)
class _Writes:
    """What a branch may write: keys put, and ranges deleted."""

    puts: set[bytes]
    deletes: list[DeleteOp]


def _writes_of(operations: Sequence[Operation]) -> _Writes:
    """Raises InvalidRequest when a key is put twice, or both put and deleted, on one path through `operations`."""
    writes = _Writes(set(), [])
    for operation in operations:
        if isinstance(operation, PutOp):
            _merge(writes, _Writes({operation.key}, []))
        elif isinstance(operation, DeleteOp):
            _merge(writes, _Writes(set(), [operation]))
        elif isinstance(operation, TxnOp):
            # Only one of the two branches is taken, so they may write the same keys; what stands beside may not.
            success, failure = _writes_of(operation.success), _writes_of(operation.failure)
            _require_disjoint(writes, success)
            _require_disjoint(writes, failure)
            writes.puts |= success.puts | failure.puts
            writes.deletes += success.deletes + failure.deletes
    return writes


def _merge(writes: _Writes, more: _Writes) -> None:
    _require_disjoint(writes, more)
    writes.puts |= more.puts
    writes.deletes += more.deletes


def _require_disjoint(one: _Writes, other: _Writes) -> None:
    twice = one.puts & other.puts
    for puts, deletes in ((one.puts, other.deletes), (other.puts, one.deletes)):
        twice |= {key for key in puts for delete in deletes if is_in_range(key, delete.key, delete.range_end)}
    if twice:
        raise DuplicateKey(f"duplicate key given in a transaction: {min(twice)!r} is written twice")

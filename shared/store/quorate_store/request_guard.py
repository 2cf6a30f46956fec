"""What transaction guards a write with a request id, and what its answer says. Pure.

Theory of operation. For each request id there is at most one *marker*, a key under `REQUESTS_PREFIX`. A guarded write
is one transaction: if the marker is absent, do the write and put the marker; else read the marker. So whether the write
was done and whether it is remembered are one fact, at one revision, on every engine that has transactions; which of two
that come at once is the first is decided by the store's order, as for all writes.

The marker says what was asked (a digest) and which branch of a transaction was taken; its own revision says when. With
that and history the first answer can be made again (`past_answer`). It is put last, so that all operations before it
see and answer what they would without it; a transaction whose branch changes nothing is remembered too, and so makes a
revision.

The guard costs operations, and stores have a limit on these: each level of nesting may have as many as its parents have
left (etcd's `checkTxnRequest`). A list that would be too long is handed over in pairs: a nested transaction without
comparisons, whose siblings do not count.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec
from quorate_core.errors import Conflict, InvalidRequest, InvariantViolation

from quorate_store.model import (
    RANGE_ALL,
    RESERVED_PREFIX,
    TXN_OPERATIONS_MAX,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    KeyValue,
    Operation,
    OperationResult,
    PutOp,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
    prefix_end,
)

REQUESTS_PREFIX = RESERVED_PREFIX + b"requests/"
REQUEST_ID_BYTES_MAX = 128
"""In UTF-8. A UUID takes 36."""
MARKER_VERSION = 1
DIGEST_BYTES = 16
_MARKER_BYTES = 2 + DIGEST_BYTES
_PAIR = 2

Write = PutOp | DeleteOp | TxnOp

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Marker:
    """`succeeded`: the branch that a transaction took; True for a put and a delete."""

    digest: bytes
    succeeded: bool

    def encode(self) -> bytes:
        return bytes([MARKER_VERSION, self.succeeded]) + self.digest

    @classmethod
    def decode(cls, data: bytes) -> "Marker":
        """Raises Conflict for what this release has not written."""
        if len(data) != _MARKER_BYTES or data[0] != MARKER_VERSION:
            raise Conflict("the request id was used by a release that remembers requests in another way")
        return cls(data[2:], bool(data[1]))


def marker_key(request_id: str) -> bytes:
    """Raises InvalidRequest for an id that is empty, too long or no text."""
    try:
        name = request_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("the request id is no valid text") from error
    if not 1 <= len(name) <= REQUEST_ID_BYTES_MAX:
        raise InvalidRequest(f"a request id takes 1 to {REQUEST_ID_BYTES_MAX} bytes, and this one {len(name)}")
    return REQUESTS_PREFIX + name


def digest_of(write: Write) -> bytes:
    """Equal for equal writes, on every member."""
    return hashlib.blake2b(_encode(write), digest_size=DIGEST_BYTES).digest()


class Guard:
    """Of one write with one id. Raises InvalidRequest for a write that touches markers, or has no room for one."""

    def __init__(self, write: Write, request_id: str) -> None:
        self.write = write
        self.request_id = request_id
        self.key = marker_key(request_id)
        self.digest = digest_of(write)
        _require_apart(write)
        self._is_paired = False
        if isinstance(write, TxnOp):
            self._is_paired = _operations_counted(self.transaction(0)) > TXN_OPERATIONS_MAX
            if self._is_paired and _operations_counted(self.transaction(0)) > TXN_OPERATIONS_MAX:
                raise InvalidRequest(
                    "too many operations in one transaction with a request id, which takes up to three of the "
                    f"{TXN_OPERATIONS_MAX} that are the limit"
                )

    def transaction(self, lease: int) -> TxnOp:
        """The write, guarded; the marker goes when `lease` ends."""
        is_first = (Compare(self.key, CompareTarget.VERSION, CompareResult.EQUAL, 0),)
        return TxnOp(is_first, self._marked(lease), (RangeOp(self.key),))

    def marker_in(self, result: TxnResult) -> KeyValue | None:
        """What another attempt, or another request, has left; None when the write was done just now."""
        if result.succeeded:
            return None
        match result.results:
            case (RangeResult(kvs=(marker,)),):
                return marker
        raise InvariantViolation(f"the marker of request {self.request_id!r} was found, and could not be read")

    def answer_in(self, result: TxnResult) -> OperationResult:
        """The answer to the write that was done just now."""
        if not isinstance(self.write, TxnOp):
            return result.results[0]
        match result.results:
            case (TxnResult() as inner,):
                results = self._unpaired(inner.results[:-1])
                return TxnResult(result.revision, inner.succeeded, results)
        raise InvariantViolation(f"request {self.request_id!r} was answered with {len(result.results)} results")

    def _marked(self, lease: int) -> tuple[Operation, ...]:
        write = self.write
        if not isinstance(write, TxnOp):
            return write, self._marker(lease, succeeded=True)
        success = (*self._paired(write.success), self._marker(lease, succeeded=True))
        failure = (*self._paired(write.failure), self._marker(lease, succeeded=False))
        return (TxnOp(write.compare, success, failure),)

    def _marker(self, lease: int, *, succeeded: bool) -> PutOp:
        return PutOp(self.key, Marker(self.digest, succeeded).encode(), lease)

    def _paired(self, operations: Sequence[Operation]) -> Sequence[Operation]:
        if not self._is_paired:
            return operations
        pairs = range(0, len(operations), _PAIR)
        return [TxnOp((), tuple(operations[first : first + _PAIR])) for first in pairs]

    def _unpaired(self, results: tuple[OperationResult, ...]) -> tuple[OperationResult, ...]:
        if not self._is_paired:
            return results
        return tuple(chain.from_iterable(pair.results for pair in results if isinstance(pair, TxnResult)))


def _operations_counted(txn: TxnOp) -> int:
    """By etcd's rule: the longest list of each level, along the worst path."""
    nested = (_operations_counted(op) for op in (*txn.success, *txn.failure) if isinstance(op, TxnOp))
    return max(len(txn.compare), len(txn.success), len(txn.failure)) + max(nested, default=0)


def _require_apart(write: Operation) -> None:
    """What would change markers could make a request forgotten by itself."""
    match write:
        case PutOp(key=key) if _is_marked(key, b""):
            raise _touching()
        case DeleteOp(key=key, range_end=range_end) if _is_marked(key, range_end):
            raise _touching()
        case TxnOp(success=success, failure=failure):
            for operation in (*success, *failure):
                _require_apart(operation)


def _touching() -> InvalidRequest:
    return InvalidRequest(f"a write with a request id cannot change keys under {REQUESTS_PREFIX.decode()}")


def _is_marked(key: bytes, range_end: bytes) -> bool:
    """Whether a range has room for markers."""
    if not range_end:
        return key.startswith(REQUESTS_PREFIX)
    reaches_in = range_end == RANGE_ALL or range_end > max(key, REQUESTS_PREFIX)
    return reaches_in and key < prefix_end(REQUESTS_PREFIX)

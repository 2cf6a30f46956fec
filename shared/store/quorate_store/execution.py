"""Doing what was decided: a transaction's operations, in order, inside one LMDB transaction."""

import lmdb
from quorate_core.errors import InvariantViolation

from quorate_store.model import DeleteOp, DeleteResult, OperationResult, PutOp, PutResult, RangeOp, TxnResult
from quorate_store.mvcc import Mvcc, RevisionWriter, range_keys
from quorate_store.transactions import DecidedTxn


class Execution:
    """Does what was decided. Nothing here may fail for a reason that the command is to blame for."""

    def __init__(self, mvcc: Mvcc, txn: lmdb.Transaction, revision: int, writer: RevisionWriter | None = None) -> None:
        """`revision`: the store's, before. Without a `writer` only reads can be done."""
        self._mvcc = mvcc
        self._txn = txn
        self._revision = revision
        self._writer = writer

    def txn(self, decided: DecidedTxn) -> TxnResult:
        results = tuple([self._operation(operation) for operation in decided.operations])
        return TxnResult(self._present, decided.succeeded, results)

    @property
    def _present(self) -> int:
        return self._revision if self._writer is None else self._writer.present

    def _operation(self, operation: RangeOp | PutOp | DeleteOp | DecidedTxn) -> OperationResult:
        if isinstance(operation, PutOp):
            return self._put(operation)
        if isinstance(operation, RangeOp):
            return self._mvcc.range(self._txn, operation, self._present)
        if isinstance(operation, DeleteOp):
            return self._delete(operation)
        return self.txn(operation)

    def _put(self, op: PutOp) -> PutResult:
        writer = self._require_writer()
        value, lease = op.value, op.lease
        if op.ignore_value or op.ignore_lease:
            kept = self._mvcc.newest(self._txn, op.key)
            if kept is None:
                raise InvariantViolation(f"a put that keeps what {op.key!r} has was let through, and it has nothing")
            value = kept.value if op.ignore_value else value
            lease = kept.lease if op.ignore_lease else lease
        before = writer.put(op.key, value, lease)
        return PutResult(writer.present, before if op.previous else None)

    def _delete(self, op: DeleteOp) -> DeleteResult:
        writer = self._require_writer()
        gone = [writer.delete(key) for key in range_keys(self._mvcc, op.key, op.range_end)]
        return DeleteResult(writer.present, len(gone), tuple(gone) if op.previous else ())

    def _require_writer(self) -> RevisionWriter:
        if self._writer is None:
            raise InvariantViolation("a transaction that was taken for read-only writes")
        return self._writer

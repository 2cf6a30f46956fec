"""The state machine: log entries in, results out, everything of a batch in one LMDB transaction.

Deterministic: what an entry does depends on the entries before it and on nothing else (no clock, no settings, no
local files). A command that deserves an error gets it as its result, and has changed nothing. Any other failure is
terminal: memory and LMDB may disagree by then, so the machine refuses all further work, and the process must end; it
comes back from what LMDB and the log hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
from quorate_core.errors import InvariantViolation, QuorateError, QuotaExceeded
from quorate_raft.core.messages import Entry, EntryKind

from quorate_store.commands import (
    Command,
    Compact,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseRevoke,
    SetQuota,
    decode_command,
)
from quorate_store.database import MAP_BYTES_DEFAULT, Database, LeaseRow
from quorate_store.lease_table import LEASE_COST_BYTES, LeaseTable
from quorate_store.model import (
    DeleteOp,
    DeleteResult,
    Event,
    EventKind,
    KeyValue,
    LeaseStatus,
    OperationResult,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
)
from quorate_store.mvcc import Mvcc, RangeScan, RevisionWriter, load_index, range_keys, row_cost_bytes
from quorate_store.transactions import DecidedTxn, decide, flatten

PUT_OVERHEAD_BYTES = 64
"""What an encoded row has besides its key and its value, at most."""


@dataclass(slots=True)
class Applied:
    """What a batch has changed, for those who watch. `changes`: (revision, its events), oldest first."""

    revision: int = 0
    changes: list[tuple[int, list[Event]]] = field(default_factory=list)
    leases_granted: list[int] = field(default_factory=list)
    leases_ended: list[int] = field(default_factory=list)


AppliedListener = Callable[[Applied], None]


class MapFull(QuorateError):
    """LMDB's map has no room left. The quota should have refused puts long before: enlarge the map and restart."""


class StateMachine:
    """`quorate_raft.runtime.ports.StateMachine` on LMDB. Call `close` when done, or the files are not believed after
    a restart of the machine."""

    def __init__(self, folder: Path, *, map_bytes: int = MAP_BYTES_DEFAULT, boot_id: str | None = None) -> None:
        self._database = Database(folder, map_bytes, boot_id)
        self._meta = self._database.load_meta()
        index, attached = load_index(self._database)
        self.mvcc = Mvcc(self._database, self._meta, index)
        self.leases = LeaseTable(self._database)
        for key, lease in attached.items():
            self.leases.attach(lease, key)
        self._listeners: list[AppliedListener] = []
        self._applied = Applied()
        self._failure: BaseException | None = None

    def close(self) -> None:
        """Sync and close. After a failure the files are left as they are."""
        if self._failure is None:
            self._database.close()
        else:
            self._database.abandon()

    def add_applied_listener(self, listener: AppliedListener) -> None:
        """`listener` is called after every batch, in the same turn of the event loop. It must not raise."""
        self._listeners.append(listener)

    @property
    def applied_index(self) -> int:
        return self._meta.applied_index

    @property
    def applied_term(self) -> int:
        return self._meta.applied_term

    @property
    def revision(self) -> int:
        return self._meta.revision

    @property
    def compact_revision(self) -> int:
        return self._meta.compact_revision

    @property
    def quota_bytes(self) -> int:
        return self._meta.quota_bytes

    @property
    def logical_bytes(self) -> int:
        """What counts against the quota; equal on all members that have applied the same entries."""
        return self._meta.written_bytes - self._meta.reclaimed_bytes + self.leases.cost_bytes

    @property
    def used_bytes(self) -> int:
        """What this member's files really use."""
        return self._database.used_bytes

    def range(self, op: RangeOp) -> RangeResult:
        """Key-values as of now or `op.revision`, in one go. Raises Compacted or FutureRevision."""
        self._require_usable()
        self.mvcc.require_readable(op.revision)
        with self._database.read() as txn:
            return self.mvcc.range(txn, op, self._meta.revision)

    def live_count(self, key: bytes, range_end: bytes, limit: int = 0) -> int:
        """How many keys a range has now, at most `limit` (0: all). Costs a search."""
        count = self.mvcc.index.live_count(key, range_end)
        return min(count, limit) if limit else count

    def scan(self, op: RangeOp) -> "SlicedRange":
        """The same in slices, all of them as of the revision at which this was called."""
        self._require_usable()
        self.mvcc.require_readable(op.revision)
        return SlicedRange(self._database, RangeScan(self.mvcc, op, self._meta.revision))

    def read_txn(self, op: TxnOp) -> TxnResult:
        """Evaluate a transaction that only reads. Raises Compacted or FutureRevision."""
        self._require_usable()
        with self._database.read() as txn:
            decided = decide(op, lambda key, end: self._key_values(txn, key, end))
            self._require_possible(decided)
            return _Execution(self, self._database, txn).txn(decided)

    def events(
        self, start: int, key: bytes, range_end: bytes, *, previous: bool, rows_max: int
    ) -> tuple[list[Event], int]:
        """Past events of a range from revision `start` on, and the revision through which they are complete. Looks
        at about `rows_max` changes. Raises Compacted."""
        self._require_usable()
        with self._database.read() as txn:
            return self.mvcc.events(txn, start, key, range_end, previous=previous, rows_max=rows_max)

    def lease_status(self, lease: int, remaining_ttl_s: float, *, keys: bool) -> LeaseStatus:
        """Raises NotFound."""
        row = self.leases.require(lease)
        return LeaseStatus(lease, row.ttl_s, remaining_ttl_s, tuple(self.leases.keys(lease)) if keys else ())

    @property
    def is_swept(self) -> bool:
        return self.mvcc.is_swept

    def sweep(self, rows_max: int) -> None:
        """Free a slice of what compaction has made superfluous."""
        self._require_usable()
        try:
            with self._database.write() as txn:
                self.mvcc.sweep(txn, rows_max)
                self._database.save_meta(txn, self._meta)
        except BaseException as error:
            self._failure = error
            raise

    def apply(self, entries: Sequence[Entry]) -> Sequence[Any]:
        """Apply committed entries in order, all or none, together with the index of the last. Returns one result an
        entry: an operation's result, None, or the QuorateError that it deserved.

        Raises InvariantViolation for a gap or a command that cannot be read, MapFull when LMDB has no room, and
        StateUnusable when the disk has none.
        """
        self._require_usable()
        self._applied = Applied()
        try:
            with self._database.failing("write"), self._database.write() as txn:
                results = [self._apply_entry(txn, entry) for entry in entries]
                self._database.save_meta(txn, self._meta)
        except lmdb.MapFullError as error:
            self._failure = error
            raise MapFull("LMDB's map is full; give this member a larger one (map bytes) and restart it") from error
        except BaseException as error:
            self._failure = error
            raise
        self._applied.revision = self._meta.revision
        for listener in self._listeners:
            listener(self._applied)
        return results

    def _require_usable(self) -> None:
        if self._failure is not None:
            raise InvariantViolation(f"the state machine has failed and can only be reopened: {self._failure!r}")

    def _apply_entry(self, txn: lmdb.Transaction, entry: Entry) -> Any:
        meta = self._meta
        if entry.index != meta.applied_index + 1:
            raise InvariantViolation(f"entry {entry.index} was handed over; {meta.applied_index} was applied last")
        meta.applied_index, meta.applied_term = entry.index, entry.term
        if entry.kind is not EntryKind.NORMAL:
            return None
        command = decode_command(entry.data)
        try:
            return self._apply_command(txn, entry, command)
        except InvariantViolation:
            raise
        except QuorateError as error:
            return error

    def _apply_command(self, txn: lmdb.Transaction, entry: Entry, command: Command) -> Any:
        """Every QuorateError raised below is raised before anything is changed."""
        match command:
            case PutOp() | DeleteOp():
                return self._execute(txn, DecidedTxn(True, (command,))).results[0]
            case TxnOp():
                return self._execute(txn, decide(command, lambda key, end: self._key_values(txn, key, end)))
            case Compact(revision):
                return self.mvcc.compact(txn, revision)
            case SetQuota(quota_bytes):
                self._meta.quota_bytes = quota_bytes
                return None
            case _:
                return self._apply_lease_command(txn, entry, command)

    def _apply_lease_command(
        self,
        txn: lmdb.Transaction,
        entry: Entry,
        command: LeaseGrant | LeaseRevoke | LeaseExpire | LeaseCheckpoint,
    ) -> Any:
        match command:
            case LeaseGrant(lease, ttl_s):
                return self._grant(txn, lease, LeaseRow(ttl_s, entry.index))
            case LeaseRevoke(lease):
                self.leases.require(lease)
                return self._end_lease(txn, lease)
            case LeaseExpire(term, leases) if term == entry.term:
                for one in leases:
                    if self._is_incarnation(one.lease, one.generation):
                        self._end_lease(txn, one.lease)
            case LeaseCheckpoint(term, remaining) if term == entry.term:
                for left in remaining:
                    if self._is_incarnation(left.lease, left.generation):
                        self.leases.checkpoint(txn, left.lease, left.remaining_ms)
        return None

    def _execute(self, txn: lmdb.Transaction, decided: DecidedTxn) -> TxnResult:
        self._require_possible(decided)
        writer = RevisionWriter(self.mvcc, self._database, txn)
        result = _Execution(self, self._database, txn, writer).txn(decided)
        self._close_revision(writer)
        return result

    def _require_possible(self, decided: DecidedTxn) -> None:
        """Raises Compacted, FutureRevision, NotFound for a lease, QuotaExceeded, PayloadTooLarge."""
        growth_bytes = 0
        for operation in flatten(decided):
            if isinstance(operation, RangeOp):
                self.mvcc.require_readable(operation.revision)
            elif isinstance(operation, PutOp):
                if operation.lease:
                    self.leases.require(operation.lease)
                growth_bytes += row_cost_bytes(len(operation.key) + len(operation.value) + PUT_OVERHEAD_BYTES)
        if growth_bytes:
            self._require_quota(growth_bytes)

    def _require_quota(self, growth_bytes: int) -> None:
        if self.logical_bytes + growth_bytes > self._meta.quota_bytes:
            raise QuotaExceeded(
                f"the store holds {self.logical_bytes} bytes of a quota of {self._meta.quota_bytes}; "
                "delete keys and compact, or raise the quota"
            )

    def _grant(self, txn: lmdb.Transaction, lease: int, row: LeaseRow) -> LeaseStatus:
        if lease not in self.leases:
            self._require_quota(LEASE_COST_BYTES)
        self.leases.grant(txn, lease, row)
        self._applied.leases_granted.append(lease)
        return LeaseStatus(lease, row.ttl_s, float(row.ttl_s))

    def _is_incarnation(self, lease: int, generation: int) -> bool:
        row = self.leases.get(lease)
        return row is not None and row.generation == generation

    def _end_lease(self, txn: lmdb.Transaction, lease: int) -> int:
        writer = RevisionWriter(self.mvcc, self._database, txn)
        for key in self.leases.keys(lease):
            writer.delete(key)
        self.leases.remove(txn, lease)
        self._applied.leases_ended.append(lease)
        return self._close_revision(writer)

    def _close_revision(self, writer: RevisionWriter) -> int:
        revision = writer.close()
        if writer.events:
            for event in writer.events:
                self._move_lease(event)
            self._applied.changes.append((revision, writer.events))
        return revision

    def _move_lease(self, event: Event) -> None:
        before = 0 if event.previous is None else event.previous.lease
        after = event.kv.lease if event.kind is EventKind.PUT else 0
        if before != after:
            if before:
                self.leases.detach(before, event.kv.key)
            if after:
                self.leases.attach(after, event.kv.key)

    def _key_values(self, txn: lmdb.Transaction, key: bytes, range_end: bytes) -> list[KeyValue]:
        index = self.mvcc.index
        return [self.mvcc.key_value(txn, index.newest(found)) for found in index.live_keys(key, range_end)]


class SlicedRange:
    """A range read that is done a slice at a time."""

    def __init__(self, database: Database, scan: RangeScan) -> None:
        self._database = database
        self._scan = scan

    def step(self, keys_max: int) -> bool:
        """Look at up to `keys_max` keys; True when done. Raises Compacted when history went away meanwhile, and
        InvalidRequest when the answer grows over RANGE_BYTES_MAX."""
        self._scan.require_affordable()
        with self._database.read() as txn:
            return self._scan.step(txn, keys_max)

    def result(self) -> RangeResult:
        return self._scan.result()


class _Execution:
    """Does what was decided. Nothing here may fail for a reason that the command is to blame for."""

    def __init__(
        self, machine: StateMachine, database: Database, txn: lmdb.Transaction, writer: RevisionWriter | None = None
    ) -> None:
        self._mvcc = machine.mvcc
        self._txn = txn
        self._revision = machine.revision
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
        before = writer.put(op.key, op.value, op.lease)
        return PutResult(writer.present, before if op.previous else None)

    def _delete(self, op: DeleteOp) -> DeleteResult:
        writer = self._require_writer()
        gone = [writer.delete(key) for key in range_keys(self._mvcc, op.key, op.range_end)]
        return DeleteResult(writer.present, len(gone), tuple(gone) if op.previous else ())

    def _require_writer(self) -> RevisionWriter:
        if self._writer is None:
            raise InvariantViolation("a transaction that was taken for read-only writes")
        return self._writer

"""The state machine: log entries in, results out, everything of a batch in one LMDB transaction.

Deterministic: what an entry does depends on the entries before it and on nothing else (no clock, no settings, no
local files). A command that deserves an error gets it as its result, and has changed nothing. Any other failure is
terminal: memory and LMDB may disagree by then, so the machine refuses all further work, and the process must end; it
comes back from what LMDB and the log hold.

The whole state can be copied to a file beside the work that goes on, and be replaced by such a file: of this member, or
of another. What is long of that runs in a thread; the change itself is one step of the event loop, so that whoever
works there sees the one state or the other. A replaced state is given back in slices, by `sweep`.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec
import structlog
from quorate_core.errors import InvariantViolation, QuorateError, QuotaExceeded, SettingsError
from quorate_raft.core.messages import Entry, EntryKind

from quorate_store.commands import (
    READS_BOUNDED_FROM_VERSION,
    Command,
    Compact,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseRevoke,
    SetQuota,
    decode_command,
)
from quorate_store.database import MAP_BYTES_DEFAULT, Database, LeaseRow, StateUnusable
from quorate_store.execution import Execution
from quorate_store.generations import Generations
from quorate_store.lease_table import LEASE_COST_BYTES
from quorate_store.loading import LoadedState, load_state
from quorate_store.model import (
    DeleteOp,
    Event,
    EventKind,
    KeyValue,
    LeaseStatus,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    StateHash,
    TxnOp,
    TxnResult,
)
from quorate_store.mvcc import RangeScan, RevisionWriter, row_cost_bytes
from quorate_store.pacing import let_others_run
from quorate_store.read_budget import ReadBudget
from quorate_store.refusals import KeyNotFound
from quorate_store.retirement import RetiredState
from quorate_store.state_hash import hash_of_revisions, hash_of_state
from quorate_store.transactions import DecidedTxn, decide, flatten

PUT_OVERHEAD_BYTES = 64
"""What an encoded row has besides its key and its value, at most."""
RETIRED_MAX = 2
"""States that were replaced and not given back yet. Over that, the oldest goes at once: rather a pause than memory
without bound."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Applied:
    """What a batch has changed, for those who watch. `changes`: (revision, its events), oldest first."""

    revision: int = 0
    changes: list[tuple[int, list[Event]]] = field(default_factory=list)
    leases_granted: list[int] = field(default_factory=list)
    leases_ended: list[int] = field(default_factory=list)


AppliedListener = Callable[[Applied], None]
ReplacedListener = Callable[[], None]


class MapFull(QuorateError):
    """LMDB's map has no room left. The quota should have refused puts long before: enlarge the map and restart."""


class StateMachine:
    """`quorate_raft.runtime.ports.StateMachine` on LMDB. Call `close` when done, or the files are not believed after
    a restart of the machine."""

    def __init__(self, folder: Path, *, map_bytes: int = MAP_BYTES_DEFAULT, boot_id: str | None = None) -> None:
        """`boot_id` is the machine's own unless given. Raises StateUnusable, and SettingsError for another format."""
        self._map_bytes = map_bytes
        self._generations = Generations(folder, boot_id)
        self._adopt(load_state(Database(self._generations.open(), map_bytes)))
        self._staged: tuple[LoadedState, Path] | None = None
        """Made ready from a snapshot, in a generation's folder; becomes the state in one step, or never."""
        self._retired: deque[RetiredState] = deque()
        self._applied_listeners: list[AppliedListener] = []
        self._replaced_listeners: list[ReplacedListener] = []
        self._applied = Applied()
        self._failure: BaseException | None = None

    def _adopt(self, state: LoadedState) -> None:
        self._state = state
        self._database = state.database
        self._meta = state.meta
        self.mvcc = state.mvcc
        self.leases = state.leases

    def close(self) -> None:
        """Sync, close, and mark the files as whole. After a failure they are left as they are. Never raises for a disk
        that refuses: at worst the files are discarded after a restart of the machine, and rebuilt."""
        for retired in self._retired:
            retired.abandon()
        if self._failure is not None:
            if self._staged is not None:
                self._staged[0].database.abandon()
            self._database.abandon()
            return
        self._unstage()
        try:
            self._database.close()
            self._generations.mark_whole()
        except StateUnusable as error:
            log.warning("state_not_marked_as_whole", reason=error.detail)

    def abandon(self) -> None:
        """End as kill -9 would: nothing is synced, marked or removed."""
        self._failure = self._failure or InvariantViolation("the state machine was abandoned")
        self.close()

    def add_applied_listener(self, listener: AppliedListener) -> None:
        """`listener` is called after every batch, in the same turn of the event loop. It must not raise."""
        self._applied_listeners.append(listener)

    def add_replaced_listener(self, listener: ReplacedListener) -> None:
        """`listener` is called when a snapshot has become the state, in the same turn of the event loop: the revision
        is at least what it was, and what changed in between was told to nobody. It must not raise."""
        self._replaced_listeners.append(listener)

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

    @property
    def size_bytes(self) -> int:
        """What a snapshot takes."""
        return self._database.copy_bytes

    def state_hash(self) -> str:
        """Of the whole applied state: equal on members that have applied the same entries, however far each has swept,
        and whether or not it has taken snapshots over. Reads everything: a second for 500,000 keys."""
        self._require_usable()
        return hash_of_state(self._state)

    def revisions_hash(self, revision: int = 0) -> StateHash:
        """See `port.Store.hash`. For a thread; `apply` goes on beside it. Raises Unavailable, too, when the state is
        closed meanwhile."""
        self._require_usable()
        return hash_of_revisions(self._database, revision)

    def save_snapshot(self, path: Path) -> tuple[int, int]:
        """Write the state as of one applied index to `path`, which is not there yet; not synced. Returns the index and
        the term of the last entry in it. For a thread; `apply` goes on beside it.

        Raises StateUnusable, with nothing left at `path`, when the disk refuses it.
        """
        self._require_usable()
        return self._database.copy(path)

    def restore_snapshot(self, path: Path) -> Callable[[], None]:
        """Make everything ready from a snapshot, which stays as it is; for a thread, while nothing is applied. What is
        returned replaces the state, in one step; to be called on the event loop, or not at all.

        Raises StateUnusable for a file that is no snapshot of this release, or not of more than is applied already, and
        when the disk has no room; the state stays as it was then. It needs about the size of the snapshot on disk.
        """
        self._require_usable()
        self._unstage()
        folder = self._generations.stage(path)
        try:
            staged = self._load_staged(folder)
        except QuorateError as error:
            self._generations.unstage(folder)
            raise StateUnusable(f"the snapshot {path} cannot be taken over: {error.detail}") from error
        self._staged = staged, folder
        return lambda: self._replace(staged, folder)

    def _unstage(self) -> None:
        """What was made ready was not wanted in the end."""
        if self._staged is not None:
            (staged, folder), self._staged = self._staged, None
            staged.database.abandon()
            self._generations.unstage(folder)

    def _load_staged(self, folder: Path) -> LoadedState:
        database = Database(folder, self._map_bytes, is_copy=True)
        try:
            with database.failing("read"):
                state = load_state(database, let_others_run)
            if state.meta.applied_index <= self.applied_index or state.meta.revision < self.revision:
                raise StateUnusable(
                    f"it ends with entry {state.meta.applied_index} and revision {state.meta.revision}, and "
                    f"{self.applied_index} and {self.revision} is applied"
                )
            return state
        except BaseException as error:
            database.abandon()
            if isinstance(error, msgspec.MsgspecError | struct.error):
                raise StateUnusable(f"it cannot be read: {error}") from error
            if isinstance(error, SettingsError):
                raise StateUnusable("it has a format that this release does not know") from error
            raise

    def _replace(self, staged: LoadedState, folder: Path) -> None:
        self._require_usable()
        try:
            if self._staged is None or staged is not self._staged[0] or staged.meta.applied_index <= self.applied_index:
                raise InvariantViolation(
                    f"a snapshot of entry {staged.meta.applied_index} is to replace a state that has gone on to "
                    f"{self.applied_index} meanwhile, or another snapshot is to replace it"
                )
            before = self._generations.put_in_force(folder)
        except BaseException as error:
            self._failure = error
            raise
        self._retired.append(RetiredState(self._state, before))
        self._staged = None
        self._adopt(staged)
        for listener in self._replaced_listeners:
            listener()
        if len(self._retired) > RETIRED_MAX:
            self._retired.popleft().release_at_once()

    def range(self, op: RangeOp) -> RangeResult:
        """Key-values as of now or `op.revision`, in one go. Raises Compacted or FutureRevision."""
        self._require_usable()
        self.mvcc.require_readable(op.revision)
        return self._read(lambda txn: self.mvcc.range(txn, op, self._meta.revision))

    def live_count(self, key: bytes, range_end: bytes, limit: int = 0) -> int:
        """How many keys a range has now, at most `limit` (0: all). Costs a search."""
        count = self.mvcc.index.live_count(key, range_end)
        return min(count, limit) if limit else count

    def scan(self, op: RangeOp, *, is_counted: bool = True) -> "SlicedRange":
        """The same in slices, all of them as of the revision at which this was called. Unless `is_counted`, the count
        says no more than whether there is more than the limit lets through."""
        self._require_usable()
        self.mvcc.require_readable(op.revision)
        return SlicedRange(self, RangeScan(op, self._meta.revision, is_counted=is_counted))

    def step_scan(self, scan: RangeScan, keys_max: int) -> bool:
        """For SlicedRange."""
        self._require_usable()
        return self._read(lambda txn: scan.step(self.mvcc, txn, keys_max))

    def read_txn(self, op: TxnOp) -> TxnResult:
        """Evaluate a transaction that only reads. Raises Compacted or FutureRevision."""
        self._require_usable()

        def evaluate(txn: lmdb.Transaction) -> TxnResult:
            budget = ReadBudget()
            decided = self._decide(txn, op, budget)
            self._require_possible(txn, decided, budget)
            return Execution(self.mvcc, txn, self._meta.revision).txn(decided)

        return self._read(evaluate)

    def events(
        self, start: int, key: bytes, range_end: bytes, *, previous: bool, rows_max: int
    ) -> tuple[list[Event], int]:
        """Past events of a range from revision `start` on, and the revision through which they are complete. Looks
        at about `rows_max` changes. Raises Compacted."""
        self._require_usable()
        return self._read(
            lambda txn: self.mvcc.events(txn, start, key, range_end, previous=previous, rows_max=rows_max)
        )

    def _read(self, work: Callable[[lmdb.Transaction], T]) -> T:
        """NB: a refusal leaves without its traceback, whose frames would keep the transaction, and with it one of the
        few places for readers that LMDB has, for as long as somebody keeps the error."""
        try:
            with self._database.read() as txn:
                return work(txn)
        except QuorateError as error:
            refusal = error.with_traceback(None)
        del txn
        raise refusal

    def lease_status(self, lease: int, remaining_ttl_s: float, *, keys: bool) -> LeaseStatus:
        """Raises NotFound."""
        row = self.leases.require(lease)
        return LeaseStatus(lease, row.ttl_s, remaining_ttl_s, tuple(self.leases.keys(lease)) if keys else ())

    @property
    def is_swept(self) -> bool:
        """Nothing is left for `sweep`, or nothing that can be freed just now."""
        return self.mvcc.is_swept and (not self._retired or self._retired[0].is_busy)

    def sweep(self, rows_max: int) -> None:
        """Free a slice of what is not needed any more: states that were replaced, and what compaction has freed."""
        self._require_usable()
        if self._retired and not self._retired[0].is_busy:
            if self._retired[0].release(rows_max):
                self._retired.popleft()
            return
        try:
            with self._database.failing("write"), self._database.write() as txn:
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
        for listener in self._applied_listeners:
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
            case PutOp(ignore_value=False, ignore_lease=False):
                return self._put(txn, command)
            case PutOp() | DeleteOp():
                return self._execute(txn, DecidedTxn(True, (command,))).results[0]
            case TxnOp():
                budget = ReadBudget() if entry.data[0] >= READS_BOUNDED_FROM_VERSION else None
                return self._execute(txn, self._decide(txn, command, budget), budget)
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

    def _decide(self, txn: lmdb.Transaction, op: TxnOp, budget: ReadBudget | None) -> DecidedTxn:
        return decide(op, lambda key, end: self._key_values(txn, key, end, budget))

    def _execute(self, txn: lmdb.Transaction, decided: DecidedTxn, budget: ReadBudget | None = None) -> TxnResult:
        self._require_possible(txn, decided, budget)
        writer = RevisionWriter(self.mvcc, self._database, txn)
        result = Execution(self.mvcc, txn, self._meta.revision, writer).txn(decided)
        self._close_revision(writer)
        return result

    def _put(self, txn: lmdb.Transaction, op: PutOp) -> PutResult:
        """The same for a put alone: most entries are one, and the general way is half of their cost."""
        if op.lease:
            self.leases.require(op.lease)
        self._require_quota(_cost_bytes(op, len(op.value)))
        writer = RevisionWriter(self.mvcc, self._database, txn)
        before = writer.put(op.key, op.value, op.lease)
        return PutResult(self._close_revision(writer), before if op.previous else None)

    def _require_possible(self, txn: lmdb.Transaction, decided: DecidedTxn, budget: ReadBudget | None) -> None:
        """Raises Compacted, FutureRevision, NotFound for a lease, KeyNotFound, QuotaExceeded, and InvalidRequest for
        what is over the budget."""
        growth_bytes = 0
        for operation in flatten(decided):
            if isinstance(operation, RangeOp):
                self.mvcc.require_readable(operation.revision)
                if budget is not None:
                    self.mvcc.spend(txn, operation, budget)
            elif isinstance(operation, PutOp):
                value_bytes = len(operation.value)
                if operation.ignore_value or operation.ignore_lease:
                    kept_bytes = self._require_kept(txn, operation.key)
                    value_bytes = kept_bytes if operation.ignore_value else value_bytes
                if operation.lease:
                    self.leases.require(operation.lease)
                growth_bytes += _cost_bytes(operation, value_bytes)
        if growth_bytes:
            self._require_quota(growth_bytes)

    def _require_kept(self, txn: lmdb.Transaction, key: bytes) -> int:
        """The bytes of the value that `key` has. Raises KeyNotFound."""
        kept = self.mvcc.newest(txn, key)
        if kept is None:
            raise KeyNotFound(f"the key {key!r} is not there, so there is no value and no lease to keep")
        return len(kept.value)

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

    def _key_values(
        self, txn: lmdb.Transaction, key: bytes, range_end: bytes, budget: ReadBudget | None
    ) -> Iterator[KeyValue]:
        """One after the other, so that those behind a comparison that fails are not read."""
        index = self.mvcc.index
        for found in index.live_keys(key, range_end):
            kv = self.mvcc.key_value(txn, index.newest(found))
            if budget is not None:
                budget.spend(len(found) + len(kv.value))
            yield kv


def _cost_bytes(op: PutOp, value_bytes: int) -> int:
    """What a put counts against the quota, at most."""
    return row_cost_bytes(len(op.key) + value_bytes + PUT_OVERHEAD_BYTES)


class SlicedRange:
    """A range read that is done a slice at a time. When the state is replaced meanwhile, it goes on in the new one."""

    def __init__(self, machine: StateMachine, scan: RangeScan) -> None:
        self._machine = machine
        self._scan = scan

    def step(self, keys_max: int) -> bool:
        """Look at up to `keys_max` keys; True when done. Raises Compacted when history went away meanwhile, and
        InvalidRequest when the answer grows over RANGE_BYTES_MAX."""
        self._scan.require_affordable()
        return self._machine.step_scan(self._scan, keys_max)

    def result(self) -> RangeResult:
        return self._scan.result()

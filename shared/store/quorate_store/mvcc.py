"""Multi-version key-values: reads at any kept revision, writes of one revision at a time, compaction.

Compaction is logical and at once: it moves `compact_revision`, and takes what it frees off the byte count, by a
running total that every row carries. The rows themselves are swept away later and in slices, each member at its own
pace; nothing that a caller can ask for shows how far a member has come.

After compaction at C, every read at C or later, and every event at C or later, is as it was before.
"""

from collections.abc import Iterator, Sequence

import lmdb
from quorate_core.errors import Compacted, FutureRevision, InvalidRequest, InvariantViolation

from quorate_store.arrangement import arranged, whole_of
from quorate_store.database import Database, Meta, Row, RowHead
from quorate_store.key_index import (
    CHANGES_PER_REVISION_MAX,
    NOWHERE,
    KeyIndex,
    Position,
    is_deletion,
    is_in_range,
    main_of,
    position,
)
from quorate_store.model import Event, EventKind, KeyValue, RangeOp, RangeResult
from quorate_store.read_budget import ReadBudget

ROW_OVERHEAD_BYTES = 64
"""What a row costs besides its encoding: its key, LMDB's node, its place in the index."""
SLICE_BYTES_MAX = 4 * 1024 * 1024
"""Keys and values that a long range read takes at once, and at least one key."""
RANGE_BYTES_MAX = 256 * 1024 * 1024
"""Keys and values in the answer to one long range read."""
EVENTS_BYTES_MAX = 8 * 1024 * 1024
"""Keys and values in events that are read from history at once; one revision may hold more."""
_PAGE_BYTES = 4096
_INLINE_BYTES_MAX = 2000
"""LMDB stores longer rows on pages of their own (two rows at least fit on a shared one)."""


def row_cost_bytes(encoded_bytes: int) -> int:
    """What a row counts against the quota. Depends on nothing but its size, so that all members count alike."""
    if encoded_bytes > _INLINE_BYTES_MAX:
        encoded_bytes = -(-encoded_bytes // _PAGE_BYTES) * _PAGE_BYTES
    return encoded_bytes + ROW_OVERHEAD_BYTES


class Mvcc:
    """The index in memory over the rows in LMDB. Writes happen inside the caller's LMDB transaction."""

    def __init__(self, database: Database, meta: Meta, index: KeyIndex) -> None:
        self._database = database
        self.meta = meta
        self.index = index

    def require_readable(self, revision: int) -> None:
        """Raises Compacted or FutureRevision when the state at `revision` (0: now) cannot be read."""
        meta = self.meta
        if revision > meta.revision:
            raise FutureRevision(f"revision {revision} is in the future; the newest is {meta.revision}")
        if 0 < revision < meta.compact_revision:
            raise compacted(revision, meta.compact_revision)

    def key_value(self, txn: lmdb.Transaction, at: Position, *, keys_only: bool = False) -> KeyValue:
        row = self._database.row(txn, at)
        value = b"" if keys_only else row.value
        return KeyValue(row.key, value, row.create_revision, main_of(at), row.version, row.lease)

    def newest(self, txn: lmdb.Transaction, key: bytes) -> KeyValue | None:
        at = self.index.newest(key)
        return None if at == NOWHERE else self.key_value(txn, at)

    def range(self, txn: lmdb.Transaction, op: RangeOp, present: int) -> RangeResult:
        """The answer to `op`, which is known to be readable; `present` is the revision it is made at.

        Walks the whole range when it is in the past; see `RangeScan` for doing that in slices.
        """
        if op.arrangement is not None:
            return arranged(op, self.range(txn, whole_of(op), present))
        if op.revision in (0, present):
            return self._range_now(txn, op, present)
        scan = RangeScan(op, present)
        while not scan.step(self, txn, keys_max=2**31):
            pass
        return scan.result()

    def spend(self, txn: lmdb.Transaction, op: RangeOp, budget: ReadBudget) -> None:
        """Take off `budget` what reading `op` looks at. Raises InvalidRequest when that is too much."""
        index, database = self.index, self._database
        if op.revision in (0, self.meta.revision):
            if op.count_only:
                return
            limit = op.limit if op.arrangement is None else 0
            for key in index.live_keys(op.key, op.range_end, limit):
                budget.spend(len(key) if op.keys_only else database.row_bytes(txn, index.newest(key)))
            return
        for key in index.keys(op.key, op.range_end):
            at = NOWHERE if op.count_only or op.keys_only else index.at_revision(key, op.revision)
            budget.spend(len(key) if at == NOWHERE else database.row_bytes(txn, at))

    def _range_now(self, txn: lmdb.Transaction, op: RangeOp, present: int) -> RangeResult:
        count = self.index.live_count(op.key, op.range_end)
        if op.count_only or count == 0:
            return RangeResult(present, (), count)
        newest, key_value, keys_only = self.index.newest, self.key_value, op.keys_only
        keys = self.index.live_keys(op.key, op.range_end, op.limit)
        kvs = tuple([key_value(txn, newest(key), keys_only=keys_only) for key in keys])
        return RangeResult(present, kvs, count, count > len(kvs))

    def compact(self, txn: lmdb.Transaction, revision: int) -> None:
        """Forget what no read at `revision` or later needs. Raises Compacted or FutureRevision."""
        meta = self.meta
        if revision <= meta.compact_revision:
            raise compacted(revision, meta.compact_revision)
        self.require_readable(revision)
        last = self._database.last_row_of(txn, revision)
        if last is None and revision > 1:
            raise InvariantViolation(f"revision {revision} has no row, and {meta.compact_revision} was compacted last")
        meta.compact_revision = revision
        meta.reclaimed_bytes = 0 if last is None else last.superseded_bytes

    @property
    def is_swept(self) -> bool:
        return self.meta.swept_revision >= self.meta.compact_revision

    def sweep(self, txn: lmdb.Transaction, rows_max: int) -> None:
        """Remove rows that compaction has freed, after looking at about `rows_max`; `is_swept` says when all are
        gone. Visits only the revisions compacted since the last time: what a change superseded is its key's
        predecessor."""
        start, end = self.meta.swept_revision, self.meta.compact_revision
        doomed: dict[Position, bytes] = {}
        current, reached = start, end
        for visited, (main, sub, row) in enumerate(self._database.rows_from(txn, start)):
            if main > end:
                break
            if visited >= rows_max and main > current > start:
                reached = current
                break
            current = main
            at = position(main, sub, deleted=row.version == 0)
            earlier = self.index.predecessor(row.key, at)
            if earlier != NOWHERE:
                doomed[earlier] = row.key
            if row.version == 0 and main < end:
                doomed[at] = row.key
        for at, key in doomed.items():
            self._database.delete_row(txn, at)
            self.index.forget(key, at)
        self.meta.swept_revision = reached

    def events(
        self, txn: lmdb.Transaction, start: int, first: bytes, range_end: bytes, *, previous: bool, rows_max: int
    ) -> tuple[list[Event], int]:
        """Events of the range from revision `start` on, and the revision up to which these are all of them.

        Looks at about `rows_max` rows, and at whole revisions; at fewer when the events hold EVENTS_BYTES_MAX. Raises
        Compacted.
        """
        if start < self.meta.compact_revision:
            raise compacted(start, self.meta.compact_revision)
        found: list[Event] = []
        found_bytes = 0
        reached = start - 1
        for visited, (main, sub, row) in enumerate(self._database.rows_from(txn, start)):
            if (visited >= rows_max or found_bytes >= EVENTS_BYTES_MAX) and main > reached:
                return found, main - 1
            reached = main
            if is_in_range(row.key, first, range_end):
                found.append(self._event(txn, position(main, sub, deleted=row.version == 0), row, previous))
                found_bytes += found[-1].size_bytes
        return found, max(reached, self.meta.revision)

    def heads_from(self, txn: lmdb.Transaction, main: int, sub: int) -> Iterator[tuple[int, int, RowHead]]:
        """(main, sub, head) of the changes from this one on, oldest first. None of a revision after the compacted one
        is ever missing."""
        return self._database.heads_from(txn, main, sub)

    def _event(self, txn: lmdb.Transaction, at: Position, row: Row, previous: bool) -> Event:
        main = main_of(at)
        before = None
        if previous and main > self.meta.compact_revision:
            earlier = self.index.predecessor(row.key, at)
            if earlier != NOWHERE and not is_deletion(earlier):
                before = self.key_value(txn, earlier)
        if row.version == 0:
            return Event(EventKind.DELETE, KeyValue(row.key, b"", 0, main, 0), before)
        kv = KeyValue(row.key, row.value, row.create_revision, main, row.version, row.lease)
        return Event(EventKind.PUT, kv, before)


class RevisionWriter:
    """Writes the changes of the next revision. `close` makes it the store's revision if anything changed."""

    def __init__(self, mvcc: Mvcc, database: Database, txn: lmdb.Transaction) -> None:
        self._mvcc = mvcc
        self._database = database
        self._txn = txn
        self._main = mvcc.meta.revision + 1
        self._sub = 0
        self.events: list[Event] = []

    @property
    def present(self) -> int:
        """The revision that a read inside this transaction is made at."""
        return self._main if self.events else self._main - 1

    def put(self, key: bytes, value: bytes, lease: int) -> KeyValue | None:
        """Returns what was there before."""
        before = self._supersede(key)
        created, version = (self._main, 1) if before is None else (before.create_revision, before.version + 1)
        self._append(Row(key, version, created, lease, self._mvcc.meta.superseded_bytes, value))
        kv = KeyValue(key, value, created, self._main, version, lease)
        self.events.append(Event(EventKind.PUT, kv, before))
        return before

    def delete(self, key: bytes) -> KeyValue:
        """`key` must be alive. Returns what was there."""
        before = self._supersede(key)
        if before is None:
            raise InvariantViolation(f"deletion of the key {key!r}, which is not alive")
        meta = self._mvcc.meta
        meta.tombstone_bytes += self._append(Row(key, 0, superseded_bytes=meta.superseded_bytes))
        self.events.append(Event(EventKind.DELETE, KeyValue(key, b"", 0, self._main, 0), before))
        return before

    def close(self) -> int:
        """Returns the store's revision, which is a new one if anything was written."""
        if self.events:
            self._mvcc.meta.revision = self._main
        return self._mvcc.meta.revision

    def _supersede(self, key: bytes) -> KeyValue | None:
        meta, index = self._mvcc.meta, self._mvcc.index
        if not self.events:
            # The deletions of the revision before this one are superseded from here on.
            meta.superseded_bytes += meta.tombstone_bytes
            meta.tombstone_bytes = 0
        at = index.newest(key)
        if at == NOWHERE:
            return None
        row, encoded_bytes = self._database.sized_row(self._txn, at)
        meta.superseded_bytes += row_cost_bytes(encoded_bytes)
        return KeyValue(key, row.value, row.create_revision, main_of(at), row.version, row.lease)

    def _append(self, row: Row) -> int:
        if self._sub >= CHANGES_PER_REVISION_MAX:
            raise InvariantViolation(f"revision {self._main} has over {CHANGES_PER_REVISION_MAX} changes")
        at = position(self._main, self._sub, deleted=row.version == 0)
        cost_bytes = row_cost_bytes(self._database.put_row(self._txn, at, row))
        self._mvcc.index.record(row.key, at)
        self._mvcc.meta.written_bytes += cost_bytes
        self._sub += 1
        return cost_bytes


class PastCount:
    """How many keys of a range were alive at a revision, from how many are now: what was deleted since is added, and
    what was created since is taken off. It costs what has changed since, and not what the range holds, so that who
    reads page after page of one revision does not have everything behind a page counted for each."""

    def __init__(self, first: bytes, range_end: bytes, revision: int) -> None:
        self._first = first
        self._range_end = range_end
        self._next_row = (revision + 1, 0)
        self._visited = 0
        self._deleted_less_created = 0

    def is_too_long(self, mvcc: Mvcc) -> bool:
        """Whether more has changed since than is in the range: to walk the range is shorter then. What is still to be
        looked at has one change a revision at least."""
        left = mvcc.meta.revision + 1 - self._next_row[0]
        return self._visited + left > mvcc.index.live_count(self._first, self._range_end)

    def step(self, mvcc: Mvcc, txn: lmdb.Transaction, rows_max: int) -> int | None:
        """Look at up to `rows_max` changes; the count, or None when there are more."""
        for visited, (main, sub, head) in enumerate(mvcc.heads_from(txn, *self._next_row)):
            if visited == rows_max:
                self._visited += visited
                self._next_row = (main, sub)
                return None
            if is_in_range(head.key, self._first, self._range_end):
                self._deleted_less_created += (head.version == 0) - (head.version == 1)
        return mvcc.index.live_count(self._first, self._range_end) + self._deleted_less_created


class RangeScan:
    """A range read at a fixed revision in slices, so that a long one does not hold the event loop. Between slices
    the store may change, or be replaced by a snapshot, which holds the same at that revision. Only a compaction past it
    disturbs the read, and raises Compacted.

    It walks the keys of the range until it has those that are wanted. What is left to count is counted by what has
    changed since the revision (`PastCount`), or by walking on where that is shorter; or, unless `is_counted`, it is
    looked at no further than to know whether there is more.
    """

    def __init__(self, op: RangeOp, present: int, *, is_counted: bool = True) -> None:
        self._op = op
        self._is_counted = is_counted or op.count_only
        self._present = present
        self._revision = op.revision or present
        self._after: bytes | None = None
        self._kvs: list[KeyValue] = []
        self._bytes = 0
        self._count = 0
        self._past_count: PastCount | None = None
        if self._is_counted and op.range_end:
            self._past_count = PastCount(op.key, op.range_end, self._revision)

    def step(self, mvcc: Mvcc, txn: lmdb.Transaction, keys_max: int) -> bool:
        """Look at up to `keys_max` keys of what the store is now, or of its changes, fewer when they are large; True
        when that was the last of them."""
        if self._revision < mvcc.meta.compact_revision:
            raise compacted(self._revision, mvcc.meta.compact_revision)
        if self._past_count is not None and self._has_all_wanted:
            if not self._past_count.is_too_long(mvcc):
                return self._count_past(self._past_count, mvcc, txn, keys_max)
            self._past_count = None
        return self._walk(mvcc, txn, keys_max)

    @property
    def _has_all_wanted(self) -> bool:
        return self._op.count_only or 0 < self._op.limit <= len(self._kvs)

    def _count_past(self, past_count: PastCount, mvcc: Mvcc, txn: lmdb.Transaction, rows_max: int) -> bool:
        counted = past_count.step(mvcc, txn, rows_max)
        if counted is None:
            return False
        self._count = counted
        return True

    def _walk(self, mvcc: Mvcc, txn: lmdb.Transaction, keys_max: int) -> bool:
        op = self._op
        visited, bytes_before = 0, self._bytes
        for key in mvcc.index.keys(op.key, op.range_end, self._after):
            if visited == keys_max or self._bytes - bytes_before >= SLICE_BYTES_MAX:
                return False
            if self._past_count is not None and self._has_all_wanted:
                return False
            visited += 1
            self._after = key
            at = mvcc.index.at_revision(key, self._revision)
            if at == NOWHERE:
                continue
            self._count += 1
            if self._has_all_wanted:
                if not self._is_counted:
                    return True
            else:
                kv = mvcc.key_value(txn, at, keys_only=op.keys_only)
                self._kvs.append(kv)
                self._bytes += len(key) + len(kv.value)
        return True

    def require_affordable(self) -> None:
        """Raises InvalidRequest when what was read so far is over RANGE_BYTES_MAX."""
        if self._bytes > RANGE_BYTES_MAX:
            raise InvalidRequest(f"the range holds over {RANGE_BYTES_MAX} bytes; read it in parts, with a limit")

    def result(self) -> RangeResult:
        more = not self._op.count_only and self._count > len(self._kvs)
        return RangeResult(self._present, tuple(self._kvs), self._count, more)


def compacted(revision: int, compact_revision: int) -> Compacted:
    return Compacted(
        f"revision {revision} is compacted; the oldest that can be read is {compact_revision}",
        compact_revision=compact_revision,
    )


def range_keys(mvcc: Mvcc, key: bytes, range_end: bytes) -> Sequence[bytes]:
    """The keys alive in a range, as a list that stays the same while they are changed."""
    return list(mvcc.index.live_keys(key, range_end))

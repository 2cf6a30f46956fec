"""The log in memory: which entries there are, and how far they are handed out, durable, committed and applied.

    first_index … applied_index … applying_index … commit_index … last_index
    first_index … stable_index … handed_index … last_index

Invariants: indexes have no gap; terms never fall; `applied_index <= applying_index <= min(commit_index,
stable_index)`; `stable_index <= handed_index <= last_index`. What is committed is never cut.

The log stands on what is compacted away, or was never here since a snapshot took its place. `restore` begins it anew
after a snapshot; until that is taken over, only `applied_index` stays behind, which is before `first_index` then.
"""

from bisect import bisect_right
from collections.abc import Sequence

from quorate_core.errors import InvalidRequest, InvariantViolation

from quorate_raft.core.configurations import Configurations
from quorate_raft.core.membership import Membership, decode_membership
from quorate_raft.core.messages import Entry, EntryKind, HardState, SnapshotMeta

ENTRY_OVERHEAD_BYTES = 32
"""What an entry costs on the wire beside its data, rounded up."""


def _term_of(entry: Entry) -> int:
    return entry.term


class RaftLog:
    """`previous_index` and `previous_term` stand for all that is compacted away: 0 and 0 for nothing."""

    __slots__ = (
        "_base_bytes", "_ends_bytes", "_entries", "applied_index", "applying_index", "commit_index", "configurations",
        "handed_index", "previous_index", "previous_term", "stable_index",
    )  # fmt: skip

    def __init__(self, base: SnapshotMeta, entries: Sequence[Entry], hard_state: HardState, applied_index: int) -> None:
        """`entries` are durable; they go on after `base`, or begin before it and hold its entry too.

        Raises InvariantViolation when they end before what was applied, do not hold what the base says, or the state
        machine lacks what is in the base; InvalidRequest when they leave a gap after it.
        """
        self.previous_index = base.index
        self.previous_term = base.term
        if entries and entries[0].index <= base.index:
            # Of the first entry that is kept only the place is of use: the term before it is not known any more.
            self.previous_index, self.previous_term = entries[0].index, entries[0].term
            entries = entries[1:]
        self._entries: list[Entry] = []
        self._ends_bytes: list[int] = []
        self._base_bytes = 0
        self.configurations = Configurations(base.index, base.membership)
        self.commit_index = self.stable_index = self.handed_index = 0
        self.extend(entries)
        _require_whole(self, base, applied_index)
        self.handed_index = self.stable_index = self.last_index
        # The hint may be ahead of a log whose torn tail was cut, and behind what was applied.
        self.commit_index = max(applied_index, min(hard_state.commit, self.last_index))
        self.applied_index = self.applying_index = applied_index
        self.configurations.settle(self.commit_index)

    @property
    def first_index(self) -> int:
        return self.previous_index + 1

    @property
    def last_index(self) -> int:
        return self.previous_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.previous_term

    @property
    def membership(self) -> Membership:
        """The newest configuration, which is in force."""
        return self.configurations.newest

    @property
    def unapplied_bytes(self) -> int:
        """The size of all entries after `applied_index`."""
        return self.size_bytes(self.applied_index + 1, self.last_index)

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None when it is compacted away or not there yet."""
        if index == self.previous_index:
            return self.previous_term
        offset = index - self.first_index
        return self._entries[offset].term if 0 <= offset < len(self._entries) else None

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as complete as this one (paper, section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Append `entries`, which continue the log. Raises InvalidRequest when they do not, or cannot be read."""
        if entries:
            _require_consecutive(entries, self.last_index + 1, self.last_term)
            self._put(entries)

    def append(self, entry: Entry) -> None:
        """Append the one entry that its leader just made: `extend` without the checks, since this path is hot. Not for
        a configuration."""
        ends_bytes = self._ends_bytes
        end_bytes = ends_bytes[-1] if ends_bytes else self._base_bytes
        ends_bytes.append(end_bytes + len(entry.data) + ENTRY_OVERHEAD_BYTES)
        self._entries.append(entry)

    def accept(self, previous_index: int, previous_term: int, entries: Sequence[Entry]) -> int | None:
        """Take over a leader's entries (paper, figure 2, AppendEntries 2 to 4).

        Returns the last index that is now known to agree, or None when the log does not hold the previous entry.
        Only a conflict cuts the log: a late, shorter request never takes away what a newer one brought.
        """
        if self.term_at(previous_index) != previous_term:
            return None
        if entries:
            _require_consecutive(entries, previous_index + 1, previous_term)
            known = 0
            if previous_index < self.last_index:
                known = self._count_agreeing(entries)
            if known < len(entries):
                self._put(entries[known:] if known else entries)
        return previous_index + len(entries)

    def slice(self, start_index: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from `start_index` on, up to `bytes_max` bytes, and at least one when there is one.

        Raises InvariantViolation for one that is compacted away.
        """
        start = start_index - self.first_index
        if start < 0:
            raise InvariantViolation(f"entry {start_index} is compacted away; the log starts at {self.first_index}")
        end = bisect_right(self._ends_bytes, self._end_bytes(start - 1) + bytes_max, lo=start)
        return tuple(self._entries[start : max(end, start + 1)])

    def size_bytes(self, first_index: int, last_index: int) -> int:
        """The size of the entries from `first_index` to `last_index`, both included."""
        return self._end_bytes(last_index - self.first_index) - self._end_bytes(first_index - 1 - self.first_index)

    def last_index_not_above(self, term: int, index_max: int) -> int:
        """The last index up to `index_max` whose entry's term is not above `term`, for fast backtracking."""
        end = min(index_max, self.last_index) - self.previous_index
        if end <= 0:
            return min(index_max, self.previous_index)
        return self.previous_index + bisect_right(self._entries, term, hi=end, key=_term_of)

    def commit_to(self, index: int) -> bool:
        """Raise `commit_index`; says whether it rose. Raises InvariantViolation past the end of the log."""
        if index <= self.commit_index:
            return False
        if index > self.last_index:
            raise InvariantViolation(f"entry {index} is said to be committed, but the log ends at {self.last_index}")
        self.commit_index = index
        if 0 < self.configurations.unsettled_index <= index:
            self.configurations.settle(index)
        return True

    def has_unstable(self) -> bool:
        return self.handed_index < self.last_index

    def take_unstable(self) -> tuple[Entry, ...]:
        """Entries that nobody has begun to make durable. The caller says by `mark_stable` when they are."""
        entries = tuple(self._entries[self.handed_index - self.previous_index :])
        self.handed_index = self.last_index
        return entries

    def mark_stable(self) -> None:
        """What was taken, and not been cut since, is durable."""
        self.stable_index = self.handed_index

    def has_committed_to_apply(self) -> bool:
        return self.applying_index < min(self.commit_index, self.stable_index)

    def take_committed(self, entries_max: int) -> tuple[Entry, ...]:
        """The next committed entries to apply, only those that this member has made durable itself."""
        end_index = min(self.commit_index, self.stable_index, self.applying_index + entries_max)
        start = self.applying_index - self.previous_index
        entries = tuple(self._entries[start : end_index - self.previous_index])
        self.applying_index += len(entries)
        return entries

    def mark_applied(self, index: int) -> None:
        if not self.applied_index <= index <= self.applying_index:
            raise InvariantViolation(
                f"entry {index} is said to be applied, outside of {self.applied_index} to {self.applying_index}"
            )
        self.applied_index = index

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`, all of which are applied. What stays is not copied, only moved up."""
        if index > self.applied_index:
            raise InvariantViolation(f"entry {index} would be forgotten, but only {self.applied_index} is applied")
        dropped = index - self.previous_index
        if dropped <= 0:
            return
        self.previous_index, self.previous_term = index, self._entries[dropped - 1].term
        self._base_bytes = self._ends_bytes[dropped - 1]
        del self._entries[:dropped]
        del self._ends_bytes[:dropped]
        self.configurations.forget_before(index)

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Begin anew after `snapshot`, which is ahead of what is known to be committed here. Nothing after it is handed
        out to be applied before it is durable; `mark_restored` says that the state machine has the snapshot.
        """
        if snapshot.index <= self.commit_index:
            raise InvariantViolation(f"a snapshot of entry {snapshot.index} would undo {self.commit_index}")
        self.previous_index, self.previous_term = snapshot.index, snapshot.term
        self._entries.clear()
        self._ends_bytes.clear()
        self._base_bytes = 0
        self.commit_index = self.applying_index = self.stable_index = self.handed_index = snapshot.index
        self.configurations = Configurations(snapshot.index, snapshot.membership)

    def mark_restored(self, index: int) -> None:
        """The state machine has the state of the snapshot at `index`."""
        self.applied_index = max(self.applied_index, index)

    def _put(self, entries: Sequence[Entry]) -> None:
        """Put `entries` in place of all from the first one's index on. If one cannot be read, nothing has changed."""
        first_index = entries[0].index
        end_bytes = self._end_bytes(first_index - 1 - self.first_index)
        ends_bytes = []
        configurations = []
        for entry in entries:
            end_bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES
            ends_bytes.append(end_bytes)
            if entry.kind is EntryKind.MEMBERSHIP:
                configurations.append((entry.index, decode_membership(entry.data)))
        self._cut_from(first_index)
        self._entries += entries
        self._ends_bytes += ends_bytes
        for index, membership in configurations:
            self.configurations.add(index, membership)

    def _count_agreeing(self, entries: Sequence[Entry]) -> int:
        for count, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                return count
        return len(entries)

    def _cut_from(self, index: int) -> None:
        if index > self.last_index:
            return
        if index <= self.commit_index:
            raise InvariantViolation(f"entry {index} is committed up to {self.commit_index} and would be overwritten")
        del self._entries[index - self.first_index :]
        del self._ends_bytes[index - self.first_index :]
        self.handed_index = min(self.handed_index, index - 1)
        self.stable_index = min(self.stable_index, index - 1)
        self.configurations.cut_from(index)

    def _end_bytes(self, offset: int) -> int:
        return self._ends_bytes[offset] if offset >= 0 else self._base_bytes


def _require_consecutive(entries: Sequence[Entry], first_index: int, term_min: int) -> None:
    last_index = first_index + len(entries) - 1
    if entries[0].index != first_index or entries[-1].index != last_index:
        raise InvalidRequest(f"entries {entries[0].index} to {entries[-1].index} do not continue at {first_index}")
    if entries[0].term < term_min or entries[-1].term < entries[0].term:
        raise InvalidRequest(f"entries from {first_index} on have terms that fall below {term_min}")


def _require_whole(log: RaftLog, base: SnapshotMeta, applied_index: int) -> None:
    if applied_index > log.last_index:
        raise InvariantViolation(
            f"the log ends at {log.last_index}, but the state machine has applied {applied_index}: "
            "entries that were durable are missing"
        )
    if applied_index < base.index:
        raise InvariantViolation(
            f"the log stands on a snapshot of entry {base.index}, but the state machine has applied only "
            f"{applied_index}: the snapshot is to be restored first"
        )
    if log.term_at(base.index) != base.term:
        raise InvariantViolation(
            f"entry {base.index} is of term {log.term_at(base.index)}, but of {base.term} in the snapshot"
        )

"""Reading the write-ahead log after a start: what it holds, whether it is whole, and where it goes on.

Nothing is changed here. `Replay` reads the header of the newest segment, which says where the log begins, and then each
segment from that one on, one in memory at a time. What can and what cannot be told apart is written down in `wal`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from quorate_core.errors import SettingsError

from quorate_raft.core.messages import Entry, HardState, MemberName, SnapshotMeta
from quorate_raft.runtime.ports import Disk
from quorate_raft.runtime.wal_records import (
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    PREFIX_BYTES,
    Batch,
    SegmentHeader,
    checksum_of,
    decode_batch,
    decode_format_version,
    decode_header,
    decode_record,
    find_record,
)

FORMAT_VERSION = 2
SEGMENT_FILE_BYTES_MAX = HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX + 2 * PREFIX_BYTES
"""No segment is larger: one record that is too large for a segment has one for itself."""


class DamagedLog(SettingsError):
    """The log is damaged, or ends, where it was acknowledged. Starting again without a change is useless."""


@dataclass(frozen=True, slots=True)
class WalIdentity:
    cluster_id: str
    member: MemberName


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a member remembered. `entries` go on right after `base`, or begin before it: those are for slow followers.
    `cut_bytes` were a torn tail."""

    hard_state: HardState
    base: SnapshotMeta
    entries: list[Entry]
    cut_bytes: int

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.base.index

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None when there is none here."""
        if index == self.base.index:
            return self.base.term
        offset = index - self.entries[0].index if self.entries else -1
        return self.entries[offset].term if 0 <= offset < len(self.entries) else None


@dataclass(slots=True)
class LogEnd:
    """Where the log ends, and so what the next record or segment goes on from."""

    base: SnapshotMeta
    hard_state: HardState = field(default_factory=HardState)
    sequence: int = 0
    first_sequence: int = 1
    seed: int = 0
    checksum: int = 0
    size_bytes: int = 0
    """Of the newest segment, up to the end of its last record."""
    holds_batches: bool = False


@dataclass(slots=True)
class LogExtent:
    """Which entries there are, and in which segments: enough to know what may go.

    `last_index` is the base's when there are none after it. `last_by_segment`: of every segment, oldest first, the
    index of the last entry in it, which may be overwritten by a later segment; 0 without one.
    """

    last_index: int
    last_by_segment: dict[int, int] = field(default_factory=dict)
    _terms: list[tuple[int, int]] = field(default_factory=list)
    """The first index of each run of entries of one term, and that term; both only rise."""

    def term_at(self, index: int) -> int | None:
        if not index <= self.last_index:
            return None
        return next((term for first, term in reversed(self._terms) if first <= index), None)

    def extend(self, entries: Sequence[Entry], sequence: int) -> None:
        """Take in a batch, which overwrites everything from its first index on."""
        first, last = entries[0], entries[-1]
        terms = self._terms
        while terms and terms[-1][0] >= first.index:
            terms.pop()
        # Terms only rise, so that the ends of a batch say whether there is anything to look for in between.
        for entry in (first,) if first.term == last.term else entries:
            if not terms or terms[-1][1] != entry.term:
                terms.append((entry.index, entry.term))
        self.last_index = last.index
        self.last_by_segment[sequence] = last.index

    def forget_before(self, index: int) -> None:
        """Terms of entries before `index` will not be asked for again."""
        while len(self._terms) > 1 and self._terms[1][0] <= index:
            del self._terms[0]

    def begin_anew(self, last_index: int) -> None:
        """All entries are void; the segments are still there."""
        self.last_index = last_index
        self._terms.clear()


class Replay:
    """What was read. `left_over` are segments that do not belong to the log any more, oldest first; `torn_bytes` come
    after the end of the last one."""

    def __init__(self, disk: Disk, identity: WalIdentity, names: Sequence[str], file_bytes_max: int) -> None:
        """`names` are those of the segments, in order, and at least one. Raises DamagedLog, or SettingsError for
        somebody else's log or another format."""
        self._disk = disk
        self._identity = identity
        self._file_bytes_max = max(file_bytes_max, SEGMENT_FILE_BYTES_MAX)
        newest = self._newest_header(names[-1])
        first_name = segment_name(newest.first_sequence)
        self.left_over = [name for name in names if name < first_name]
        self.end = LogEnd(newest.base, sequence=newest.first_sequence - 1, first_sequence=newest.first_sequence)
        self.extent = LogExtent(newest.base.index)
        self.entries: list[Entry] = []
        self.torn_bytes = 0
        self._newest_name = names[-1]
        for name in names[len(self.left_over) :]:
            self._read_segment(name)
        self._require_contiguous(names[len(self.left_over)])

    def require_reaching(self, applied_index: int) -> None:
        """The state machine has applied so much of this log, so it was there."""
        last_index, end = self.extent.last_index, self.end
        if last_index >= applied_index:
            return
        torn = f"; {self.torn_bytes} bytes after it cannot be read" if self.torn_bytes else ""
        raise DamagedLog(
            f"the log is damaged: it ends at entry {last_index}, {self._newest_name} at offset {end.size_bytes}{torn}, "
            f"but the state beside it has applied {applied_index}. Entries that were acknowledged are missing"
        )

    def recovered(self) -> Recovered:
        return Recovered(self.end.hard_state, self.end.base, self.entries, self.torn_bytes)

    def _newest_header(self, name: str) -> SegmentHeader:
        header, _, _ = self._header_of(name, memoryview(self._disk.read(name, 0, HEADER_BYTES_MAX + PREFIX_BYTES)))
        if segment_name(header.sequence) != name:
            raise DamagedLog(f"the log is damaged: {name} is {segment_name(header.sequence)} under another name")
        return header

    def _header_of(self, name: str, data: memoryview) -> tuple[SegmentHeader, int, memoryview]:
        """The header, the checksum of the record before it, and its own bytes."""
        found = decode_record(data, 0, 0)
        if found is None:
            # A segment is written aside and renamed when its header is durable, so this is no torn write.
            raise DamagedLog(f"the log is damaged: {name} has no readable header at offset 0")
        previous, payload = found
        try:
            version = decode_format_version(payload).format_version
            if version != FORMAT_VERSION:
                raise SettingsError(f"{name} has format {version}; this version reads {FORMAT_VERSION} only")
            header = decode_header(payload)
        except msgspec.MsgspecError as error:
            raise DamagedLog(f"the log is damaged: the header of {name} at offset 0 makes no sense") from error
        own = self._identity
        if (header.cluster_id, header.member) != (own.cluster_id, own.member):
            raise SettingsError(
                f"this data folder belongs to member {header.member!r} of cluster {header.cluster_id!r}, and this "
                f"process is member {own.member!r} of cluster {own.cluster_id!r}: choose another folder"
            )
        return header, previous, payload

    def _read_segment(self, name: str) -> None:
        size_bytes = self._disk.size_bytes(name)
        if size_bytes > self._file_bytes_max:
            raise DamagedLog(f"the log is damaged: {name} has {size_bytes} bytes, more than any segment")
        data = self._disk.read(name, 0, size_bytes)
        view = memoryview(data)
        offset = self._begin_segment(name, view)
        while (record := decode_record(view, offset, self.end.seed)) is not None:
            offset = self._take_in(name, offset, *record)
        self.end.size_bytes = offset
        if data.endswith(bytes(len(data) - offset)):
            return  # what was set aside, and never written
        self.torn_bytes = len(data.rstrip(b"\0")) - offset
        found = find_record(data, offset + 1, self.end.seed)
        if found is not None:
            after = f"a whole record {'follows' if found.is_checked else 'may follow'} at {found.offset}"
        elif name != self._newest_name:
            after = "it is not the last segment"
        else:
            return  # torn
        raise DamagedLog(
            f"the log is damaged: {name} at offset {offset}; {after}. Entries that were acknowledged are unreadable"
        )

    def _begin_segment(self, name: str, data: memoryview) -> int:
        """Check the header; returns the offset after it."""
        header, previous, payload = self._header_of(name, data)
        end = self.end
        expected = end.sequence + 1
        if header.sequence != expected or name != segment_name(expected):
            raise DamagedLog(f"the log is damaged: {segment_name(expected)} is missing, {name} comes in its place")
        # The segment before the first one may be gone, and its last checksum with it.
        if previous != end.checksum and expected > end.first_sequence:
            raise DamagedLog(f"the log is damaged: {name} at offset 0 does not continue the segment before it")
        end.sequence, end.seed, end.hard_state = header.sequence, header.seed, header.hard_state
        end.checksum = checksum_of(payload, previous, 0)
        end.holds_batches = False
        self.extent.last_by_segment[header.sequence] = 0
        return PREFIX_BYTES + len(payload)

    def _take_in(self, name: str, offset: int, previous: int, payload: memoryview) -> int:
        """Take in the batch at `offset`; returns where it ends."""
        end = self.end
        if previous != end.checksum:
            raise DamagedLog(f"the log is damaged: {name} at offset {offset} does not continue the record before it")
        try:
            batch = decode_batch(payload)
        except msgspec.MsgspecError as error:
            raise DamagedLog(f"the log is damaged: the record of {name} at offset {offset} makes no sense") from error
        if batch.entries:
            self._take_in_entries(name, offset, batch)
        if batch.hard_state is not None:
            end.hard_state = batch.hard_state
        end.holds_batches = True
        end.checksum = checksum_of(payload, previous, end.seed)
        return offset + PREFIX_BYTES + len(payload)

    def _take_in_entries(self, name: str, offset: int, batch: Batch) -> None:
        first_index, entries = batch.entries[0].index, self.entries
        expected = entries[-1].index + 1 if entries else None
        if first_index < 1 or (expected is not None and first_index > expected):
            raise DamagedLog(
                f"the log is damaged: {name} at offset {offset} has entry {first_index} after {(expected or 1) - 1}"
            )
        if batch.entries[-1].index != first_index + len(batch.entries) - 1:
            raise DamagedLog(f"the log is damaged: {name} at offset {offset} has entries that do not follow each other")
        if entries:
            # Entries before the first that is here went with a segment: then there is nothing to keep.
            del entries[max(first_index - entries[0].index, 0) :]
        entries += batch.entries
        self.extent.extend(batch.entries, self.end.sequence)

    def _require_contiguous(self, first_name: str) -> None:
        """The entries must reach back to the base, and the base must be what they say of it."""
        base, entries = self.end.base, self.entries
        if not entries:
            return
        first_index, last_index = entries[0].index, entries[-1].index
        if first_index > base.index + 1:
            raise DamagedLog(
                f"the log is damaged: {first_name} begins with entry {first_index}, and the snapshot before it ends at "
                f"{base.index}. Entries between them are missing"
            )
        if last_index < base.index:
            raise DamagedLog(
                f"the log is damaged: it ends at entry {last_index}, {self._newest_name} at offset "
                f"{self.end.size_bytes}, and has a snapshot up to {base.index} already"
            )
        if first_index <= base.index and entries[base.index - first_index].term != base.term:
            raise DamagedLog(
                f"the log is damaged: entry {base.index} is of term {entries[base.index - first_index].term}, and of "
                f"term {base.term} in the snapshot ({self._newest_name})"
            )


def segment_name(sequence: int) -> str:
    return f"wal-{sequence:016d}.log"

"""The write-ahead log: what a member has promised to remember.

Theory of operation. Segments `wal-<sequence>.log` hold records one after the other (`wal_records`), the first of a
segment being its header. A batch (entries, and the hard state if that has changed) is one record, one append and one
sync, and the next is not begun before it is synced. A segment is set aside as a whole when it begins, with zeros, so
that a full disk shows then, and so that an append changes no file's size. It is written aside, synced and renamed, so
that its header is there or the segment is not.

The log stands on a *base*: everything up to the entry `base.index` is in a snapshot. `rebase` begins a segment whose
header has the new base and says which segment the log begins with now; as soon as that header is durable, older
segments are left over, and are removed. A crash in between leaves them there, and the next start removes them. Entries
before the base may be kept for slow followers. If the log does not hold the base's entry, a snapshot was installed over
a log that led elsewhere: the new segment is then the only one, and all entries before are void.

What can be told apart after a crash (Alagappan and others, "Protocol-Aware Recovery for Consensus-Based Storage",
FAST '18). Only the last record can be torn, as nothing was written after it, and it was never acknowledged. Of it, the
disk can hold anything: a beginning, a beginning with zeros for the rest, a late sector without an early one. So:

- Zeros up to the end of the segment are its clean end.
- Anything else that is no whole record is a torn one, if no whole record follows anywhere and the segment is the last:
  it is overwritten with zeros, and reported.
- Everything else is a damage to what was acknowledged, and the member refuses to start, naming file and offset: a
  record before a whole one; a checksum that does not continue the chain; a segment that is missing; entries that do not
  reach back to the base.

What cannot be told apart: a damage within the last record that was acknowledged looks like a torn one, and if that was
zeroed, or the last segments were removed, like a clean end. Nothing in the log comes after it to witness. Two things
do witness: the state machine has applied nearly all of it (`applied_index`, checked before anything is changed), and a
majority has the entries, though the member's own vote may be lost.

All of this blocks: it runs in the disk's thread.
"""

import contextlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import structlog
from quorate_core.errors import InvariantViolation, SettingsError

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, HardState, SnapshotMeta
from quorate_raft.core.state import RandomBelow
from quorate_raft.runtime.disk import ASIDE_SUFFIX, DiskFailed
from quorate_raft.runtime.ports import Disk, DiskFile
from quorate_raft.runtime.wal_records import (
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    PREFIX_BYTES,
    SEED_BELOW,
    Batch,
    SegmentHeader,
    encode_payload,
    encode_record,
)
from quorate_raft.runtime.wal_recovery import (
    FORMAT_VERSION,
    DamagedLog,
    LogEnd,
    LogExtent,
    Recovered,
    Replay,
    WalIdentity,
    segment_name,
)

__all__ = ["DamagedLog", "Recovered", "Wal", "WalIdentity", "holds_log", "open_wal"]

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
"""A segment is set aside with so many bytes, and closed when the next record would not fit. Smaller than etcd's 64 MiB,
so that the log that is kept beside a snapshot stays short."""

_SEGMENT_PATTERN = "wal-*.log"
_SNAPSHOT_PATTERN = "snapshot-*.json"

log = structlog.get_logger(__name__)


class Wal:
    """Open for appending. Made by `open_wal`. An error of its methods is final: the log must not be used again."""

    def __init__(
        self,
        disk: Disk,
        identity: WalIdentity,
        random_below: RandomBelow,
        segment_bytes_max: int,
        end: LogEnd,
        extent: LogExtent,
    ) -> None:
        self._disk = disk
        self._identity = identity
        self._random_below = random_below
        self._segment_bytes_max = segment_bytes_max
        self._end = end
        self._extent = extent
        self._file: DiskFile | None = None

    @property
    def last_index(self) -> int:
        """Of the last entry; the base's when there is none after it."""
        return self._extent.last_index

    @property
    def base(self) -> SnapshotMeta:
        return self._end.base

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Returns when both are durable. The first entry overwrites everything from its index on; raises
        InvariantViolation, before anything is written, when it would leave a gap or overwrite what a snapshot holds."""
        end = self._end
        self._require_open()
        self._require_appendable(entries)
        payload = encode_payload(Batch(hard_state, tuple(entries)))
        record_bytes = PREFIX_BYTES + len(payload)
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise InvariantViolation(f"a batch of {len(payload)} bytes is larger than any record may be")
        if end.size_bytes + record_bytes > self._segment_bytes_max and end.holds_batches:
            self._begin_segment(end.base, end.first_sequence, record_bytes)
        record, checksum = encode_record(payload, end.checksum, end.seed)
        file = self._require_open()
        try:
            file.append(record)
            file.sync()
        except BaseException:
            self.close()  # what the disk has kept is not known: nothing more may follow it
            raise
        end.checksum = checksum
        end.size_bytes += record_bytes
        end.holds_batches = True
        if hard_state is not None:
            end.hard_state = hard_state
        if entries:
            self._extent.extend(entries, end.sequence)

    def rebase(self, base: SnapshotMeta, first_index_kept: int) -> None:
        """Stand on a newer snapshot from now on, which is durable, and remove the segments all of whose entries are
        before `first_index_kept`. If the log does not hold `base.index` in `base.term`, no entry of it is kept.

        Raises InvariantViolation when the base would go back, or entries after it would go.
        """
        end, extent = self._end, self._extent
        self._require_open()
        if base.index < end.base.index or first_index_kept > base.index + 1:
            raise InvariantViolation(
                f"the log stands on entry {end.base.index}; it cannot stand on {base.index} and begin with "
                f"{first_index_kept}"
            )
        is_held = (base.index, base.term) == (end.base.index, end.base.term) or extent.term_at(base.index) == base.term
        kept = (number for number, last in extent.last_by_segment.items() if is_held and last >= first_index_kept)
        first_sequence = next(kept, end.sequence + 1)
        self._begin_segment(base, first_sequence)
        gone = [number for number in extent.last_by_segment if number < first_sequence]
        if is_held:
            extent.forget_before(base.index)
        else:
            extent.begin_anew(base.index)
        for sequence in gone:
            self._disk.remove(segment_name(sequence))
            del extent.last_by_segment[sequence]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def begin(self) -> None:
        """Make the first segment of a new log."""
        self._begin_segment(self._end.base, first_sequence=1)

    def go_on(self, left_over: Sequence[str], torn_bytes: int) -> None:
        """After a replay: finish what a crash has left undone, and open the last segment.

        NB: what was read is synced before anybody believes it. A process that was killed between its append and its
        sync, or between a rename and the folder's sync, leaves what the kernel has and the disk has not: the member
        would acknowledge it now, and a power loss could still take it away.
        """
        for name in left_over:
            self._disk.remove(name)
        name, offset = segment_name(self._end.sequence), self._end.size_bytes
        self._file = self._disk.open(name, create=False)
        self._file.continue_at(offset)
        if torn_bytes:
            self._file.append(bytes(torn_bytes))
        self._file.sync()
        self._disk.sync_folder()
        if torn_bytes:
            self._file.continue_at(offset)
            log.warning("torn_log_tail_cut", segment=name, offset=offset, cut_bytes=torn_bytes)

    def _require_open(self) -> DiskFile:
        if self._file is None:
            raise DiskFailed("the log is closed; a failure of it is final")
        return self._file

    def _require_appendable(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        first_index, base_index, last_index = entries[0].index, self._end.base.index, self._extent.last_index
        if not base_index < first_index <= last_index + 1:
            raise InvariantViolation(
                f"entry {first_index} cannot come after {last_index} in a log that stands on {base_index}"
            )

    def _begin_segment(self, base: SnapshotMeta, first_sequence: int, record_bytes: int = 0) -> None:
        """Close the segment, and begin one with room for a record of `record_bytes` at least."""
        end, sequence, seed = self._end, self._end.sequence + 1, self._random_below(SEED_BELOW)
        header = SegmentHeader(
            FORMAT_VERSION, self._identity.cluster_id, self._identity.member,
            sequence, first_sequence, seed, end.hard_state, base,
        )  # fmt: skip
        payload = encode_payload(header)
        if len(payload) > HEADER_BYTES_MAX:
            raise InvariantViolation(f"a segment's header of {len(payload)} bytes is larger than any may be")
        record, checksum = encode_record(payload, end.checksum, 0)
        self.close()
        self._file = self._make_segment(
            segment_name(sequence), record, max(self._segment_bytes_max, len(record) + record_bytes)
        )
        end.base, end.first_sequence, end.sequence, end.seed = base, first_sequence, sequence, seed
        end.checksum, end.size_bytes, end.holds_batches = checksum, len(record), False
        self._extent.last_by_segment[sequence] = 0

    def _make_segment(self, name: str, header: bytes, size_bytes: int) -> DiskFile:
        """A segment that is durable, whole, and open behind its header."""
        aside = name + ASIDE_SUFFIX
        if aside in self._disk.names():
            self._disk.remove(aside)  # of a process that did not get further
        file = self._disk.open(aside, create=True)
        try:
            file.preallocate(size_bytes)
            file.append(header)
        except BaseException:
            with contextlib.suppress(DiskFailed):  # the room is needed, but why there is none is what matters
                self._disk.remove(aside)
            raise
        finally:
            file.close()
        self._disk.publish(aside, name)
        file = self._disk.open(name, create=False)
        file.continue_at(len(header))
        return file


def open_wal(
    disk: Disk,
    identity: WalIdentity,
    random_below: RandomBelow,
    segment_bytes_max: int,
    bootstrap: Membership,
    applied_index: int = 0,
) -> tuple[Wal, Recovered]:
    """Open the log in `disk`'s folder, or begin one with the configuration `bootstrap`, which is that of a new cluster,
    or empty for a member that joins one. A log that is there must reach `applied_index`, up to which the state machine
    has applied it. Raises DamagedLog, or SettingsError for somebody else's; both name the folder."""
    with _naming(disk.folder):
        names = [name for name in disk.names() if fnmatch(name, _SEGMENT_PATTERN)]
        if not names:
            _require_nothing_beside(disk, applied_index)
            base = SnapshotMeta(membership=bootstrap)
            wal = Wal(disk, identity, random_below, segment_bytes_max, LogEnd(base), LogExtent(base.index))
            wal.begin()
            return wal, Recovered(HardState(), base, [], cut_bytes=0)
        replay = Replay(disk, identity, names, segment_bytes_max)
        replay.require_reaching(applied_index)
        # Up to here nothing was changed: a log that is refused stays as it is.
        wal = Wal(disk, identity, random_below, segment_bytes_max, replay.end, replay.extent)
        try:
            wal.go_on(replay.left_over, replay.torn_bytes)
        except BaseException:
            wal.close()
            raise
        return wal, replay.recovered()


def holds_log(folder: Path) -> bool:
    """Whether a member has ever written its log into `folder`, which need not be there."""
    return any(folder.glob(_SEGMENT_PATTERN))


def _require_nothing_beside(disk: Disk, applied_index: int) -> None:
    """A log is never begun anew beside what an older one has led to: the member would have forgotten its votes."""
    if applied_index > 0:
        raise DamagedLog(f"there is no log, but the state beside it has applied {applied_index} entries of one")
    snapshots = [name for name in disk.names() if fnmatch(name, _SNAPSHOT_PATTERN)]
    if snapshots:
        raise DamagedLog(f"there is no log, but there is {snapshots[-1]} beside it")


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Puts the folder, and the way out, into errors."""
    try:
        yield
    except DamagedLog as error:
        way_out = "put this member's whole data folder back from a copy that was made while it did not run"
        raise DamagedLog(f"{folder}: {error.detail}: {way_out}") from error
    except SettingsError as error:
        raise SettingsError(f"{folder}: {error.detail}") from error

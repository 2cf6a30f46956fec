"""The write-ahead log: what a member has promised to remember.

Segments `wal-<sequence>.log` hold records, one after the other; the first of a segment is its header. A record:

    magic        4 bytes   b"QWAL", by which records after a damage are found
    length       4 bytes   of the payload, little-endian
    previous     4 bytes   checksum of the record before, over segments: a missing record breaks the chain
    checksum     4 bytes   CRC-32 of length, previous and payload, begun with the segment's seed
    payload                msgpack: a header, or a batch of entries with the hard state if that has changed

A batch is one record, one append and one sync, and the next is not begun before it is synced. So a crash can tear
only the last record, which was never acknowledged: it is cut. Anything else that does not fit, and so any damage with
a whole record after it, is a damage to what was acknowledged: the member refuses to start. (A damage within the last
record looks like a torn one, unless the state machine has applied what it held.) The seed keeps data that contains
records from being taken for one.

All of this blocks: it runs in the disk's thread.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from quorate_core.errors import SettingsError

from quorate_raft.core.messages import Entry, HardState, MemberName
from quorate_raft.core.state import RandomBelow
from quorate_raft.runtime.ports import Disk, DiskFile

FORMAT_VERSION = 1
SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""A segment is closed when the next record would take it past this; etcd's size."""

_MAGIC = b"QWAL"
_PREFIX = struct.Struct("<4sIII")
_SUMMED = struct.Struct("<II")
_SEED_BELOW = 2**32
_SEGMENT_PATTERN = "wal-*.log"

log = structlog.get_logger(__name__)


class DamagedLog(SettingsError):
    """The log is damaged, or ends, where it was acknowledged. Starting again without a change is useless."""


class SegmentHeader(msgspec.Struct, frozen=True):
    """`hard_state` is the one in force when the segment begins, so that older segments can go one day."""

    format_version: int
    cluster_id: str
    member: MemberName
    sequence: int
    seed: int
    hard_state: HardState


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    hard_state: HardState | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class WalIdentity:
    cluster_id: str
    member: MemberName


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a member remembered. `cut_bytes` were a torn tail."""

    hard_state: HardState
    entries: list[Entry]
    cut_bytes: int


_encode_header = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(SegmentHeader).decode
_encode_batch = msgspec.msgpack.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(_Batch).decode


class Wal:
    """Open for appending. Make one by `open_wal`."""

    def __init__(self, disk: Disk, identity: WalIdentity, random_below: RandomBelow, segment_bytes_max: int) -> None:
        self._disk = disk
        self._identity = identity
        self._random_below = random_below
        self._segment_bytes_max = segment_bytes_max
        self._file: DiskFile | None = None
        self._replay = _Replay()

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Returns when both are durable. An error is final: the log must not be used again."""
        replay = self._replay
        payload = _encode_batch(_Batch(hard_state, tuple(entries)))
        if replay.size_bytes + _PREFIX.size + len(payload) > self._segment_bytes_max and replay.holds_batches:
            self._begin_segment()
        if self._file is None:
            raise DamagedLog("the log is closed")
        record, checksum = _encode_record(payload, replay.checksum, replay.seed)
        try:
            self._file.append(record)
            self._file.sync()
        except BaseException:
            self.close()  # what the disk has kept is not known: nothing more may follow it
            raise
        replay.on_appended(checksum, len(record), hard_state)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def recover(self, applied_index: int = 0) -> Recovered:
        """Read everything; leaves the last segment open for appending. Nothing is changed on disk before it is known
        that the log reaches `applied_index`. Raises DamagedLog, or SettingsError for a log of somebody else."""
        names = [name for name in self._disk.names() if Path(name).match(_SEGMENT_PATTERN)]
        replay, torn_bytes = self._replay, 0
        for position, name in enumerate(names):
            self.close()
            self._file = self._disk.open(name, create=False)
            torn_bytes = self._read_segment(name, is_last=position == len(names) - 1)
        if len(replay.entries) < applied_index:
            raise DamagedLog(_too_short(names, len(replay.entries), applied_index, replay.size_bytes, torn_bytes))
        if self._file is None:
            self._begin_segment()
        elif torn_bytes:
            self._file.truncate(replay.size_bytes)
            self._file.sync()
            log.warning("torn_log_tail_cut", segment=names[-1], offset=replay.size_bytes, cut_bytes=torn_bytes)
        entries, replay.entries = replay.entries, []
        return Recovered(replay.hard_state, entries, torn_bytes)

    def _read_segment(self, name: str, *, is_last: bool) -> int:
        """Returns how many bytes at the end are those of a torn record."""
        if self._file is None:
            raise DamagedLog(f"{name} is not open")
        data = self._file.read_all()
        replay = self._replay
        offset = replay.begin_segment(name, data, self._identity)
        while offset < len(data):
            end = replay.read_record(name, data, offset)
            if end is None:
                break
            offset = end
        replay.size_bytes = offset
        if offset == len(data):
            return 0
        found = _find_record(data, offset + 1, replay.seed)
        if not is_last or found is not None:
            after = f"; a whole record follows at {found}" if found is not None else "; it is not the last segment"
            raise DamagedLog(
                f"the log is damaged: {name} at offset {offset}{after}. Entries that were acknowledged are unreadable"
            )
        return len(data) - offset

    def _begin_segment(self) -> None:
        replay = self._replay
        replay.sequence += 1
        replay.seed = self._random_below(_SEED_BELOW)
        header = SegmentHeader(
            FORMAT_VERSION, self._identity.cluster_id, self._identity.member,
            replay.sequence, replay.seed, replay.hard_state,
        )  # fmt: skip
        record, replay.checksum = _encode_record(_encode_header(header), replay.checksum, 0)
        name = segment_name(replay.sequence)
        self.close()
        self._disk.write_atomically(name, record)
        self._file = self._disk.open(name, create=False)
        replay.size_bytes = len(record)
        replay.holds_batches = False


class _Replay:
    """Where reading or writing stands, and what was read so far."""

    def __init__(self) -> None:
        self.sequence = 0
        self.seed = 0
        self.checksum = 0
        self.size_bytes = 0
        self.holds_batches = False
        self.hard_state = HardState()
        self.entries: list[Entry] = []

    def on_appended(self, checksum: int, size_bytes: int, hard_state: HardState | None) -> None:
        self.checksum = checksum
        self.size_bytes += size_bytes
        self.holds_batches = True
        if hard_state is not None:
            self.hard_state = hard_state

    def begin_segment(self, name: str, data: bytes, identity: WalIdentity) -> int:
        """Check the header; returns the offset after it."""
        found = _decode_record(data, 0, 0)
        if found is None:
            # A header is written aside and renamed when it is whole, so this is no torn write.
            raise DamagedLog(f"the log is damaged: {name} has no readable header at offset 0")
        previous, payload = found
        try:
            header = _decode_header(payload)
        except msgspec.MsgspecError as error:
            raise DamagedLog(f"the log is damaged: the header of {name} at offset 0 makes no sense") from error
        if header.format_version != FORMAT_VERSION:
            raise SettingsError(f"{name} has format {header.format_version}; this version reads {FORMAT_VERSION} only")
        if (header.cluster_id, header.member) != (identity.cluster_id, identity.member):
            raise SettingsError(
                f"this data folder belongs to member {header.member!r} of cluster {header.cluster_id!r}, and this "
                f"process is member {identity.member!r} of cluster {identity.cluster_id!r}: choose another folder"
            )
        expected = self.sequence + 1
        if header.sequence != expected or name != segment_name(expected):
            raise DamagedLog(f"the log is damaged: {segment_name(expected)} is missing, {name} comes in its place")
        if previous != self.checksum:
            raise DamagedLog(f"the log is damaged: {name} at offset 0 does not continue the segment before it")
        self.sequence, self.seed = header.sequence, header.seed
        self.checksum = _checksum(payload, previous, 0)
        self.holds_batches = False
        return _PREFIX.size + len(payload)

    def read_record(self, name: str, data: bytes, offset: int) -> int | None:
        """Take in the record at `offset`; returns where it ends, or None when there is no whole one."""
        found = _decode_record(data, offset, self.seed)
        if found is None:
            return None
        previous, payload = found
        if previous != self.checksum:
            raise DamagedLog(f"the log is damaged: {name} at offset {offset} does not continue the record before it")
        try:
            batch = _decode_batch(payload)
        except msgspec.MsgspecError as error:
            raise DamagedLog(f"the log is damaged: the record of {name} at offset {offset} makes no sense") from error
        if batch.entries:
            first_index = batch.entries[0].index
            if not 1 <= first_index <= len(self.entries) + 1:
                raise DamagedLog(
                    f"the log is damaged: {name} at offset {offset} has entry {first_index} after {len(self.entries)}"
                )
            del self.entries[first_index - 1 :]
            self.entries += batch.entries
        if batch.hard_state is not None:
            self.hard_state = batch.hard_state
        self.holds_batches = True
        self.checksum = _checksum(payload, previous, self.seed)
        return offset + _PREFIX.size + len(payload)


def open_wal(
    disk: Disk,
    identity: WalIdentity,
    random_below: RandomBelow,
    segment_bytes_max: int = SEGMENT_BYTES_MAX,
    applied_index: int = 0,
) -> tuple[Wal, Recovered]:
    """Open the log in `disk`'s folder, or begin one. It must reach `applied_index`, up to which the state machine has
    applied it. Raises DamagedLog, or SettingsError for somebody else's; both name the folder."""
    wal = Wal(disk, identity, random_below, segment_bytes_max)
    try:
        return wal, wal.recover(applied_index)
    except DamagedLog as error:
        wal.close()
        way_out = "put this member's whole data folder back from a copy that was made while it did not run"
        raise DamagedLog(f"{disk.folder}: {error.detail}: {way_out}") from error
    except SettingsError as error:
        wal.close()
        raise SettingsError(f"{disk.folder}: {error.detail}") from error
    except BaseException:
        wal.close()
        raise


def segment_name(sequence: int) -> str:
    return f"wal-{sequence:016d}.log"


def holds_log(folder: Path) -> bool:
    """Whether a member has ever written its log into `folder`, which need not be there."""
    return any(folder.glob(_SEGMENT_PATTERN))


def _too_short(names: Sequence[str], last_index: int, applied_index: int, offset: int, torn_bytes: int) -> str:
    if not names:
        return f"there is no log, but the state beside it has applied {applied_index} entries of one"
    torn = f"; {torn_bytes} bytes after it cannot be read" if torn_bytes else ""
    return (
        f"the log is damaged: it ends at entry {last_index}, {names[-1]} at offset {offset}{torn}, but the state "
        f"beside it has applied {applied_index}. Entries that were acknowledged are missing"
    )


def _checksum(payload: bytes, previous: int, seed: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_SUMMED.pack(len(payload), previous), seed))


def _encode_record(payload: bytes, previous: int, seed: int) -> tuple[bytes, int]:
    checksum = _checksum(payload, previous, seed)
    return _PREFIX.pack(_MAGIC, len(payload), previous, checksum) + payload, checksum


def _decode_record(data: bytes, offset: int, seed: int) -> tuple[int, bytes] | None:
    """The previous checksum and the payload of the record at `offset`, or None when it is not whole."""
    if offset + _PREFIX.size > len(data):
        return None
    magic, length, previous, checksum = _PREFIX.unpack_from(data, offset)
    begin = offset + _PREFIX.size
    if magic != _MAGIC or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    return (previous, payload) if _checksum(payload, previous, seed) == checksum else None


def _find_record(data: bytes, offset: int, seed: int) -> int | None:
    """Where the next whole record begins."""
    while (offset := data.find(_MAGIC, offset)) >= 0:
        if _decode_record(data, offset, seed) is not None:
            return offset
        offset += 1
    return None

"""A write-ahead log of tests: opened, written and read again in one line, and its files looked into."""

import random
from collections.abc import Sequence
from pathlib import Path

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, EntryKind, HardState, SnapshotMeta
from quorate_raft.runtime import wal_records
from quorate_raft.runtime.disk import FileDisk
from quorate_raft.runtime.ports import Disk
from quorate_raft.runtime.wal import Recovered, Wal, WalIdentity, open_wal

IDENTITY = WalIdentity("cluster-1", "node-1")
RANDOM_BELOW = random.Random(7).randrange
BOOTSTRAP = Membership.of_voters({"node-1": "host-1:1", "node-2": "host-2:1"})
BASE = SnapshotMeta(membership=BOOTSTRAP)
SMALL_BYTES = 600
"""A segment with room for two or three records."""


def open_(disk: Disk, segment_bytes_max: int = 4096, applied_index: int = 0) -> tuple[Wal, Recovered]:
    return open_wal(disk, IDENTITY, RANDOM_BELOW, segment_bytes_max, BOOTSTRAP, applied_index)


def reopen(disk: Disk, segment_bytes_max: int = 4096) -> Recovered:
    wal, recovered = open_(disk, segment_bytes_max)
    wal.close()
    return recovered


def segments(disk: FileDisk) -> list[Path]:
    return sorted(disk.folder.glob("wal-*.log"))


def record_starts(segment: Path) -> list[int]:
    """Where each record begins, and where the last one ends."""
    data, starts = segment.read_bytes(), [0]
    while data.startswith(b"QWAL", starts[-1]):
        length = int.from_bytes(data[starts[-1] + 4 : starts[-1] + 8], "little")
        starts.append(starts[-1] + wal_records.PREFIX_BYTES + length)
    return starts


def exchange(segment: Path, offset: int, data: bytes) -> None:
    """Write over what the segment has there."""
    whole = bytearray(segment.read_bytes())
    whole[offset : offset + len(data)] = data
    segment.write_bytes(whole)


def entries(first: int, last: int, term: int = 1) -> list[Entry]:
    return [Entry(index, term, EntryKind.NORMAL, b"data of %d" % index, index * 7) for index in range(first, last + 1)]


def base_at(index: int, term: int = 1) -> SnapshotMeta:
    return SnapshotMeta(index, term, BOOTSTRAP)


def write(disk: Disk, *batches: tuple[HardState | None, Sequence[Entry]], segment_bytes_max: int = 4096) -> None:
    wal, _ = open_(disk, segment_bytes_max)
    for hard_state, batch in batches:
        wal.append(hard_state, batch)
    wal.close()


def write_one_by_one(disk: Disk, first: int, last: int, segment_bytes_max: int = SMALL_BYTES) -> None:
    write(
        disk,
        *[(HardState(1, "node-2", index - 1), entries(index, index)) for index in range(first, last + 1)],
        segment_bytes_max=segment_bytes_max,
    )


def append_record(disk: FileDisk, payload: bytes) -> None:
    """A record that fits the chain, in the last segment, whatever it holds."""
    segment = segments(disk)[-1]
    view = memoryview(segment.read_bytes())
    *starts, end = record_starts(segment)
    header = wal_records.decode_record(view, 0, 0)
    assert header is not None
    seed = wal_records.decode_header(header[1]).seed
    previous = int.from_bytes(view[starts[-1] + 12 : starts[-1] + 16], "little")
    exchange(segment, end, wal_records.encode_record(payload, previous, seed)[0])

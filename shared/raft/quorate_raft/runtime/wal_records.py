"""Records of the write-ahead log, byte by byte.

    magic        4 bytes   b"QWAL", by which records after a damage are found
    length       4 bytes   of the payload, little-endian
    previous     4 bytes   checksum of the record before, over segments: a missing record breaks the chain
    checksum     4 bytes   CRC-32 of length, previous and payload, begun with the segment's seed
    payload                msgpack: a `SegmentHeader`, or a `Batch`

The seed is random and stands in the header, whose own is 0. It keeps data that contains records, such as a log that
somebody stored as a value, from being taken for one.
"""

import struct
import zlib
from typing import NamedTuple

import msgspec

from quorate_raft.core.messages import Entry, HardState, MemberName, SnapshotMeta

PREFIX_BYTES = 16
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024
"""Four times what a leader lets wait to be agreed on."""
HEADER_BYTES_MAX = 1024 * 1024
"""A header holds a configuration, with the names of 1,000 removed members at most."""
SEARCH_BYTES_MAX = 1024 * 1024 * 1024
"""Checksummed, at most, in search of a whole record: about a second. Values full of the magic could ask for hours."""
SEED_BELOW = 2**32

_MAGIC = b"QWAL"
_PREFIX = struct.Struct("<4sIII")
_SUMMED = struct.Struct("<II")


class SegmentHeader(msgspec.Struct, frozen=True):
    """What is in force when the segment begins, so that older ones can go: the hard state, and the base of the log.
    `first_sequence` is the oldest segment that belongs to the log; its own, when a snapshot was installed that the log
    before did not lead to. Any before that are left over."""

    format_version: int
    cluster_id: str
    member: MemberName
    sequence: int
    first_sequence: int
    seed: int
    hard_state: HardState
    base: SnapshotMeta


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Entries that overwrite everything from the first one's index on, and the hard state if that has changed."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]


class FormatVersion(msgspec.Struct, frozen=True):
    """What is read of a header first: another format may lack everything else."""

    format_version: int


encode_payload = msgspec.msgpack.Encoder().encode
decode_format_version = msgspec.msgpack.Decoder(FormatVersion).decode
decode_header = msgspec.msgpack.Decoder(SegmentHeader).decode
decode_batch = msgspec.msgpack.Decoder(Batch).decode


class FoundRecord(NamedTuple):
    offset: int
    is_checked: bool


def checksum_of(payload: bytes | memoryview, previous: int, seed: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_SUMMED.pack(len(payload), previous), seed))


def encode_record(payload: bytes, previous: int, seed: int) -> tuple[bytes, int]:
    """The record and its checksum."""
    checksum = checksum_of(payload, previous, seed)
    return _PREFIX.pack(_MAGIC, len(payload), previous, checksum) + payload, checksum


def decode_record(data: memoryview, offset: int, seed: int) -> tuple[int, memoryview] | None:
    """The previous checksum and the payload of the record at `offset`, or None when it is not whole."""
    payload = _payload_at(data, offset)
    if payload is None:
        return None
    _, _, previous, checksum = _PREFIX.unpack_from(data, offset)
    return (previous, payload) if checksum_of(payload, previous, seed) == checksum else None


def find_record(data: bytes, offset: int, seed: int, bytes_max: int = SEARCH_BYTES_MAX) -> FoundRecord | None:
    """The next whole record. One that there is no time to check counts too: what cannot be told must not be taken for
    harmless."""
    view, left_bytes = memoryview(data), bytes_max
    while (offset := data.find(_MAGIC, offset)) >= 0:
        payload = _payload_at(view, offset)
        if payload is not None:
            left_bytes -= len(payload)
            if left_bytes < 0:
                return FoundRecord(offset, is_checked=False)
            if decode_record(view, offset, seed) is not None:
                return FoundRecord(offset, is_checked=True)
        offset += 1
    return None


def _payload_at(data: memoryview, offset: int) -> memoryview | None:
    if offset + PREFIX_BYTES > len(data):
        return None
    magic, length, _, _ = _PREFIX.unpack_from(data, offset)
    begin = offset + PREFIX_BYTES
    if magic != _MAGIC or begin + length > len(data):
        return None
    return data[begin : begin + length]

"""A backup: one file with all that a member's state held as of one entry of the log, kept by operators.

    magic     8 bytes   b"QUORSNAP"
    length    4 bytes   of the header, little-endian
    checksum  4 bytes   CRC-32 of the header
    header              JSON: a `BackupHeader`, which says what comes after it, how long that is, and its SHA-256
    data                a copy of the state's LMDB file, and then the end of the file
    digest    32 bytes  or, before that, the SHA-256 of everything up to here: clients of etcd's API keep it

Whoever reads one believes nothing of it before it is whole: `BackupReader` takes it in pieces of any size, as they come
from a disk or a node, within bounds, and says at the end whether all of it is what was written. LMDB would follow a
damaged page wherever it points, so that it gets to see nothing that was not checked.

What becomes of a backup is in `revival`.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from quorate_core.errors import InvalidContent, InvariantViolation

FORMAT_VERSION = 1
CHUNK_BYTES = 1024 * 1024
"""Read at once."""
DIGEST_BYTES = hashlib.sha256().digest_size
HEADER_BYTES_MAX = 64 * 1024
"""Far more than the names and addresses of a cluster's members take."""
DATA_BYTES_MAX = 64 * 1024**3
"""Far above any quota."""
NUMBER_MAX = 2**62
WORD_CHARS_MAX = 300

_MAGIC = b"QUORSNAP"
_PREFIX = struct.Struct("<8sII")
_SHA256_HEX = r"^[0-9a-f]{64}$"

Count = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
Word = Annotated[str, msgspec.Meta(max_length=WORD_CHARS_MAX)]
Sink = Callable[[bytes | memoryview], object]
"""Takes the data, piece by piece."""
OnProgress = Callable[[int, int], None]
"""(bytes of data read, of so many)."""


class DamagedBackup(InvalidContent):
    """The file is no backup, or not what was written, or of a format that this release does not know."""


class BackupMember(msgspec.Struct, frozen=True):
    name: Word
    address: Word
    is_learner: bool


class BackupHeader(msgspec.Struct, frozen=True):
    """`index` and `term` are of the last entry that the state holds, `revision` and `compact_revision` the store's.

    `members` is who was in the cluster, as `member`, of which this is a copy, knew it.
    """

    format_version: int
    cluster_id: Word
    member: Word
    members: Annotated[tuple[BackupMember, ...], msgspec.Meta(max_length=100)]
    index: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    term: Count
    revision: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    compact_revision: Count
    is_complete: bool
    """It holds all that was acknowledged before it was asked for. False: `member` was not sure of that, having no
    leader to ask."""
    taken_at: Word
    """RFC 3339, UTC."""
    written_by: Word
    """The release."""
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=DATA_BYTES_MAX)]
    """Of the data."""
    sha256: Annotated[str, msgspec.Meta(pattern=_SHA256_HEX)]
    """Of the data."""


class _FormatVersion(msgspec.Struct, frozen=True):
    """What is read of a header first: another format may lack everything else."""

    format_version: int


def encode_head(header: BackupHeader) -> bytes:
    """All that comes before the data. Raises InvariantViolation for a header that no reader would take."""
    payload = msgspec.json.encode(header)
    if len(payload) > HEADER_BYTES_MAX:
        raise InvariantViolation(f"a header of {len(payload)} bytes is larger than any backup's may be")
    head = _PREFIX.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload
    try:
        _decode_header(payload)
    except DamagedBackup as error:
        raise InvariantViolation(f"a header that cannot be read again: {error.detail}") from error
    return head


class BackupReader:
    """Takes a backup in pieces; hands its data to `sink`, which must not be believed before `finish` has returned."""

    def __init__(self, sink: Sink | None = None) -> None:
        self._sink = sink
        self._head = bytearray()
        self._sha256 = hashlib.sha256()
        self._data_bytes = 0
        self._whole_sha256 = hashlib.sha256()
        self._behind = bytearray()
        self.header: BackupHeader | None = None
        """As soon as it is known."""

    @property
    def data_bytes(self) -> int:
        """Taken so far."""
        return self._data_bytes

    def feed(self, piece: bytes) -> None:
        """Raises DamagedBackup as soon as it shows."""
        rest: bytes | memoryview = piece
        if self.header is None:
            rest = self._take_head(piece)
        if self.header is not None and len(rest):
            self._take_data(self.header, rest)

    def finish(self) -> BackupHeader:
        """There is no more. Raises DamagedBackup when it is not all, or not what was written."""
        header = self.header
        if header is None:
            raise DamagedBackup(f"it ends after {len(self._head)} bytes, in its header")
        if self._data_bytes != header.size_bytes:
            raise DamagedBackup(f"it ends after {self._data_bytes} of {header.size_bytes} bytes of data")
        found = self._sha256.hexdigest()
        if found != header.sha256:
            raise DamagedBackup(f"its data has the checksum {found}, and was written with {header.sha256}")
        if self._behind and self._behind != self._whole_sha256.digest():
            raise DamagedBackup(f"what follows after its {header.size_bytes} bytes of data is not its checksum")
        return header

    def _take_head(self, piece: bytes) -> memoryview:
        """Returns what comes after the head."""
        missing = self._head_bytes() - len(self._head)
        view = memoryview(piece)
        while missing > 0 and view:
            self._head += view[:missing]
            view = view[missing:]
            missing = self._head_bytes() - len(self._head)
        if missing <= 0:
            payload = bytes(self._head[_PREFIX.size :])
            if zlib.crc32(payload) != _PREFIX.unpack_from(self._head)[2]:
                raise DamagedBackup("its header does not have its own checksum")
            self.header = _decode_header(payload)
            self._whole_sha256.update(self._head)
        return view

    def _head_bytes(self) -> int:
        """How long the head is, as far as that is known yet. Raises DamagedBackup for what is none."""
        begin = bytes(self._head[: len(_MAGIC)])
        if not _MAGIC.startswith(begin):
            raise DamagedBackup("it is no snapshot that quorate has saved")
        if len(self._head) < _PREFIX.size:
            return _PREFIX.size
        length: int = _PREFIX.unpack_from(self._head)[1]
        if not 1 <= length <= HEADER_BYTES_MAX:
            raise DamagedBackup(f"it has a header of {length} bytes; there is none of more than {HEADER_BYTES_MAX}")
        return _PREFIX.size + length

    def _take_data(self, header: BackupHeader, data: bytes | memoryview) -> None:
        view = memoryview(data)
        data, behind = view[: header.size_bytes - self._data_bytes], view[header.size_bytes - self._data_bytes :]
        self._behind += behind
        if len(self._behind) > DIGEST_BYTES:
            raise DamagedBackup(f"more follows after its {header.size_bytes} bytes of data")
        self._data_bytes += len(data)
        self._whole_sha256.update(data)
        self._sha256.update(data)
        if self._sink is not None:
            self._sink(data)


def read_backup(path: Path, sink: Sink | None = None, on_progress: OnProgress | None = None) -> BackupHeader:
    """Read all of a file.

    Raises DamagedBackup naming `path`, and OSError.
    """
    reader = BackupReader(sink)
    try:
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                reader.feed(piece)
                if on_progress is not None and reader.header is not None:
                    on_progress(reader.data_bytes, reader.header.size_bytes)
        return reader.finish()
    except DamagedBackup as error:
        raise DamagedBackup(f"{path} cannot be used: {error.detail}") from error


def _decode_header(payload: bytes) -> BackupHeader:
    try:
        version = msgspec.json.decode(payload, type=_FormatVersion).format_version
        if version != FORMAT_VERSION:
            raise DamagedBackup(f"it has format {version}, and this release knows {FORMAT_VERSION}: use a newer one")
        header = msgspec.json.decode(payload, type=BackupHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedBackup(f"its header makes no sense: {error}") from error
    if header.compact_revision > header.revision:
        raise DamagedBackup(f"revision {header.revision} is said to be compacted up to {header.compact_revision}")
    return header

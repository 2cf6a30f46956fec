"""The LMDB files: revisions, leases, and one row with everything else that must change together with them.

Rows of `revisions` are keyed by (main, sub), big-endian, so that LMDB's order is the order of history. A write
transaction is one batch of log entries, and carries the applied index (data and index apart are a corruption, as etcd
3.5 showed).
"""

import contextlib
import errno
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import structlog
from quorate_core.errors import InvariantViolation, QuorateError, SettingsError

from quorate_store.key_index import Position, main_of, sub_of
from quorate_store.machine_boot import BootMarker, current_boot_id, is_believable, read_marker, write_marker

GIB = 1024**3
MAP_BYTES_DEFAULT = 4 * GIB
QUOTA_BYTES_DEFAULT = MAP_BYTES_DEFAULT - 2 * GIB
"""What the state starts with; a leader whose setting differs proposes its own."""
FORMAT = 1

_ROW_KEY = struct.Struct(">QI")
_LEASE_KEY = struct.Struct(">Q")
_META_KEY = b"meta"

log = structlog.get_logger(__name__)


class StateUnusable(QuorateError):
    """The system refuses to read or write the files; the message names them and its reason, such as a full disk."""


class Meta(msgspec.Struct, array_like=True):
    """The state's own counters. Byte counts are logical: equal on all members, whatever LMDB makes of them."""

    applied_index: int = 0
    applied_term: int = 0
    revision: int = 1
    compact_revision: int = 0
    quota_bytes: int = QUOTA_BYTES_DEFAULT
    written_bytes: int = 0
    """Everything ever written to `revisions`."""
    superseded_bytes: int = 0
    """Of that, what a compaction at the present revision would free."""
    tombstone_bytes: int = 0
    """Deletions of the present revision: they become superseded with the next one."""
    reclaimed_bytes: int = 0
    """Of `superseded_bytes`, what compactions have freed."""
    swept_revision: int = 0
    """Rows superseded up to here are gone from LMDB. Local: members sweep at their own pace, unseen from outside."""


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One change of one key; its key in LMDB says when. `version` 0 is a deletion.

    `superseded_bytes` is Meta's after this change, so that a compaction knows what it frees without a walk.
    """

    key: bytes
    version: int
    create_revision: int = 0
    lease: int = 0
    superseded_bytes: int = 0
    value: bytes = b""


class LeaseRow(msgspec.Struct, frozen=True, array_like=True):
    """`generation`: the log index of the grant. `remaining_ms`: the last checkpoint, 0 for none."""

    ttl_s: int
    generation: int
    remaining_ms: int = 0


_encoder = msgspec.msgpack.Encoder()
_row_decoder = msgspec.msgpack.Decoder(Row)
_lease_decoder = msgspec.msgpack.Decoder(LeaseRow)
_stored_meta_decoder = msgspec.msgpack.Decoder(tuple[int, Meta])
"""(format, meta)."""


class Database:
    """One open environment. Calls take the LMDB transaction; none is held over an `await`."""

    def __init__(self, folder: Path, map_bytes: int = MAP_BYTES_DEFAULT, boot_id: str | None = None) -> None:
        """Open or create the files in `folder`, discarding what a crash of the machine has made doubtful.

        `boot_id` is the machine's own unless given. Raises StateUnusable.
        """
        self._folder = folder
        self._boot_id = current_boot_id() if boot_id is None else boot_id
        with self.failing("open"):
            self._discard_if_doubtful()
            folder.mkdir(parents=True, exist_ok=True)
            write_marker(folder, BootMarker(self._boot_id, closed_cleanly=False))
            # NB: no writemap. It would spare copies, but a full disk would be a SIGBUS instead of an error, and the
            # file would be as long as the map.
            self._env = lmdb.open(
                str(folder), map_size=map_bytes, max_dbs=2, sync=False, metasync=False, writemap=False,
                readahead=False, mode=0o600,
            )  # fmt: skip
            try:
                self._revisions = self._env.open_db(b"revisions")
                self._leases = self._env.open_db(b"leases")
            except BaseException:
                self._env.close()
                raise

    def _discard_if_doubtful(self) -> None:
        if not (self._folder / "data.mdb").exists():
            return
        if is_believable(read_marker(self._folder), self._boot_id):
            return
        log.warning(
            "state_discarded", folder=str(self._folder),
            reason="the machine went down without a clean close; the log rebuilds the state",
        )  # fmt: skip
        shutil.rmtree(self._folder)

    def close(self) -> None:
        """Sync, close, and mark the files as whole. Never raises for a disk that refuses: at worst they are discarded
        after a restart of the machine, and the log rebuilds them."""
        try:
            with self.failing("close"):
                try:
                    self._env.sync(True)
                finally:
                    self._env.close()
                write_marker(self._folder, BootMarker(self._boot_id, closed_cleanly=True))
        except StateUnusable as error:
            log.warning("state_not_marked_as_whole", reason=error.detail)

    def abandon(self) -> None:
        """Close without syncing or marking: after a failure the files are what kill -9 would have left."""
        self._env.close()

    @contextlib.contextmanager
    def failing(self, action: str) -> Iterator[None]:
        """Turns what the system or LMDB refuses into StateUnusable. A full map is the caller's to explain."""
        try:
            yield
        except lmdb.MapFullError:
            raise
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
            where = f" ({error.filename})" if error.filename else ""
            raise StateUnusable(f"cannot {action} the state in {self._folder}: {reason}{where}") from error
        except (lmdb.InvalidError, lmdb.CorruptedError) as error:
            way_out = "remove the folder, and the log rebuilds it"
            raise StateUnusable(f"cannot {action} the state in {self._folder}: {error}: {way_out}") from error
        except lmdb.Error as error:
            raise StateUnusable(f"cannot {action} the state in {self._folder}: {error}") from error

    @property
    def used_bytes(self) -> int:
        """Bytes of the map in use, LMDB's free pages included."""
        used: int = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        return used

    def read(self) -> lmdb.Transaction:
        return self._env.begin(buffers=True)

    def write(self) -> lmdb.Transaction:
        return self._env.begin(write=True, buffers=True)

    def load_meta(self) -> Meta:
        with self._env.begin() as txn:
            stored = txn.get(_META_KEY)
        if stored is None:
            return Meta()
        written_format, meta = _stored_meta_decoder.decode(stored)
        if written_format != FORMAT:
            raise SettingsError(
                f"the state in {self._folder} has format {written_format}, and this release knows {FORMAT}: remove the "
                "folder, and the log rebuilds it"
            )
        return meta

    def save_meta(self, txn: lmdb.Transaction, meta: Meta) -> None:
        txn.put(_META_KEY, _encoder.encode((FORMAT, meta)))

    def put_row(self, txn: lmdb.Transaction, at: Position, row: Row) -> int:
        """Returns the bytes of the encoded row."""
        stored = _encoder.encode(row)
        txn.put(_row_key(at), stored, db=self._revisions, append=True)
        return len(stored)

    def row(self, txn: lmdb.Transaction, at: Position) -> Row:
        return self.sized_row(txn, at)[0]

    def sized_row(self, txn: lmdb.Transaction, at: Position) -> tuple[Row, int]:
        """The row, and the bytes of its encoding."""
        stored = txn.get(_row_key(at), db=self._revisions)
        if stored is None:
            raise InvariantViolation(f"the index names the change {main_of(at)}/{sub_of(at)}, and LMDB has no such row")
        return _row_decoder.decode(stored), len(stored)

    def delete_row(self, txn: lmdb.Transaction, at: Position) -> None:
        txn.delete(_row_key(at), db=self._revisions)

    def last_row_of(self, txn: lmdb.Transaction, main: int) -> Row | None:
        """The last change of revision `main`, or None when it has none."""
        with txn.cursor(db=self._revisions) as cursor:
            found = cursor.set_range(_ROW_KEY.pack(main + 1, 0))
            if not (cursor.prev() if found else cursor.last()):
                return None
            return _row_decoder.decode(cursor.value()) if _ROW_KEY.unpack(cursor.key())[0] == main else None

    def rows_from(self, txn: lmdb.Transaction, main: int) -> Iterator[tuple[int, int, Row]]:
        """(main, sub, row) from revision `main` on, oldest first."""
        with txn.cursor(db=self._revisions) as cursor:
            if cursor.set_range(_ROW_KEY.pack(main, 0)):
                for key, value in cursor:
                    found_main, sub = _ROW_KEY.unpack(key)
                    yield found_main, sub, _row_decoder.decode(value)

    def put_lease(self, txn: lmdb.Transaction, lease: int, row: LeaseRow) -> None:
        txn.put(_LEASE_KEY.pack(lease), _encoder.encode(row), db=self._leases)

    def delete_lease(self, txn: lmdb.Transaction, lease: int) -> None:
        txn.delete(_LEASE_KEY.pack(lease), db=self._leases)

    def leases(self, txn: lmdb.Transaction) -> Iterator[tuple[int, LeaseRow]]:
        with txn.cursor(db=self._leases) as cursor:
            for key, value in cursor:
                yield _LEASE_KEY.unpack(key)[0], _lease_decoder.decode(value)


def _row_key(at: Position) -> bytes:
    return _ROW_KEY.pack(main_of(at), sub_of(at))

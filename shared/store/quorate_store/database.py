"""The LMDB files: revisions, leases, and one row with everything else that must change together with them.

Rows of `revisions` are keyed by (main, sub), big-endian, so that LMDB's order is the order of history. A write
transaction is one batch of log entries, and carries the applied index (data and index apart are a corruption, as etcd
3.5 showed). A copy of the files is made of one transaction too, beside the writer, and so is whole in the same sense.
"""

import contextlib
import errno
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgspec
from quorate_core.errors import InvariantViolation, QuorateError, SettingsError, Unavailable

from quorate_store.key_index import Position, main_of, position, sub_of
from quorate_store.pacing import let_others_run

GIB = 1024**3
MAP_BYTES_DEFAULT = 4 * GIB
QUOTA_BYTES_DEFAULT = MAP_BYTES_DEFAULT - 2 * GIB
"""What the state starts with; a leader whose setting differs proposes its own."""
QUOTA_BYTES_MAX = 8 * GIB
"""The most that a quota may be: etcd's advice too."""
MAP_BYTES_MAX = 2 * QUOTA_BYTES_MAX + 2 * GIB
"""A map that holds whatever any quota lets in, and a deletion of all of it, which no quota refuses, before it is
compacted. It costs addresses and no memory."""
FORMAT = 1
DATA_FILE_NAME = "data.mdb"
"""LMDB's own name for it."""

_DISK_FULL = "the disk is full"
_META_PAGES = 2
_ROW_KEY = struct.Struct(">QI")
_LEASE_KEY = struct.Struct(">Q")
_META_KEY = b"meta"


EncodedRow = bytes | memoryview
"""Valid as long as the transaction that it was read in."""


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


class RowHead(msgspec.Struct, frozen=True, array_like=True):
    """What a `Row` begins with. The rest of it, the value above all, is passed over: neither copied nor, where it has
    pages of its own, read from the disk."""

    key: bytes
    version: int
    create_revision: int
    lease: int


class LeaseRow(msgspec.Struct, frozen=True, array_like=True):
    """`generation`: the log index of the grant. `remaining_ms`: the last checkpoint, 0 for none."""

    ttl_s: int
    generation: int
    remaining_ms: int = 0


_encoder = msgspec.msgpack.Encoder()
_row_decoder = msgspec.msgpack.Decoder(Row)
_head_decoder = msgspec.msgpack.Decoder(RowHead)
_lease_decoder = msgspec.msgpack.Decoder(LeaseRow)
_stored_meta_decoder = msgspec.msgpack.Decoder(tuple[int, Meta])
"""(format, meta)."""


@contextlib.contextmanager
def failing(action: str, folder: Path) -> Iterator[None]:
    """Turns what the system or LMDB refuses into StateUnusable. A full map is the caller's to explain."""
    try:
        yield
    except lmdb.MapFullError:
        raise
    except OSError as error:
        reason = _DISK_FULL if error.errno == errno.ENOSPC else (error.strerror or str(error))
        where = f" ({error.filename})" if error.filename else ""
        raise StateUnusable(f"cannot {action} the state in {folder}: {reason}{where}") from error
    except lmdb.DiskError as error:
        raise StateUnusable(f"cannot {action} the state in {folder}: {_DISK_FULL}") from error
    except (lmdb.InvalidError, lmdb.CorruptedError) as error:
        way_out = "remove the folder, and the newest snapshot and the log rebuild it"
        raise StateUnusable(f"cannot {action} the state in {folder}: {error}: {way_out}") from error
    except lmdb.Error as error:
        # Of a write that the disk took only a part of, LMDB says no more than that input or output went wrong.
        reason = f"{error}: {_DISK_FULL}" if _has_no_room(folder) else str(error)
        raise StateUnusable(f"cannot {action} the state in {folder}: {reason}") from error


def _has_no_room(folder: Path) -> bool:
    try:
        room = os.statvfs(folder)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < mmap.PAGESIZE


class Database:
    """One open environment. Calls take the LMDB transaction; none is held over an `await`."""

    def __init__(self, folder: Path, map_bytes: int = MAP_BYTES_DEFAULT, *, is_copy: bool = False) -> None:
        """Open or create the files in `folder`. `is_copy`: they are a copy that `copy` has made, of another member
        perhaps, and is not believed to be whole. Raises StateUnusable."""
        self._folder = folder
        self._is_closed = False
        self._copying = threading.Lock()
        """Held while a thread beside the one that writes copies or reads everything: the environment must stay."""
        self._is_ending = False
        """Who reads everything is to give up."""
        with self.failing("open"):
            # NB: no writemap. It would spare copies, but a full disk would be a SIGBUS instead of an error, and the
            # file would be as long as the map.
            self._env = lmdb.open(
                str(folder), map_size=map_bytes, max_dbs=2, sync=False, metasync=False, writemap=False,
                readahead=False, mode=0o600,
            )  # fmt: skip
            try:
                if is_copy:
                    self._require_whole(map_bytes)
                self._revisions = self._env.open_db(b"revisions")
                self._leases = self._env.open_db(b"leases")
            except BaseException:
                self._env.close()
                raise

    def _require_whole(self, map_bytes: int) -> None:
        """NB: before anything is read. LMDB does not look at the length of its file, and reading past the end of it
        would be a SIGBUS."""
        present_bytes = (self._folder / DATA_FILE_NAME).stat().st_size
        if present_bytes < self.used_bytes:
            raise StateUnusable(
                f"the copy in {self._folder} has {present_bytes} bytes, and should have {self.used_bytes}"
            )
        if self.used_bytes > map_bytes:
            raise StateUnusable(
                f"the copy in {self._folder} has {self.used_bytes} bytes, over this member's map of {map_bytes}; "
                "give it a larger one (map bytes)"
            )

    def failing(self, action: str) -> contextlib.AbstractContextManager[None]:
        """Turns what the system or LMDB refuses into StateUnusable. A full map is the caller's to explain."""
        return failing(action, self._folder)

    def close(self) -> None:
        """Sync and close. Waits for a copy that is being made. Raises StateUnusable."""
        self._is_ending = True
        with self._copying, self.failing("close"):
            try:
                self._env.sync(True)
            finally:
                self._close()

    def abandon(self) -> None:
        """Close without syncing: the files are what kill -9 would have left. Waits for a copy that is being made."""
        self._is_ending = True
        with self._copying:
            self._close()

    @property
    def is_being_copied(self) -> bool:
        return self._copying.locked()

    def abandon_unless_copied(self) -> bool:
        """The same without waiting: False, and nothing is done, while a copy is being made."""
        if not self._copying.acquire(blocking=False):
            return False
        try:
            self._close()
        finally:
            self._copying.release()
        return True

    def _close(self) -> None:
        self._is_closed = True
        self._env.close()

    def copy(self, path: Path) -> tuple[int, int]:
        """Write all of the last transaction to the new file `path`, without LMDB's free pages. For a thread beside the
        one that writes, which goes on; not synced. Returns (applied_index, applied_term), as read from the copy. Raises
        StateUnusable, and leaves nothing behind then."""
        with self._copying, failing(f"copy to {path}", self._folder):
            if self._is_closed:
                raise StateUnusable(f"the state in {self._folder} was closed, or replaced, before it could be copied")
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                self.copy_into(descriptor)
                return _applied_in_copy(path)
            except BaseException:
                path.unlink()
                raise
            finally:
                os.close(descriptor)

    def copy_into(self, descriptor: int) -> None:
        self._env.copyfd(descriptor, compact=True)

    @contextlib.contextmanager
    def read_beside(self) -> Iterator[tuple[lmdb.Transaction, Callable[[], None]]]:
        """A read transaction for long work in a thread beside the one that writes, which goes on. With it comes what
        the work has to call after each slice. Either raises Unavailable when the state is closed, or is to be."""

        def go_on() -> None:
            if self._is_ending:
                raise Unavailable(f"the state in {self._folder} is closed, or was replaced; ask again")
            let_others_run()

        with self._copying, self.failing("read"):
            go_on()
            with self._env.begin(buffers=True) as txn:
                yield txn, go_on

    @property
    def used_bytes(self) -> int:
        """Bytes of the map in use, LMDB's free pages included."""
        used: int = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        return used

    @property
    def copy_bytes(self) -> int:
        """How large a copy is."""
        with self._env.begin() as txn:
            trees = [self._env.stat(), txn.stat(self._revisions), txn.stat(self._leases)]
        pages = sum(tree["branch_pages"] + tree["leaf_pages"] + tree["overflow_pages"] for tree in trees)
        copied: int = (_META_PAGES + pages) * trees[0]["psize"]
        return copied

    def read(self) -> lmdb.Transaction:
        return self._env.begin(buffers=True)

    def write(self) -> lmdb.Transaction:
        return self._env.begin(write=True, buffers=True)

    def load_meta(self) -> Meta:
        with self._env.begin() as txn:
            return self.meta_in(txn)

    def meta_in(self, txn: lmdb.Transaction) -> Meta:
        """As of the transaction."""
        stored = txn.get(_META_KEY)
        if stored is None:
            return Meta()
        written_format, meta = _stored_meta_decoder.decode(stored)
        if written_format != FORMAT:
            raise SettingsError(
                f"the state in {self._folder} has format {written_format}, and this release knows {FORMAT}: remove the "
                "folder, and the newest snapshot and the log rebuild it"
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

    def row_bytes(self, txn: lmdb.Transaction, at: Position) -> int:
        """Of a row's encoding, without reading it."""
        stored = txn.get(_row_key(at), db=self._revisions)
        return 0 if stored is None else len(stored)

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

    def heads_from(self, txn: lmdb.Transaction, main: int, sub: int) -> Iterator[tuple[int, int, RowHead]]:
        """(main, sub, head) from that row on, oldest first."""
        with txn.cursor(db=self._revisions) as cursor:
            if cursor.set_range(_ROW_KEY.pack(main, sub)):
                for key, value in cursor:
                    found_main, found_sub = _ROW_KEY.unpack(key)
                    yield found_main, found_sub, _head_decoder.decode(value)

    def encoded_rows(self, txn: lmdb.Transaction, first: int, last: int) -> Iterator[tuple[bytes, EncodedRow]]:
        """The rows of the revisions from `first` to `last` as they are stored, oldest first: key and value."""
        end = _ROW_KEY.pack(last + 1, 0)
        with txn.cursor(db=self._revisions) as cursor:
            if cursor.set_range(_ROW_KEY.pack(first, 0)):
                for key, value in cursor:
                    key = bytes(key)
                    if key >= end:
                        return
                    yield key, value

    def put_lease(self, txn: lmdb.Transaction, lease: int, row: LeaseRow) -> None:
        txn.put(_LEASE_KEY.pack(lease), _encoder.encode(row), db=self._leases)

    def delete_lease(self, txn: lmdb.Transaction, lease: int) -> None:
        txn.delete(_LEASE_KEY.pack(lease), db=self._leases)

    def leases(self, txn: lmdb.Transaction) -> Iterator[tuple[int, LeaseRow]]:
        with txn.cursor(db=self._leases) as cursor:
            for key, value in cursor:
                yield _LEASE_KEY.unpack(key)[0], _lease_decoder.decode(value)


def position_of(row_key: bytes, *, deleted: bool) -> Position:
    """What a row's key says."""
    main, sub = _ROW_KEY.unpack(row_key)
    return position(main, sub, deleted=deleted)


def _row_key(at: Position) -> bytes:
    """Main and sub one after the other, as `_ROW_KEY` packs them: that is what a position is, but for its last bit."""
    return (at >> 1).to_bytes(_ROW_KEY.size, "big")


def _applied_in_copy(path: Path) -> tuple[int, int]:
    env = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    try:
        with env.begin() as txn:
            stored = txn.get(_META_KEY)
    finally:
        env.close()
    meta = Meta() if stored is None else _stored_meta_decoder.decode(stored)[1]
    return meta.applied_index, meta.applied_term

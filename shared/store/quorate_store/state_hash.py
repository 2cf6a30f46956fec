"""Numbers for what a member has applied, so that members which should be equal can be compared: one for the whole state
as of its last entry, and one for the changes of keys up to a revision, which is the same while writes go on.

What each member does at its own pace is left out: how far it has swept. So a row that compaction has freed does not
count, whether or not it is still there.
"""

import hashlib
from collections.abc import Iterator
from zlib import crc32

import lmdb
import msgspec
from quorate_core.errors import FutureRevision

from quorate_store.database import Database, EncodedRow, Meta, position_of
from quorate_store.key_index import Position, is_deletion, main_of, position, sub_of
from quorate_store.loading import LoadedState
from quorate_store.model import StateHash
from quorate_store.mvcc import compacted
from quorate_store.pacing import Pause, paced

HASH_BYTES = 16

_SHARDS = 512

_encode = msgspec.msgpack.Encoder().encode


def hash_of_state(state: LoadedState) -> str:
    """Hexadecimal. Rows are read from LMDB; which keys a lease holds is taken from memory."""
    meta, index = state.meta, state.mvcc.index
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    digest.update(_encode(msgspec.structs.replace(meta, swept_revision=0)))
    compacted_before = position(meta.compact_revision + 1, 0, deleted=False)
    with state.database.read() as txn:
        for main, sub, row in state.database.rows_from(txn, 0):
            at = position(main, sub, deleted=row.version == 0)
            if main <= meta.compact_revision:
                is_superseded = index.predecessor(row.key, compacted_before) != at
                if is_superseded or (is_deletion(at) and main < meta.compact_revision):
                    continue
            digest.update(_encode((main_of(at), sub_of(at), row)))
    for lease, lease_row in sorted(state.leases):
        digest.update(_encode((lease, lease_row, list(state.leases.keys(lease)))))
    return digest.hexdigest()


class _RowHead(msgspec.Struct, array_like=True):
    """How a row begins."""

    key: bytes
    version: int


_head_decoder = msgspec.msgpack.Decoder(_RowHead)


def hash_of_revisions(database: Database, revision: int) -> StateHash:
    """Of the rows as they are stored, those that compaction has left, up to `revision` (0: the newest); for a thread. A
    CRC sees every difference of a few bytes; it is no proof against somebody who makes one on purpose.

    It reads one LMDB snapshot: compactions and sweeps that happen meanwhile do not change it. A second or two for
    1,000,000 keys, and some more while a compaction is not swept yet. Raises Compacted, FutureRevision, and Unavailable
    when the state is closed meanwhile.
    """
    with database.read_beside() as (txn, go_on):
        meta = database.meta_in(txn)
        last = revision or meta.revision
        if last > meta.revision:
            raise FutureRevision(f"revision {last} is in the future; the newest is {meta.revision}")
        if last < meta.compact_revision:
            raise compacted(last, meta.compact_revision)
        checksum = 0
        for key, value in _rows_that_count(database, txn, meta, last, go_on):
            checksum = crc32(value, crc32(key, checksum))
    return StateHash(checksum, meta.compact_revision, last)


def _rows_that_count(
    database: Database, txn: lmdb.Transaction, meta: Meta, last: int, go_on: Pause
) -> Iterator[tuple[bytes, EncodedRow]]:
    """All rows up to `last` but for those that compaction has freed and no sweep has come to yet."""
    first = 0
    if meta.swept_revision < meta.compact_revision:
        replaced = _last_changes(database, txn, meta, go_on)
        for key, value in paced(database.encoded_rows(txn, 0, meta.compact_revision), go_on):
            head = _head_decoder.decode(value)
            at = position_of(key, deleted=head.version == 0)
            is_forgotten = is_deletion(at) and main_of(at) < meta.compact_revision
            if not is_forgotten and at >= replaced.get(head.key, at):
                yield key, value
        replaced.shed(go_on)
        first = meta.compact_revision + 1
    yield from paced(database.encoded_rows(txn, first, last), go_on)


class _LastChanges:
    """When each of many keys has changed last. In many small dictionaries, as to grow one of a million keys, or to give
    it back, would hold the interpreter for tens of milliseconds."""

    def __init__(self) -> None:
        self._shards: list[dict[bytes, Position]] = [{} for _ in range(_SHARDS)]

    def put(self, key: bytes, at: Position) -> None:
        self._shards[hash(key) % _SHARDS][key] = at

    def get(self, key: bytes, otherwise: Position) -> Position:
        return self._shards[hash(key) % _SHARDS].get(key, otherwise)

    def shed(self, pause: Pause) -> None:
        while self._shards:
            self._shards.pop()
            pause()


def _last_changes(database: Database, txn: lmdb.Transaction, meta: Meta, go_on: Pause) -> _LastChanges:
    """When the keys that have changed between the last sweep and the compaction did so last: what they were before is
    freed. Whatever was freed by others is gone."""
    found = _LastChanges()
    for key, value in paced(database.encoded_rows(txn, meta.swept_revision, meta.compact_revision), go_on):
        head = _head_decoder.decode(value)
        found.put(head.key, position_of(key, deleted=head.version == 0))
    return found

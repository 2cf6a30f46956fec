"""One number for the whole applied state, so that members which should be equal can be compared.

What each member does at its own pace is left out: how far it has swept. So a row that compaction has freed does not
count, whether or not it is still there.
"""

import hashlib

import msgspec

from quorate_store.key_index import is_deletion, main_of, position, sub_of
from quorate_store.loading import LoadedState

HASH_BYTES = 16

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

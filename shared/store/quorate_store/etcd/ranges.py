"""Reads of ranges, in pages: no answer is larger than what can be decoded in one turn of the event loop without harm.

All pages are of the revision of the first, so the whole is what one request would have found. When the store compacts
that revision meanwhile, a read of the present begins again.
"""

from quorate_core.errors import Compacted, FutureRevision

from quorate_store.etcd.client import AnswerTooLarge, StoreClient
from quorate_store.etcd.messages import decode_range, encode_range
from quorate_store.model import KeyValue, RangeOp, RangeResult

RANGE_PATH = "/v3/kv/range"
PAGE_KEYS = 1_000
PAGE_SHRINKS_BY = 8
"""When a page is too large to be read."""
ATTEMPTS_MAX = 3


async def read_range(client: StoreClient, op: RangeOp, *, serializable: bool) -> RangeResult:
    """Raises what `StoreClient.read` does. `op` has no arrangement."""
    for _ in range(ATTEMPTS_MAX - 1):
        try:
            return await _read_pages(client, op, serializable=serializable)
        except (Compacted, FutureRevision):
            # The latter: a member that is behind was asked for the next page.
            if op.revision:
                raise
    return await _read_pages(client, op, serializable=serializable)


async def _read_pages(client: StoreClient, op: RangeOp, *, serializable: bool) -> RangeResult:
    if not op.range_end or op.count_only:
        return await _read_page(client, op, serializable=serializable)
    kvs: list[KeyValue] = []
    first: RangeResult | None = None
    page_keys = PAGE_KEYS
    key, revision = op.key, op.revision
    while True:
        left = op.limit - len(kvs) if op.limit else page_keys
        page = RangeOp(key, op.range_end, min(left, page_keys), revision, op.keys_only)
        try:
            found = await _read_page(client, page, serializable=serializable)
        except AnswerTooLarge:
            if page_keys == 1:
                raise
            page_keys = max(1, page_keys // PAGE_SHRINKS_BY)
            continue
        kvs += found.kvs
        first = first or found
        if not found.more or len(kvs) == op.limit:
            return RangeResult(first.revision, tuple(kvs), first.count, found.more)
        key, revision = kvs[-1].key + b"\0", op.revision or first.revision


async def _read_page(client: StoreClient, op: RangeOp, *, serializable: bool) -> RangeResult:
    header, result = decode_range(await client.read(RANGE_PATH, encode_range(op, serializable=serializable)))
    client.note(header)
    return result

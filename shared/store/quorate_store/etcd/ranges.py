"""Reads of ranges, in pages: an answer is no larger than what can be decoded in one turn of the event loop without
harm, comes within one attempt, and can be sent by the store. One that is larger is asked for again, with fewer keys.

All pages are of the revision of the first, so the whole is what one request would have found. When the store compacts
that revision meanwhile, a read of the present begins again.
"""

from quorate_core.errors import Compacted, FutureRevision, InvalidRequest

from quorate_store.etcd.client import ANSWER_BYTES_MAX, StoreClient
from quorate_store.etcd.errors import AnswerTooLarge
from quorate_store.etcd.messages import decode_range, encode_range
from quorate_store.model import KeyValue, RangeOp, RangeResult
from quorate_store.mvcc import RANGE_BYTES_MAX

RANGE_PATH = "/v3/kv/range"
PAGE_KEYS = 1_000
PAGE_BYTES_MAX = 8 * 1024 * 1024
"""In JSON, of more than one key: some tens of milliseconds to decode, and 0.7 s on a link of 100 Mbit/s."""
PAGE_SHRINKS_BY = 8
"""When a page is too large to be read."""
ATTEMPTS_MAX = 3


async def read_range(client: StoreClient, op: RangeOp, *, serializable: bool) -> RangeResult:
    """Raises what `StoreClient.read` does, and InvalidRequest when it holds over RANGE_BYTES_MAX. `op` has no
    arrangement."""
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
    size_bytes = 0
    first: RangeResult | None = None
    page_keys = PAGE_KEYS
    key, revision = op.key, op.revision
    while True:
        left = op.limit - len(kvs) if op.limit else page_keys
        page = RangeOp(key, op.range_end, min(left, page_keys), revision, op.keys_only)
        try:
            found = await _read_page(client, page, serializable=serializable)
        except AnswerTooLarge:
            if page.limit == 1:
                raise
            page_keys = max(1, page.limit // PAGE_SHRINKS_BY)
            continue
        kvs += found.kvs
        size_bytes += sum(len(kv.key) + len(kv.value) for kv in found.kvs)
        if size_bytes > RANGE_BYTES_MAX:
            raise InvalidRequest(f"the range holds over {RANGE_BYTES_MAX} bytes; read it in parts, with a limit")
        first = first or found
        if not found.more or len(kvs) == op.limit:
            return RangeResult(first.revision, tuple(kvs), first.count, found.more)
        key, revision = kvs[-1].key + b"\0", op.revision or first.revision


async def _read_page(client: StoreClient, op: RangeOp, *, serializable: bool) -> RangeResult:
    is_of_one_key = not op.range_end or op.limit == 1
    body = encode_range(op, serializable=serializable)
    answer_bytes_max = ANSWER_BYTES_MAX if is_of_one_key else PAGE_BYTES_MAX
    header, result = decode_range(await client.read(RANGE_PATH, body, answer_bytes_max=answer_bytes_max))
    client.note(header)
    return result

"""How a range's answer is filtered and sorted beyond the store's own order of keys, as etcd does it. Pure.

etcd reads the whole range, then filters, then sorts, then cuts at the limit; the count stays that of the range.
"""

from collections.abc import Callable
from typing import Any

from quorate_store.model import Arrangement, KeyValue, RangeOp, RangeResult, SortOrder, SortTarget

_SUBJECTS: dict[SortTarget, Callable[[KeyValue], Any]] = {
    SortTarget.KEY: lambda kv: kv.key,
    SortTarget.VERSION: lambda kv: kv.version,
    SortTarget.CREATE: lambda kv: kv.create_revision,
    SortTarget.MOD: lambda kv: kv.mod_revision,
    SortTarget.VALUE: lambda kv: kv.value,
}


def whole_of(op: RangeOp) -> RangeOp:
    """What must be read so that `arranged` can answer `op`."""
    arrangement = op.arrangement
    if arrangement is None:
        return op
    keys_only = op.keys_only and arrangement.target is not SortTarget.VALUE
    return RangeOp(op.key, op.range_end, 0, op.revision, keys_only, op.count_only)


def arranged(op: RangeOp, whole: RangeResult) -> RangeResult:
    """The answer to `op`, from the answer to `whole_of(op)`."""
    arrangement = op.arrangement
    if arrangement is None:
        return whole
    kvs = [kv for kv in whole.kvs if _keeps(arrangement, kv)]
    # A target without an order means ascending (etcd's applyV3.Range). Equals stay in order of key; etcd promises none.
    is_descending = arrangement.order is SortOrder.DESCEND
    if arrangement.target is not SortTarget.KEY or is_descending:
        kvs.sort(key=_SUBJECTS[arrangement.target], reverse=is_descending)
    more = 0 < op.limit < len(kvs)
    if more:
        kvs = kvs[: op.limit]
    if op.keys_only:
        kvs = [KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs]
    return RangeResult(whole.revision, tuple(kvs), whole.count, more)


def _keeps(arrangement: Arrangement, kv: KeyValue) -> bool:
    return (
        arrangement.mod_revision_min <= kv.mod_revision
        and (arrangement.mod_revision_max == 0 or kv.mod_revision <= arrangement.mod_revision_max)
        and arrangement.create_revision_min <= kv.create_revision
        and (arrangement.create_revision_max == 0 or kv.create_revision <= arrangement.create_revision_max)
    )

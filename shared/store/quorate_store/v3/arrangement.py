"""How a range's answer is filtered and sorted beyond the store's own order of keys, as etcd does it. Pure.

etcd reads the whole range, then filters, then sorts, then cuts at the limit; the count stays that of the range.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from quorate_store.model import KeyValue, RangeResult


class SortOrder(IntEnum):
    """`etcdserverpb.RangeRequest.SortOrder`."""

    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(IntEnum):
    """`etcdserverpb.RangeRequest.SortTarget`."""

    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Bounds of revisions are inclusive, and 0 stands for none."""

    order: SortOrder = SortOrder.NONE
    target: SortTarget = SortTarget.KEY
    mod_revision_min: int = 0
    mod_revision_max: int = 0
    create_revision_min: int = 0
    create_revision_max: int = 0

    @property
    def is_natural(self) -> bool:
        """Whether the store's own answer is what is asked for."""
        return not self._filters and self.target is SortTarget.KEY and self.order is not SortOrder.DESCEND

    @property
    def needs_values(self) -> bool:
        return self.target is SortTarget.VALUE

    @property
    def _filters(self) -> bool:
        return any(
            (self.mod_revision_min, self.mod_revision_max, self.create_revision_min, self.create_revision_max)
        )  # fmt: skip

    def arrange(self, whole: RangeResult, limit: int, *, keys_only: bool) -> RangeResult:
        """`whole` is the range without a limit; `limit` 0 cuts nothing."""
        kvs = [kv for kv in whole.kvs if self._keeps(kv)]
        # A target without an order means ascending (etcd's applyV3.Range). Both sorts keep the order of equals.
        if self.target is not SortTarget.KEY or self.order is SortOrder.DESCEND:
            kvs.sort(key=self._subject, reverse=self.order is SortOrder.DESCEND)
        more = 0 < limit < len(kvs)
        if more:
            kvs = kvs[:limit]
        if keys_only:
            kvs = [
                KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs
            ]  # fmt: skip
        return RangeResult(whole.revision, tuple(kvs), whole.count, more)

    def _keeps(self, kv: KeyValue) -> bool:
        return (
            self.mod_revision_min <= kv.mod_revision
            and (self.mod_revision_max == 0 or kv.mod_revision <= self.mod_revision_max)
            and self.create_revision_min <= kv.create_revision
            and (self.create_revision_max == 0 or kv.create_revision <= self.create_revision_max)
        )

    def _subject(self, kv: KeyValue) -> Any:
        match self.target:
            case SortTarget.KEY:
                return kv.key
            case SortTarget.VERSION:
                return kv.version
            case SortTarget.CREATE:
                return kv.create_revision
            case SortTarget.MOD:
                return kv.mod_revision
            case SortTarget.VALUE:
                return kv.value

"""Values of the store, with etcd's meanings: key-values, events, comparisons, operations, and their results.

Keys and values are bytes. A revision counts transactions that changed something, from 1 (an empty store); all
changes of one transaction share its revision. A range is `[key, range_end)`; an empty `range_end` means the one
key, `RANGE_ALL` as end means every key from `key` on.
"""

from enum import IntEnum, StrEnum

import msgspec

RANGE_ALL = b"\0"
REQUEST_BYTES_MAX = 1_572_864
"""1.5 MiB, etcd's default."""
TXN_OPERATIONS_MAX = 128
"""etcd's default; counted over both branches, each for itself."""
RESERVED_PREFIX = b"quorate/"
"""Keys of the apps; the open API may read them and not write them."""
RESTORED_KEY = RESERVED_PREFIX + b"restored"
"""Says of a store that began from a backup what that was. Its revision is the first of the store's new life: whoever
has seen an older one cannot rely on anything of it."""


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` that makes `[prefix, end)` all keys with this prefix; RANGE_ALL when there is no such end."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else RANGE_ALL


class KeyValue(msgspec.Struct, frozen=True, array_like=True):
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    """Changes since the key was created, from 1."""
    lease: int = 0


class EventKind(IntEnum):
    PUT = 0
    DELETE = 1


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One change of one key. For a DELETE, `kv` has only `key` and `mod_revision`."""

    kind: EventKind
    kv: KeyValue
    previous: KeyValue | None = None

    @property
    def size_bytes(self) -> int:
        """Of its keys and values."""
        before = self.previous
        return len(self.kv.key) + len(self.kv.value) + (0 if before is None else len(before.key) + len(before.value))


class WatchBatch(msgspec.Struct, frozen=True):
    """What a watch yields, in order of revision: all events of one or more whole revisions up to `revision`.

    No events: a bookmark; everything up to and including `revision` has been delivered.
    """

    revision: int
    events: tuple[Event, ...] = ()


class CompareTarget(StrEnum):
    VERSION = "version"
    CREATE = "create"
    MOD = "mod"
    VALUE = "value"
    LEASE = "lease"


class CompareResult(StrEnum):
    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


class Compare(msgspec.Struct, frozen=True, array_like=True):
    """True when it holds for every key in the range (an absent single key has version, create, mod, lease 0; a value
    comparison with an absent key is false)."""

    key: bytes
    target: CompareTarget
    result: CompareResult
    operand: int | bytes
    range_end: bytes = b""


class SortOrder(IntEnum):
    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(IntEnum):
    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class Arrangement(msgspec.Struct, frozen=True, array_like=True):
    """How an answer is filtered, and then sorted, and then cut at its limit; the count stays that of the range.

    Bounds of revisions are inclusive, and 0 stands for none. A target without an order means ascending.
    """

    order: SortOrder = SortOrder.NONE
    target: SortTarget = SortTarget.KEY
    mod_revision_min: int = 0
    mod_revision_max: int = 0
    create_revision_min: int = 0
    create_revision_max: int = 0


class RangeOp(msgspec.Struct, frozen=True, array_like=True, tag="range"):
    key: bytes
    range_end: bytes = b""
    limit: int = 0
    """0: no limit."""
    revision: int = 0
    """0: the newest."""
    keys_only: bool = False
    count_only: bool = False
    arrangement: Arrangement | None = None
    """None: all, in order of key."""


class PutOp(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    """`ignore_value` and `ignore_lease`: the key, which must be there, keeps its own."""

    key: bytes
    value: bytes
    lease: int = 0
    previous: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


class DeleteOp(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    key: bytes
    range_end: bytes = b""
    previous: bool = False


class TxnOp(msgspec.Struct, frozen=True, array_like=True, tag="txn"):
    """If all of `compare` hold: `success`, else `failure`. A key may be written once only in a branch."""

    compare: tuple[Compare, ...]
    success: tuple["Operation", ...] = ()
    failure: tuple["Operation", ...] = ()


Operation = RangeOp | PutOp | DeleteOp | TxnOp


class RangeResult(msgspec.Struct, frozen=True, array_like=True, tag="range"):
    """`revision` is the store's when the answer was made; `count` counts all keys in the range, `more` says that
    `limit` cut."""

    revision: int
    kvs: tuple[KeyValue, ...]
    count: int
    more: bool = False


class PutResult(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    revision: int
    previous: KeyValue | None = None


class DeleteResult(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    revision: int
    deleted: int
    previous: tuple[KeyValue, ...] = ()


class TxnResult(msgspec.Struct, frozen=True, array_like=True, tag="txn"):
    revision: int
    succeeded: bool
    results: tuple["OperationResult", ...]


OperationResult = RangeResult | PutResult | DeleteResult | TxnResult


class LeaseStatus(msgspec.Struct, frozen=True, array_like=True):
    lease: int
    granted_ttl_s: int
    remaining_ttl_s: float
    keys: tuple[bytes, ...] = ()


class StateHash(msgspec.Struct, frozen=True):
    """Of all changes of keys from `compact_revision` up to `revision`, those included that compaction left."""

    hash: int
    """32 bits."""
    compact_revision: int
    revision: int


class MemberHead(msgspec.Struct, frozen=True):
    """What every answer says of the member that it is from: its name, its term, and the revision of its state."""

    name: str
    term: int
    revision: int


class MemberStatus(msgspec.Struct, frozen=True):
    """One member as it sees itself."""

    name: str
    role: str
    """leader, follower, candidate or pre-candidate."""
    leader: str
    """Empty when none is known."""
    term: int
    commit_index: int
    applied_index: int
    revision: int
    store_bytes: int
    members: tuple[str, ...]
    connected: tuple[str, ...]
    """Peers whose link is up."""
    quota_bytes: int = 0
    """Of `store_bytes`, from where on the store refuses to grow; 0 where it is not known."""

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


class RangeOp(msgspec.Struct, frozen=True, array_like=True, tag="range"):
    key: bytes
    range_end: bytes = b""
    limit: int = 0
    """0: no limit."""
    revision: int = 0
    """0: the newest."""
    keys_only: bool = False
    count_only: bool = False


class PutOp(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    key: bytes
    value: bytes
    lease: int = 0
    previous: bool = False


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

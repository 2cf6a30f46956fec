"""The v3 JSON API's messages, as etcd's gateway reads and writes them. Pure.

Bytes are standard base64, 64-bit integers are strings on the way out and strings or numbers on the way in, fields
that are zero are left out. A field may come by its own name or in camel case (`range_end`, `rangeEnd`), null stands
for zero, an empty body for an empty message, and what is unknown is ignored. Checked against a real etcd 3.4.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from quorate_core.errors import (
    Compacted,
    FutureRevision,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    QuorateError,
    QuotaExceeded,
)

from quorate_store.model import KeyValue, PutResult, RangeResult
from quorate_store.v3.arrangement import Arrangement, SortOrder, SortTarget

ETCD_VERSION = "3.4.0"
"""The version of the API that is spoken here, which is what clients take this field for."""

T = TypeVar("T")
E = TypeVar("E", bound=IntEnum)
_Integer = int | str | None
_Flag = bool | None
_Bytes = bytes | None

_DECIMAL = re.compile(r"-?[0-9]{1,19}")
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class _WireRange(msgspec.Struct):
    key: _Bytes = None
    range_end: _Bytes = None
    range_end_camel: _Bytes = msgspec.field(default=None, name="rangeEnd")
    limit: _Integer = None
    revision: _Integer = None
    sort_order: _Integer = None
    sort_order_camel: _Integer = msgspec.field(default=None, name="sortOrder")
    sort_target: _Integer = None
    sort_target_camel: _Integer = msgspec.field(default=None, name="sortTarget")
    serializable: _Flag = None
    keys_only: _Flag = None
    keys_only_camel: _Flag = msgspec.field(default=None, name="keysOnly")
    count_only: _Flag = None
    count_only_camel: _Flag = msgspec.field(default=None, name="countOnly")
    min_mod_revision: _Integer = None
    min_mod_revision_camel: _Integer = msgspec.field(default=None, name="minModRevision")
    max_mod_revision: _Integer = None
    max_mod_revision_camel: _Integer = msgspec.field(default=None, name="maxModRevision")
    min_create_revision: _Integer = None
    min_create_revision_camel: _Integer = msgspec.field(default=None, name="minCreateRevision")
    max_create_revision: _Integer = None
    max_create_revision_camel: _Integer = msgspec.field(default=None, name="maxCreateRevision")


class _WirePut(msgspec.Struct):
    key: _Bytes = None
    value: _Bytes = None
    lease: _Integer = None
    prev_kv: _Flag = None
    prev_kv_camel: _Flag = msgspec.field(default=None, name="prevKv")
    ignore_value: _Flag = None
    ignore_value_camel: _Flag = msgspec.field(default=None, name="ignoreValue")
    ignore_lease: _Flag = None
    ignore_lease_camel: _Flag = msgspec.field(default=None, name="ignoreLease")


@dataclass(frozen=True, slots=True)
class RangeRequest:
    key: bytes
    range_end: bytes
    limit: int
    revision: int
    serializable: bool
    keys_only: bool
    count_only: bool
    arrangement: Arrangement


@dataclass(frozen=True, slots=True)
class PutRequest:
    key: bytes
    value: bytes
    lease: int
    previous: bool
    ignore_value: bool
    """Keep the value that the key has."""
    ignore_lease: bool
    """Keep the lease that the key has."""


class Header(msgspec.Struct, frozen=True):
    """`cluster_id` and `member_id` are 64 bits, in decimal."""

    cluster_id: str
    member_id: str
    revision: str
    raft_term: str


class _WireKeyValue(msgspec.Struct, frozen=True):
    key: bytes
    create_revision: str | UnsetType = UNSET
    mod_revision: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    value: bytes | UnsetType = UNSET
    lease: str | UnsetType = UNSET


class _WireRangeAnswer(msgspec.Struct, frozen=True):
    header: Header
    kvs: list[_WireKeyValue] | UnsetType = UNSET
    more: bool | UnsetType = UNSET
    count: str | UnsetType = UNSET


class _WirePutAnswer(msgspec.Struct, frozen=True):
    header: Header
    prev_kv: _WireKeyValue | UnsetType = UNSET


class StatusAnswer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    header: Header
    version: str
    db_size: str
    raft_index: str
    raft_term: str
    raft_applied_index: str
    db_size_in_use: str
    leader: str | UnsetType = UNSET
    """Absent when no leader is known."""


_encode = msgspec.json.Encoder().encode
_range_decoder = msgspec.json.Decoder(_WireRange)
_put_decoder = msgspec.json.Decoder(_WirePut)
_empty_decoder = msgspec.json.Decoder(dict[str, Any])


def decode_range(body: bytes) -> RangeRequest:
    """Raises InvalidRequest."""
    wire = _decode(_range_decoder.decode, body, _WireRange)
    return RangeRequest(
        key=wire.key or b"",
        range_end=wire.range_end or wire.range_end_camel or b"",
        limit=max(0, _int64("limit", wire.limit)),
        revision=max(0, _int64("revision", wire.revision)),
        serializable=bool(wire.serializable),
        keys_only=bool(wire.keys_only or wire.keys_only_camel),
        count_only=bool(wire.count_only or wire.count_only_camel),
        arrangement=_arrangement(wire),
    )


def _arrangement(wire: _WireRange) -> Arrangement:
    return Arrangement(
        order=_enum("sort_order", SortOrder, wire.sort_order or wire.sort_order_camel),
        target=_enum("sort_target", SortTarget, wire.sort_target or wire.sort_target_camel),
        mod_revision_min=_int64("min_mod_revision", wire.min_mod_revision or wire.min_mod_revision_camel),
        mod_revision_max=_int64("max_mod_revision", wire.max_mod_revision or wire.max_mod_revision_camel),
        create_revision_min=_int64("min_create_revision", wire.min_create_revision or wire.min_create_revision_camel),
        create_revision_max=_int64("max_create_revision", wire.max_create_revision or wire.max_create_revision_camel),
    )


def decode_put(body: bytes) -> PutRequest:
    """Raises InvalidRequest, NotFound for a lease that cannot be."""
    wire = _decode(_put_decoder.decode, body, _WirePut)
    lease = _int64("lease", wire.lease)
    if lease < 0:
        raise NotFound(f"lease {lease} does not exist")
    request = PutRequest(
        wire.key or b"",
        wire.value or b"",
        lease,
        bool(wire.prev_kv or wire.prev_kv_camel),
        bool(wire.ignore_value or wire.ignore_value_camel),
        bool(wire.ignore_lease or wire.ignore_lease_camel),
    )
    if request.ignore_value and request.value:
        raise InvalidRequest("value is provided")
    if request.ignore_lease and request.lease:
        raise InvalidRequest("lease is provided")
    return request


def decode_empty(body: bytes) -> None:
    """A message without fields. Raises InvalidRequest for what is no JSON object."""
    _decode(_empty_decoder.decode, body, dict)


def _decode(decode: Callable[[bytes], T], body: bytes, empty: Callable[[], T]) -> T:
    if not body or body.isspace() or body == b"null":
        return empty()
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body cannot be read: {error}") from error


def _enum(name: str, kind: type[E], given: _Integer) -> E:
    """A member by name or number; nothing given is 0."""
    if isinstance(given, str) and given in kind.__members__:
        return kind[given]
    number = _int64(name, given)
    if number not in kind._value2member_map_:
        raise InvalidRequest(f"{name} is {number}; it is one of {', '.join(kind.__members__)}")
    return kind(number)


def _int64(name: str, given: _Integer) -> int:
    if given is None:
        return 0
    if isinstance(given, str):
        if not _DECIMAL.fullmatch(given):
            raise InvalidRequest(f"{name} is {given[:32]!r}, which is no integer")
        given = int(given)
    if not _INT64_MIN <= given <= _INT64_MAX:
        raise InvalidRequest(f"{name} is {given}, which is out of the range of 64 bits")
    return given


def encode_range(header: Header, result: RangeResult) -> bytes:
    return _encode(
        _WireRangeAnswer(
            header,
            kvs=[_wire_kv(kv) for kv in result.kvs] if result.kvs else UNSET,
            more=True if result.more else UNSET,
            count=_integer(result.count),
        )
    )


def encode_put(header: Header, result: PutResult) -> bytes:
    return _encode(_WirePutAnswer(header, UNSET if result.previous is None else _wire_kv(result.previous)))


def encode_status(answer: StatusAnswer) -> bytes:
    return _encode(answer)


def _wire_kv(kv: KeyValue) -> _WireKeyValue:
    return _WireKeyValue(
        kv.key, _integer(kv.create_revision), _integer(kv.mod_revision), _integer(kv.version), kv.value or UNSET,
        _integer(kv.lease),
    )  # fmt: skip


def _integer(number: int) -> str | UnsetType:
    return str(number) if number else UNSET


class _WireError(msgspec.Struct, frozen=True):
    error: str
    message: str
    code: int


_ETCD_MESSAGES: dict[type[QuorateError], str] = {
    Compacted: "etcdserver: mvcc: required revision has been compacted",
    FutureRevision: "etcdserver: mvcc: required revision is a future revision",
    NotFound: "etcdserver: requested lease not found",
    PayloadTooLarge: "etcdserver: request is too large",
    QuotaExceeded: "etcdserver: mvcc: database space exceeded",
}
"""Clients compare these texts. What is not here keeps our own, which says more."""

_HTTP_STATUS_BY_GRPC_CODE = {
    1: 408, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503,
    15: 500, 16: 401,
}  # fmt: skip
"""grpc-gateway's `runtime.HTTPStatusFromCode`, of the version in etcd 3.4."""


def encode_error(error: QuorateError) -> tuple[int, bytes]:
    """HTTP status and body."""
    code = error.kind.grpc_code
    message = _ETCD_MESSAGES.get(type(error), error.detail)
    if isinstance(error, InvalidRequest) and type(error) not in _ETCD_MESSAGES:
        message = f"etcdserver: {error.detail}"
    return _HTTP_STATUS_BY_GRPC_CODE.get(code, 500), _encode(_WireError(message, message, code))

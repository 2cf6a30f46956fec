"""The messages of etcd's v3 JSON API as a client writes and reads them. Pure.

Bytes are base64 and 64-bit integers come as strings, what is zero is left out. What a later etcd may add is ignored.
A body that is no such message raises `Unreadable`: whoever sent it does not speak this API.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from quorate_core.errors import InvariantViolation, QuorateError

from quorate_store.model import (
    Arrangement,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    DeleteResult,
    Event,
    EventKind,
    KeyValue,
    Operation,
    OperationResult,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
)

T = TypeVar("T")


class Unreadable(QuorateError):
    """An answer that is none of this API's."""


class Header(msgspec.Struct, frozen=True):
    """Ids in decimal; they are empty, and the rest 0, where the answer does not say."""

    cluster_id: str = ""
    member_id: str = ""
    revision: int = 0
    raft_term: int = 0


class _WireKeyValue(msgspec.Struct, frozen=True):
    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class _WireRange(msgspec.Struct, frozen=True):
    header: Header = Header()
    kvs: list[_WireKeyValue] = []
    more: bool = False
    count: int = 0


class _WirePut(msgspec.Struct, frozen=True):
    header: Header = Header()
    prev_kv: _WireKeyValue | None = None


class _WireDelete(msgspec.Struct, frozen=True):
    header: Header = Header()
    deleted: int = 0
    prev_kvs: list[_WireKeyValue] = []


class _WireResult(msgspec.Struct, frozen=True):
    """One of them is there."""

    response_range: _WireRange | None = None
    response_put: _WirePut | None = None
    response_delete_range: _WireDelete | None = None
    response_txn: "_WireTxn | None" = None


class _WireTxn(msgspec.Struct, frozen=True):
    header: Header = Header()
    succeeded: bool = False
    responses: list[_WireResult] = []


class _WireLeaseId(msgspec.Struct, frozen=True):
    lease: int = msgspec.field(name="ID", default=0)


class LeaseAnswer(msgspec.Struct, frozen=True):
    """Of a grant, a keepalive, a revocation, or a question what is left: -1 when there is no such lease, for the last;
    0 for a keepalive."""

    header: Header = Header()
    lease: int = msgspec.field(name="ID", default=0)
    ttl_s: int = msgspec.field(name="TTL", default=0)
    granted_ttl_s: int = msgspec.field(name="grantedTTL", default=0)
    keys: list[bytes] = []


class _WireLeases(msgspec.Struct, frozen=True):
    header: Header = Header()
    leases: list[_WireLeaseId] = []


class StatusAnswer(msgspec.Struct, frozen=True, rename="camel"):
    header: Header = Header()
    db_size: int = 0
    leader: str = ""
    raft_index: int = 0
    raft_applied_index: int = 0
    raft_term: int = 0
    is_learner: bool = False


class WireMember(msgspec.Struct, frozen=True):
    """`name` is empty for a member that has not started yet."""

    ID: str = ""
    name: str = ""


class _WireMembers(msgspec.Struct, frozen=True):
    members: list[WireMember] = []


class HashAnswer(msgspec.Struct, frozen=True):
    """`hash_revision` is there when a revision could be asked for."""

    header: Header = Header()
    hash: int = 0
    compact_revision: int = 0
    hash_revision: int | None = None


class _WireEvent(msgspec.Struct, frozen=True):
    kv: _WireKeyValue = _WireKeyValue()
    type: str = "PUT"
    prev_kv: _WireKeyValue | None = None


class WatchAnswer(msgspec.Struct, frozen=True):
    """One line of a watch. `fragment`: the last revision in it may go on in the next line."""

    header: Header = Header()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False
    wire_events: list[_WireEvent] = msgspec.field(name="events", default=[])

    def events(self, first: int, end: int) -> list[Event]:
        """Some of them. Raises Unreadable."""
        return [_event(wire) for wire in self.wire_events[first:end]]


class _StreamError(msgspec.Struct, frozen=True):
    grpc_code: int = 2
    message: str = ""


class StreamLine(msgspec.Struct, frozen=True):
    """A line of a stream: a result, undecoded, or an error that ends it."""

    result: msgspec.Raw = msgspec.Raw(b"")
    error: _StreamError | None = None


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    # Not strict: numbers may come as strings, and 64-bit ones do.
    return msgspec.json.Decoder(kind, strict=False)


_range_decoder = _decoder(_WireRange)
_put_decoder = _decoder(_WirePut)
_delete_decoder = _decoder(_WireDelete)
_txn_decoder = _decoder(_WireTxn)
_lease_decoder = _decoder(LeaseAnswer)
_leases_decoder = _decoder(_WireLeases)
_status_decoder = _decoder(StatusAnswer)
_members_decoder = _decoder(_WireMembers)
_hash_decoder = _decoder(HashAnswer)
_watch_decoder = _decoder(WatchAnswer)
_line_decoder = _decoder(StreamLine)
_encode = msgspec.json.Encoder().encode

_TARGETS = {
    CompareTarget.VERSION: ("VERSION", "version"),
    CompareTarget.CREATE: ("CREATE", "create_revision"),
    CompareTarget.MOD: ("MOD", "mod_revision"),
    CompareTarget.VALUE: ("VALUE", "value"),
    CompareTarget.LEASE: ("LEASE", "lease"),
}
_RESULTS = {
    CompareResult.EQUAL: "EQUAL",
    CompareResult.NOT_EQUAL: "NOT_EQUAL",
    CompareResult.GREATER: "GREATER",
    CompareResult.LESS: "LESS",
}


def _decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"the store's answer is none of etcd's v3 API: {error}") from error


def encode_range(op: RangeOp, *, serializable: bool = False) -> bytes:
    return _encode({**_range(op), "serializable": serializable})


def encode_put(op: PutOp) -> bytes:
    return _encode(_put(op))


def encode_delete(op: DeleteOp) -> bytes:
    return _encode(_delete(op))


def encode_txn(op: TxnOp) -> bytes:
    return _encode(_txn(op))


def encode_compaction(revision: int) -> bytes:
    return _encode({"revision": str(revision)})


def encode_grant(ttl_s: int, lease: int) -> bytes:
    return _encode({"TTL": str(ttl_s), "ID": str(lease)})


def encode_lease(lease: int, *, keys: bool = False) -> bytes:
    return _encode({"ID": str(lease), "keys": True} if keys else {"ID": str(lease)})


def encode_keepalives(leases: Iterable[int]) -> bytes:
    """Several messages of one stream."""
    return b"\n".join(encode_lease(lease) for lease in leases)


def encode_hash(revision: int) -> bytes:
    return _encode({"revision": str(revision)})


def encode_watch(key: bytes, range_end: bytes, start_revision: int, *, previous: bool) -> bytes:
    """Fragments are asked for, so that no line is much longer than what one request may write."""
    create = {
        "key": key, "range_end": range_end, "start_revision": str(start_revision), "prev_kv": previous,
        "fragment": True,
    }  # fmt: skip
    return _encode({"create_request": create})


def _range(op: RangeOp) -> dict[str, Any]:
    fields: dict[str, Any] = {"key": op.key, "range_end": op.range_end}
    if op.limit:
        fields["limit"] = str(op.limit)
    if op.revision:
        fields["revision"] = str(op.revision)
    if op.keys_only:
        fields["keys_only"] = True
    if op.count_only:
        fields["count_only"] = True
    return fields if op.arrangement is None else {**fields, **_arrangement(op.arrangement)}


def _arrangement(arrangement: Arrangement) -> dict[str, Any]:
    return {
        "sort_order": arrangement.order.name,
        "sort_target": arrangement.target.name,
        "min_mod_revision": str(arrangement.mod_revision_min),
        "max_mod_revision": str(arrangement.mod_revision_max),
        "min_create_revision": str(arrangement.create_revision_min),
        "max_create_revision": str(arrangement.create_revision_max),
    }


def _put(op: PutOp) -> dict[str, Any]:
    fields: dict[str, Any] = {"key": op.key, "value": op.value}
    if op.lease:
        fields["lease"] = str(op.lease)
    for name, given in (("prev_kv", op.previous), ("ignore_value", op.ignore_value), ("ignore_lease", op.ignore_lease)):
        if given:
            fields[name] = True
    return fields


def _delete(op: DeleteOp) -> dict[str, Any]:
    return {"key": op.key, "range_end": op.range_end, "prev_kv": op.previous}


def _txn(op: TxnOp) -> dict[str, Any]:
    return {
        "compare": [_compare(compare) for compare in op.compare],
        "success": [_operation(operation) for operation in op.success],
        "failure": [_operation(operation) for operation in op.failure],
    }


def _operation(op: Operation) -> dict[str, Any]:
    match op:
        case RangeOp():
            return {"request_range": _range(op)}
        case PutOp():
            return {"request_put": _put(op)}
        case DeleteOp():
            return {"request_delete_range": _delete(op)}
        case TxnOp():
            return {"request_txn": _txn(op)}


def _compare(compare: Compare) -> dict[str, Any]:
    target, field = _TARGETS[compare.target]
    operand = compare.operand if isinstance(compare.operand, bytes) else str(compare.operand)
    return {
        "key": compare.key, "range_end": compare.range_end, "target": target, "result": _RESULTS[compare.result],
        field: operand,
    }  # fmt: skip


def decode_range(body: bytes) -> tuple[Header, RangeResult]:
    wire = _decode(_range_decoder, body)
    return wire.header, _range_result(wire)


def decode_put(body: bytes) -> tuple[Header, PutResult]:
    wire = _decode(_put_decoder, body)
    return wire.header, _put_result(wire)


def decode_delete(body: bytes) -> tuple[Header, DeleteResult]:
    wire = _decode(_delete_decoder, body)
    return wire.header, _delete_result(wire)


def decode_txn(body: bytes) -> tuple[Header, TxnResult]:
    wire = _decode(_txn_decoder, body)
    return wire.header, _txn_result(wire, wire.header.revision)


def decode_lease(body: bytes | msgspec.Raw) -> LeaseAnswer:
    return _decode(_lease_decoder, body)


def decode_leases(body: bytes) -> tuple[Header, list[int]]:
    wire = _decode(_leases_decoder, body)
    return wire.header, [each.lease for each in wire.leases]


def decode_status(body: bytes) -> StatusAnswer:
    return _decode(_status_decoder, body)


def decode_members(body: bytes) -> Sequence[WireMember]:
    return _decode(_members_decoder, body).members


def decode_hash(body: bytes) -> HashAnswer:
    return _decode(_hash_decoder, body)


def decode_line(line: bytes) -> StreamLine:
    return _decode(_line_decoder, line)


def decode_watch(result: msgspec.Raw) -> WatchAnswer:
    return _decode(_watch_decoder, result)


def _kv(wire: _WireKeyValue) -> KeyValue:
    return KeyValue(wire.key, wire.value, wire.create_revision, wire.mod_revision, wire.version, wire.lease)


def _range_result(wire: _WireRange) -> RangeResult:
    return RangeResult(wire.header.revision, tuple([_kv(kv) for kv in wire.kvs]), wire.count, wire.more)


def _put_result(wire: _WirePut) -> PutResult:
    return PutResult(wire.header.revision, None if wire.prev_kv is None else _kv(wire.prev_kv))


def _delete_result(wire: _WireDelete) -> DeleteResult:
    return DeleteResult(wire.header.revision, wire.deleted, tuple([_kv(kv) for kv in wire.prev_kvs]))


def _txn_result(wire: _WireTxn, revision: int) -> TxnResult:
    return TxnResult(revision, wire.succeeded, tuple([_result(one, revision) for one in wire.responses]))


def _nested_result(wire: _WireTxn, revision: int) -> TxnResult:
    """etcd does not say at which revision a nested transaction was; its last result does."""
    results = tuple([_result(one, revision) for one in wire.responses])
    return TxnResult(results[-1].revision if results else revision, wire.succeeded, results)


def _result(wire: _WireResult, revision: int) -> OperationResult:
    if wire.response_range is not None:
        return _range_result(wire.response_range)
    if wire.response_put is not None:
        return _put_result(wire.response_put)
    if wire.response_delete_range is not None:
        return _delete_result(wire.response_delete_range)
    if wire.response_txn is not None:
        return _nested_result(wire.response_txn, revision)
    raise Unreadable("the store's answer to a transaction has a result of an unknown kind")


def _event(wire: _WireEvent) -> Event:
    kind = EventKind.__members__.get(wire.type)
    if kind is None:
        raise Unreadable(f"the store tells of an event of the unknown kind {wire.type[:32]!r}")
    return Event(kind, _kv(wire.kv), None if wire.prev_kv is None else _kv(wire.prev_kv))


def require_same_shape(op: TxnOp, result: TxnResult) -> TxnResult:
    """Raises InvariantViolation when `result` does not answer what `op` asked for."""
    branch = op.success if result.succeeded else op.failure
    if len(branch) != len(result.results):
        raise InvariantViolation(f"a transaction of {len(branch)} operations was answered by {len(result.results)}")
    return result

"""The messages of `/v3/kv`: requests become the store's operations, and the store's results become answers. Pure."""

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType
from quorate_core.errors import Compacted, NotFound

from quorate_store.model import (
    TXN_OPERATIONS_MAX,
    Arrangement,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    DeleteResult,
    KeyValue,
    Operation,
    OperationResult,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    SortOrder,
    SortTarget,
    TxnOp,
    TxnResult,
)
from quorate_store.refusals import KeyNotFound, TooManyOperations
from quorate_store.v3.codec import Bytes, Flag, Header, Integer, decode, either, enum, int64, integer
from quorate_store.v3.go_json import GoType, NestedTooDeep

NESTING_MAX = TXN_OPERATIONS_MAX
"""Of transactions in transactions: each takes one of the operations that those around it have left."""
_NATURAL = Arrangement()
_NOT_GIVEN = (None,) * 6

_ORDER = "etcdserverpb.RangeRequest_SortOrder"
_TARGET = "etcdserverpb.RangeRequest_SortTarget"
_RESULT = "etcdserverpb.Compare_CompareResult"
_COMPARED = "etcdserverpb.Compare_CompareTarget"
_Order = Annotated[int | str | None, GoType(_ORDER)]
_Target = Annotated[int | str | None, GoType(_TARGET)]
_Result = Annotated[int | str | None, GoType(_RESULT)]
_Compared = Annotated[int | str | None, GoType(_COMPARED)]


class _WireRange(msgspec.Struct):
    key: Bytes = None
    range_end: Bytes = None
    range_end_camel: Bytes = msgspec.field(default=None, name="rangeEnd")
    limit: Integer = None
    revision: Integer = None
    sort_order: _Order = None
    sort_order_camel: _Order = msgspec.field(default=None, name="sortOrder")
    sort_target: _Target = None
    sort_target_camel: _Target = msgspec.field(default=None, name="sortTarget")
    serializable: Flag = None
    keys_only: Flag = None
    keys_only_camel: Flag = msgspec.field(default=None, name="keysOnly")
    count_only: Flag = None
    count_only_camel: Flag = msgspec.field(default=None, name="countOnly")
    min_mod_revision: Integer = None
    min_mod_revision_camel: Integer = msgspec.field(default=None, name="minModRevision")
    max_mod_revision: Integer = None
    max_mod_revision_camel: Integer = msgspec.field(default=None, name="maxModRevision")
    min_create_revision: Integer = None
    min_create_revision_camel: Integer = msgspec.field(default=None, name="minCreateRevision")
    max_create_revision: Integer = None
    max_create_revision_camel: Integer = msgspec.field(default=None, name="maxCreateRevision")


class _WirePut(msgspec.Struct):
    key: Bytes = None
    value: Bytes = None
    lease: Integer = None
    prev_kv: Flag = None
    prev_kv_camel: Flag = msgspec.field(default=None, name="prevKv")
    ignore_value: Flag = None
    ignore_value_camel: Flag = msgspec.field(default=None, name="ignoreValue")
    ignore_lease: Flag = None
    ignore_lease_camel: Flag = msgspec.field(default=None, name="ignoreLease")


class _WireDelete(msgspec.Struct):
    key: Bytes = None
    range_end: Bytes = None
    range_end_camel: Bytes = msgspec.field(default=None, name="rangeEnd")
    prev_kv: Flag = None
    prev_kv_camel: Flag = msgspec.field(default=None, name="prevKv")


class _WireCompare(msgspec.Struct):
    result: _Result = None
    target: _Compared = None
    key: Bytes = None
    range_end: Bytes = None
    range_end_camel: Bytes = msgspec.field(default=None, name="rangeEnd")
    version: Integer = None
    create_revision: Integer = None
    create_revision_camel: Integer = msgspec.field(default=None, name="createRevision")
    mod_revision: Integer = None
    mod_revision_camel: Integer = msgspec.field(default=None, name="modRevision")
    value: Bytes = None
    lease: Integer = None


class _WireOperation(msgspec.Struct):
    request_range: _WireRange | None = None
    request_range_camel: _WireRange | None = msgspec.field(default=None, name="requestRange")
    request_put: _WirePut | None = None
    request_put_camel: _WirePut | None = msgspec.field(default=None, name="requestPut")
    request_delete_range: _WireDelete | None = None
    request_delete_range_camel: _WireDelete | None = msgspec.field(default=None, name="requestDeleteRange")
    request_txn: "_WireTxn | None" = None
    request_txn_camel: "_WireTxn | None" = msgspec.field(default=None, name="requestTxn")


class _WireTxn(msgspec.Struct):
    compare: list[_WireCompare] | None = None
    success: list[_WireOperation] | None = None
    failure: list[_WireOperation] | None = None


class _WireCompaction(msgspec.Struct):
    revision: Integer = None
    physical: Flag = None


class _CompareTarget(IntEnum):
    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class _CompareResult(IntEnum):
    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


_RESULTS = {
    _CompareResult.EQUAL: CompareResult.EQUAL,
    _CompareResult.GREATER: CompareResult.GREATER,
    _CompareResult.LESS: CompareResult.LESS,
    _CompareResult.NOT_EQUAL: CompareResult.NOT_EQUAL,
}

_range_decoder = msgspec.json.Decoder(_WireRange)
_put_decoder = msgspec.json.Decoder(_WirePut)
_delete_decoder = msgspec.json.Decoder(_WireDelete)
_txn_decoder = msgspec.json.Decoder(_WireTxn)
_compaction_decoder = msgspec.json.Decoder(_WireCompaction)
_encode = msgspec.json.Encoder().encode

ENCODED_AT_ONCE_MAX = 500
"""Key-values: a millisecond of work."""


@dataclass(frozen=True, slots=True)
class RangeRequest:
    op: RangeOp
    serializable: bool


def decode_range(body: bytes) -> RangeRequest:
    """Raises InvalidRequest."""
    wire = decode(_range_decoder, body, _WireRange)
    return RangeRequest(_range_op(wire), bool(wire.serializable))


def decode_put(body: bytes) -> PutOp:
    """Raises InvalidRequest, and NotFound for a lease that cannot be."""
    return _put_op(decode(_put_decoder, body, _WirePut))


def decode_delete(body: bytes) -> DeleteOp:
    """Raises InvalidRequest."""
    return _delete_op(decode(_delete_decoder, body, _WireDelete))


def decode_txn(body: bytes) -> TxnOp:
    """Raises InvalidRequest, and what single operations do that cannot be."""
    try:
        return _txn_op(decode(_txn_decoder, body, _WireTxn), NESTING_MAX)
    except NestedTooDeep as error:
        raise TooManyOperations(error.detail) from error


def decode_compaction(body: bytes) -> int:
    """The revision. Raises InvalidRequest. `physical` asks to wait until the space is free; there is no such wait."""
    return int64(decode(_compaction_decoder, body, _WireCompaction).revision)


def _range_op(wire: _WireRange) -> RangeOp:
    return RangeOp(
        wire.key or b"",
        either(wire.range_end_camel, wire.range_end) or b"",
        max(0, int64(wire.limit)),
        int64(wire.revision),
        bool(either(wire.keys_only_camel, wire.keys_only)),
        bool(either(wire.count_only_camel, wire.count_only)),
        _arrangement(wire),
    )


def _arrangement(wire: _WireRange) -> Arrangement | None:
    order, target = either(wire.sort_order_camel, wire.sort_order), either(wire.sort_target_camel, wire.sort_target)
    mod_min = either(wire.min_mod_revision_camel, wire.min_mod_revision)
    mod_max = either(wire.max_mod_revision_camel, wire.max_mod_revision)
    create_min = either(wire.min_create_revision_camel, wire.min_create_revision)
    create_max = either(wire.max_create_revision_camel, wire.max_create_revision)
    if (order, target, mod_min, mod_max, create_min, create_max) == _NOT_GIVEN:
        return None
    arrangement = Arrangement(
        enum(_ORDER, SortOrder, order),
        enum(_TARGET, SortTarget, target),
        int64(mod_min),
        int64(mod_max),
        int64(create_min),
        int64(create_max),
    )
    return None if arrangement == _NATURAL else arrangement


def _put_op(wire: _WirePut) -> PutOp:
    lease = int64(wire.lease)
    if lease < 0:
        raise NotFound(f"lease {lease} does not exist")
    return PutOp(
        wire.key or b"",
        wire.value or b"",
        lease,
        bool(either(wire.prev_kv_camel, wire.prev_kv)),
        bool(either(wire.ignore_value_camel, wire.ignore_value)),
        bool(either(wire.ignore_lease_camel, wire.ignore_lease)),
    )


def _delete_op(wire: _WireDelete) -> DeleteOp:
    range_end = either(wire.range_end_camel, wire.range_end) or b""
    return DeleteOp(wire.key or b"", range_end, bool(either(wire.prev_kv_camel, wire.prev_kv)))


def _txn_op(wire: _WireTxn, nesting_max: int) -> TxnOp:
    if nesting_max == 0:
        raise TooManyOperations(f"transactions are nested over {NESTING_MAX} deep")
    return TxnOp(
        tuple([_compare(one) for one in wire.compare or ()]),
        tuple([_operation(one, nesting_max) for one in wire.success or ()]),
        tuple([_operation(one, nesting_max) for one in wire.failure or ()]),
    )


def _operation(wire: _WireOperation, nesting_max: int) -> Operation:
    if (wanted := either(wire.request_range_camel, wire.request_range)) is not None:
        return _range_in_txn(wanted)
    if (put := either(wire.request_put_camel, wire.request_put)) is not None:
        return _put_op(put)
    if (delete := either(wire.request_delete_range_camel, wire.request_delete_range)) is not None:
        return _delete_op(delete)
    if (txn := either(wire.request_txn_camel, wire.request_txn)) is not None:
        return _txn_op(txn, nesting_max - 1)
    raise KeyNotFound("an operation says nothing: it has none of request_range, _put, _delete_range and _txn")


def _range_in_txn(wire: _WireRange) -> RangeOp:
    op = _range_op(wire)
    if op.revision < 0:  # alone, it stands for the newest
        raise Compacted(f"revision {op.revision} is before the first", compact_revision=1)
    return op


def _compare(wire: _WireCompare) -> Compare:
    target = enum(_COMPARED, _CompareTarget, wire.target)
    result = enum(_RESULT, _CompareResult, wire.result)
    range_end = either(wire.range_end_camel, wire.range_end) or b""
    # What is compared is what `target` says; of the operands, the others mean nothing.
    kind, operand = _operand(target, wire)
    return Compare(wire.key or b"", kind, _RESULTS[result], operand, range_end)


def _operand(target: _CompareTarget, wire: _WireCompare) -> tuple[CompareTarget, int | bytes]:
    match target:
        case _CompareTarget.VERSION:
            return CompareTarget.VERSION, int64(wire.version)
        case _CompareTarget.CREATE:
            return CompareTarget.CREATE, int64(either(wire.create_revision_camel, wire.create_revision))
        case _CompareTarget.MOD:
            return CompareTarget.MOD, int64(either(wire.mod_revision_camel, wire.mod_revision))
        case _CompareTarget.VALUE:
            return CompareTarget.VALUE, wire.value or b""
        case _CompareTarget.LEASE:
            return CompareTarget.LEASE, int64(wire.lease)


class WireKeyValue(msgspec.Struct, frozen=True):
    """`mvccpb.KeyValue`."""

    key: bytes
    create_revision: str | UnsetType = UNSET
    mod_revision: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    value: bytes | UnsetType = UNSET
    lease: str | UnsetType = UNSET


class InnerHeader(msgspec.Struct, frozen=True):
    """Of an operation's result within a transaction."""

    revision: str | UnsetType = UNSET


AnyHeader = Header | InnerHeader


class _WireRangeAnswer(msgspec.Struct, frozen=True):
    header: AnyHeader
    kvs: list[WireKeyValue] | msgspec.Raw | UnsetType = UNSET
    more: bool | UnsetType = UNSET
    count: str | UnsetType = UNSET


class _WirePutAnswer(msgspec.Struct, frozen=True):
    header: AnyHeader
    prev_kv: WireKeyValue | UnsetType = UNSET


class _WireDeleteAnswer(msgspec.Struct, frozen=True):
    header: AnyHeader
    deleted: str | UnsetType = UNSET
    prev_kvs: list[WireKeyValue] | UnsetType = UNSET


class _WireResult(msgspec.Struct, frozen=True):
    """One of them."""

    response_range: _WireRangeAnswer | UnsetType = UNSET
    response_put: _WirePutAnswer | UnsetType = UNSET
    response_delete_range: _WireDeleteAnswer | UnsetType = UNSET
    response_txn: "_WireTxnAnswer | UnsetType" = UNSET


class _WireTxnAnswer(msgspec.Struct, frozen=True):
    header: AnyHeader
    succeeded: bool | UnsetType = UNSET
    responses: list[_WireResult] | UnsetType = UNSET


class _WireCompactionAnswer(msgspec.Struct, frozen=True):
    header: Header


async def encode_range(header: Header, result: RangeResult) -> bytes:
    """The key-values of a long range are encoded in slices, between which others have their turn."""
    if len(result.kvs) <= ENCODED_AT_ONCE_MAX:
        return _encode(_range_answer(header, result))
    slices: list[bytes] = []
    for begin in range(0, len(result.kvs), ENCODED_AT_ONCE_MAX):
        slices.append(_encode([wire_kv(kv) for kv in result.kvs[begin : begin + ENCODED_AT_ONCE_MAX]])[1:-1])
        await asyncio.sleep(0)
    kvs = msgspec.Raw(b"[%b]" % b",".join(slices))
    return _encode(_WireRangeAnswer(header, kvs, True if result.more else UNSET, integer(result.count)))


def encode_put(header: Header, result: PutResult) -> bytes:
    return _encode(_put_answer(header, result))


def encode_delete(header: Header, result: DeleteResult) -> bytes:
    return _encode(_delete_answer(header, result))


def encode_txn(header: Header, result: TxnResult) -> bytes:
    return _encode(_txn_answer(header, result))


def encode_compaction(header: Header) -> bytes:
    return _encode(_WireCompactionAnswer(header))


def _range_answer(header: AnyHeader, result: RangeResult) -> _WireRangeAnswer:
    return _WireRangeAnswer(
        header,
        [wire_kv(kv) for kv in result.kvs] if result.kvs else UNSET,
        True if result.more else UNSET,
        integer(result.count),
    )


def _put_answer(header: AnyHeader, result: PutResult) -> _WirePutAnswer:
    return _WirePutAnswer(header, UNSET if result.previous is None else wire_kv(result.previous))


def _delete_answer(header: AnyHeader, result: DeleteResult) -> _WireDeleteAnswer:
    previous = [wire_kv(kv) for kv in result.previous] if result.previous else UNSET
    return _WireDeleteAnswer(header, integer(result.deleted), previous)


def _txn_answer(header: AnyHeader, result: TxnResult) -> _WireTxnAnswer:
    responses = [_result(one) for one in result.results] if result.results else UNSET
    return _WireTxnAnswer(header, True if result.succeeded else UNSET, responses)


def _result(result: OperationResult) -> _WireResult:
    header = InnerHeader(str(result.revision))
    if isinstance(result, RangeResult):
        return _WireResult(response_range=_range_answer(header, result))
    if isinstance(result, PutResult):
        return _WireResult(response_put=_put_answer(header, result))
    if isinstance(result, DeleteResult):
        return _WireResult(response_delete_range=_delete_answer(header, result))
    return _WireResult(response_txn=_txn_answer(InnerHeader(), result))


def wire_kv(kv: KeyValue) -> WireKeyValue:
    return WireKeyValue(
        kv.key, integer(kv.create_revision), integer(kv.mod_revision), integer(kv.version), kv.value or UNSET,
        integer(kv.lease),
    )  # fmt: skip

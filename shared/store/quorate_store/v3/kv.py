"""`/v3/kv/…`: range, put, deleterange, txn and compaction, as etcd answers them."""

from collections.abc import Coroutine
from typing import Any, ClassVar, Protocol, runtime_checkable

from fastapi import FastAPI
from quorate_core.asgi import add_headed_endpoint, add_raw_endpoint
from quorate_core.errors import Compacted, InvalidRequest, InvariantViolation
from quorate_core.plain_requests import Headers as HttpHeaders

from quorate_store.arrangement import arranged, whole_of
from quorate_store.model import PutOp, PutResult, SortOrder, SortTarget, TxnOp
from quorate_store.port import Store
from quorate_store.refusals import KeyNotFound
from quorate_store.v3 import kv_messages as messages
from quorate_store.v3.errors import error_response
from quorate_store.v3.headers import REQUEST_ID_HEADER, Headers, header_value
from quorate_store.v3.openapi import BASE64, FLAG, INT64, VERSIONS, choice, operation
from quorate_store.v3.reserved import Guard


@runtime_checkable
class AwaitsFuturesOnly(Protocol):
    """An engine says of itself whether `range`, and `put` and `txn` without a request id, await nothing but futures, so
    that they can be run without a task (`quorate_core.steps`)."""

    AWAITS_FUTURES_ONLY: ClassVar[bool]


class KvEndpoints:
    def __init__(self, store: Store, headers: Headers, guard: Guard) -> None:
        self._store = store
        self._headers = headers
        self._guard = guard
        self._needs_no_task = isinstance(store, AwaitsFuturesOnly) and store.AWAITS_FUTURES_ONLY

    def mount(self, api: FastAPI) -> None:
        for version in VERSIONS:
            for name, handler, quick, summary, properties in (
                ("range", self.range, self.range, "Read keys", _RANGE_PROPERTIES),
                ("put", self.put, self._quick_put, "Write a key", _PUT_PROPERTIES),
                ("deleterange", self.delete_range, None, "Delete keys", _DELETE_PROPERTIES),
                ("txn", self.txn, self._quick_txn, "Compare, then read and write at one revision", _TXN_PROPERTIES),
            ):
                path, without_task = f"/{version}/kv/{name}", quick if self._needs_no_task else None
                add_headed_endpoint(api, path, handler, summary, operation(properties), error_response, without_task)
            path, schema = f"/{version}/kv/compaction", operation(_COMPACTION_PROPERTIES)
            add_raw_endpoint(api, path, self.compaction, "Forget history", schema, error_response)

    async def range(self, body: bytes, _http: HttpHeaders) -> bytes:
        request = messages.decode_range(body)
        op = request.op
        whole = whole_of(op)
        found = await self._store.range(
            op.key,
            op.range_end,
            limit=whole.limit,
            revision=max(0, op.revision),
            keys_only=whole.keys_only,
            count_only=op.count_only,
            serializable=request.serializable,
        )
        return await messages.encode_range(await self._headers.at(found.revision), arranged(op, found))

    async def put(self, body: bytes, http: HttpHeaders) -> bytes:
        op = messages.decode_put(body)
        self._guard.require_open(op, http)
        if op.ignore_value or op.ignore_lease:
            result = await self._put_keeping(op, _request_id(http))
            return messages.encode_put(await self._headers.at(result.revision), result)
        return await self._put(op, _request_id(http))

    def _quick_put(self, body: bytes, http: HttpHeaders) -> Coroutine[Any, Any, bytes] | None:
        op = messages.decode_put(body)
        if op.ignore_value or op.ignore_lease or header_value(http, REQUEST_ID_HEADER):
            return None
        self._guard.require_open(op, http)
        return self._put(op, "")

    async def _put(self, op: PutOp, request_id: str) -> bytes:
        result = await self._store.put(
            op.key, op.value, lease=op.lease, previous=op.previous, request_id=request_id
        )  # fmt: skip
        return messages.encode_put(await self._headers.at(result.revision), result)

    async def _put_keeping(self, op: PutOp, request_id: str) -> PutResult:
        try:
            result = await self._store.txn((), (op,), request_id=request_id)
        except KeyNotFound:
            if op.lease:  # of both, etcd says that the lease is not there
                await self._store.lease_time_to_live(op.lease)
            raise
        [put] = result.results
        if not isinstance(put, PutResult):
            raise InvariantViolation(f"a put was answered by {type(put).__name__}")
        return put

    async def delete_range(self, body: bytes, http: HttpHeaders) -> bytes:
        op = messages.decode_delete(body)
        self._guard.require_open(op, http)
        result = await self._store.delete(
            op.key, op.range_end, previous=op.previous, request_id=_request_id(http)
        )  # fmt: skip
        return messages.encode_delete(await self._headers.at(result.revision), result)

    async def txn(self, body: bytes, http: HttpHeaders) -> bytes:
        op = messages.decode_txn(body)
        self._guard.require_open(op, http)
        return await self._txn(op, _request_id(http))

    def _quick_txn(self, body: bytes, http: HttpHeaders) -> Coroutine[Any, Any, bytes] | None:
        if header_value(http, REQUEST_ID_HEADER):
            return None
        op = messages.decode_txn(body)
        self._guard.require_open(op, http)
        return self._txn(op, "")

    async def _txn(self, op: TxnOp, request_id: str) -> bytes:
        result = await self._store.txn(op.compare, op.success, op.failure, request_id=request_id)
        return messages.encode_txn(await self._headers.at(result.revision), result)

    async def compaction(self, body: bytes) -> bytes:
        revision = messages.decode_compaction(body)
        if revision < 0:
            raise Compacted(f"revision {revision} is before the first", compact_revision=0)
        try:
            await self._store.compact(revision)
        except Compacted as error:
            if revision or error.extensions.get("compact_revision"):
                raise  # while nothing was ever compacted, etcd has nothing against forgetting nothing
        return messages.encode_compaction(await self._headers.newest())


def _request_id(http: HttpHeaders) -> str:
    """Raises InvalidRequest for what is no text."""
    given = header_value(http, REQUEST_ID_HEADER)
    try:
        return given.decode() if given else ""
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{REQUEST_ID_HEADER.decode()} is no UTF-8") from error


_RANGE_PROPERTIES = {
    "key": BASE64,
    "range_end": BASE64,
    "limit": INT64,
    "revision": INT64,
    "serializable": FLAG,
    "keys_only": FLAG,
    "count_only": FLAG,
    "sort_order": choice(list(SortOrder.__members__)),
    "sort_target": choice(list(SortTarget.__members__)),
    "min_mod_revision": INT64,
    "max_mod_revision": INT64,
    "min_create_revision": INT64,
    "max_create_revision": INT64,
}
_PUT_PROPERTIES = {
    "key": BASE64,
    "value": BASE64,
    "lease": INT64,
    "prev_kv": FLAG,
    "ignore_value": FLAG,
    "ignore_lease": FLAG,
}
_DELETE_PROPERTIES = {"key": BASE64, "range_end": BASE64, "prev_kv": FLAG}
_COMPARE_PROPERTIES = {
    "key": BASE64,
    "range_end": BASE64,
    "target": choice(["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]),
    "result": choice(["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]),
    "version": INT64,
    "create_revision": INT64,
    "mod_revision": INT64,
    "value": BASE64,
    "lease": INT64,
}
_OPERATION_PROPERTIES = {
    "request_range": {"type": "object", "properties": _RANGE_PROPERTIES},
    "request_put": {"type": "object", "properties": _PUT_PROPERTIES},
    "request_delete_range": {"type": "object", "properties": _DELETE_PROPERTIES},
    "request_txn": {"type": "object", "description": "A transaction, as this one"},
}
_OPERATIONS = {"type": "array", "items": {"type": "object", "properties": _OPERATION_PROPERTIES}}
_TXN_PROPERTIES = {
    "compare": {"type": "array", "items": {"type": "object", "properties": _COMPARE_PROPERTIES}},
    "success": _OPERATIONS,
    "failure": _OPERATIONS,
}
_COMPACTION_PROPERTIES = {"revision": INT64, "physical": FLAG}

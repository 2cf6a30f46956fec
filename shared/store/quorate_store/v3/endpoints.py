"""The v3 JSON API's endpoints: `kv/range`, `kv/put` and `maintenance/status`."""

import hashlib
from typing import Any

from fastapi import FastAPI
from msgspec import UNSET
from quorate_core.asgi import add_raw_endpoint
from quorate_core.errors import Forbidden, InvalidRequest, QuorateError, TooManyRequests
from starlette.responses import Response

from quorate_store.model import RESERVED_PREFIX, Compare, CompareResult, CompareTarget, PutOp, PutResult
from quorate_store.port import Store
from quorate_store.v3 import codec
from quorate_store.v3.arrangement import SortOrder, SortTarget

KEEPING_ATTEMPTS_MAX = 8


def mount_v3(api: FastAPI, store: Store, cluster_id: str) -> None:
    """Serve `store` under `/v3`. Keys under `quorate/` can be read here and not written."""
    endpoints = _Endpoints(store, cluster_id)
    for path, handler, summary, properties in (
        ("/v3/kv/range", endpoints.range, "Read keys", _RANGE_PROPERTIES),
        ("/v3/kv/put", endpoints.put, "Write a key", _PUT_PROPERTIES),
        ("/v3/maintenance/status", endpoints.status, "The member's status", {}),
    ):
        add_raw_endpoint(api, path, handler, summary, _operation(properties), _error_response)


class _Endpoints:
    def __init__(self, store: Store, cluster_id: str) -> None:
        self._store = store
        self._cluster_id = str(id_of(cluster_id))
        self._member_ids: dict[str, str] = {}

    async def range(self, body: bytes) -> bytes:
        request = codec.decode_range(body)
        arrangement, keys_only = request.arrangement, request.keys_only
        result = await self._store.range(
            request.key,
            request.range_end,
            limit=request.limit if arrangement.is_natural else 0,
            revision=request.revision,
            keys_only=keys_only and not arrangement.needs_values,
            count_only=request.count_only,
            serializable=request.serializable,
        )
        if not arrangement.is_natural:
            result = arrangement.arrange(result, request.limit, keys_only=keys_only)
        return codec.encode_range(await self._header(result.revision), result)

    async def put(self, body: bytes) -> bytes:
        request = codec.decode_put(body)
        if request.key.startswith(RESERVED_PREFIX):
            raise Forbidden(f"keys under {RESERVED_PREFIX.decode()!r} belong to the platform; use its own API")
        if request.ignore_value or request.ignore_lease:
            result = await self._put_keeping(request)
        else:
            result = await self._store.put(request.key, request.value, lease=request.lease, previous=request.previous)
        return codec.encode_put(await self._header(result.revision), result)

    async def _put_keeping(self, request: codec.PutRequest) -> PutResult:
        """Put with the value or the lease that the key has: read, then write if nothing has changed meanwhile."""
        for _ in range(KEEPING_ATTEMPTS_MAX):
            found = (await self._store.range(request.key)).kvs
            if not found:
                raise InvalidRequest("key not found")
            kv = found[0]
            value = kv.value if request.ignore_value else request.value
            lease = kv.lease if request.ignore_lease else request.lease
            unchanged = Compare(request.key, CompareTarget.MOD, CompareResult.EQUAL, kv.mod_revision)
            result = await self._store.txn([unchanged], [PutOp(request.key, value, lease)])
            if result.succeeded:
                return PutResult(result.revision, kv if request.previous else None)
        raise TooManyRequests("others write this key all the time; try again")

    async def status(self, body: bytes) -> bytes:
        codec.decode_empty(body)
        status = await self._store.status()
        return codec.encode_status(
            codec.StatusAnswer(
                header=await self._header(status.revision),
                version=codec.ETCD_VERSION,
                db_size=str(status.store_bytes),
                db_size_in_use=str(status.store_bytes),
                raft_index=str(status.commit_index),
                raft_term=str(status.term),
                raft_applied_index=str(status.applied_index),
                leader=self._member_id(status.leader) if status.leader else UNSET,
            )
        )

    async def _header(self, revision: int) -> codec.Header:
        status = await self._store.status()
        return codec.Header(self._cluster_id, self._member_id(status.name), str(revision), str(status.term))

    def _member_id(self, name: str) -> str:
        known = self._member_ids.get(name)
        if known is None:
            known = self._member_ids[name] = str(id_of(name))
        return known


def id_of(name: str) -> int:
    """The 64-bit id that stands for a name in etcd's API; never 0, which would mean that there is none."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") or 1


def _error_response(error: QuorateError) -> Response:
    status, body = codec.encode_error(error)
    return Response(body, status, media_type="application/json")


_BASE64: dict[str, Any] = {"type": "string", "format": "byte"}
_INT64: dict[str, Any] = {"type": "string", "format": "int64"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_RANGE_PROPERTIES: dict[str, Any] = {
    "key": _BASE64,
    "range_end": _BASE64,
    "limit": _INT64,
    "revision": _INT64,
    "serializable": _FLAG,
    "keys_only": _FLAG,
    "count_only": _FLAG,
    "sort_order": {"enum": list(SortOrder.__members__)},
    "sort_target": {"enum": list(SortTarget.__members__)},
    "min_mod_revision": _INT64,
    "max_mod_revision": _INT64,
    "min_create_revision": _INT64,
    "max_create_revision": _INT64,
}
_PUT_PROPERTIES: dict[str, Any] = {
    "key": _BASE64,
    "value": _BASE64,
    "lease": _INT64,
    "prev_kv": _FLAG,
    "ignore_value": _FLAG,
    "ignore_lease": _FLAG,
}


def _operation(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {
        "tags": ["etcd v3"],
        "requestBody": {"content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "As etcd's JSON API answers"},
            "default": {"description": "An error, in etcd's form: error, message, code (gRPC's)"},
        },
    }

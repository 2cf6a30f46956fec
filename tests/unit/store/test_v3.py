"""etcd's v3 JSON API where a transcript cannot go: reserved keys, request ids, headers, a full store, and the OpenAPI
document. What single calls answer stands in `tests/contract/v3`."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.settings import HostPort
from quorate_store.model import REQUEST_BYTES_MAX, DeleteOp, PutOp, RangeOp, TxnOp
from quorate_store.port import Store
from quorate_store.raft_engine import RaftStore
from quorate_store.v3.endpoints import mount_v3
from quorate_store.v3.headers import id_of
from quorate_store.v3.reserved import may_write_reserved
from support.store_local import local_store

CLUSTER = "cluster-of-the-test"
CREDENTIAL = "known to the platform's own nodes"
RANGE, PUT, DELETE, TXN, COMPACT = (
    f"/v3/kv/{name}" for name in ("range", "put", "deleterange", "txn", "compaction")
)  # fmt: skip
RESERVED_TEXT = (
    "keys under 'quorate/' belong to the platform, and this would write or delete some: use its own API for them, and "
    "for others name a range without them"
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RaftStore]:
    async with local_store(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(store: RaftStore) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store) as made:
        yield made


@asynccontextmanager
async def client_of(store: Store, credential: str = CREDENTIAL) -> AsyncIterator[httpx.AsyncClient]:
    address = HostPort.parse("127.0.0.1:8501")
    protection = Protection.for_address(address, address, None)
    api = create_app(Surface("node", protection, body_bytes_max=4 * 1024 * 1024))
    mount_v3(api, store, CLUSTER, platform_credential=credential)
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8501") as made:
        yield made


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def error(message: str, code: int) -> dict[str, Any]:
    return {"error": message, "message": message, "code": code}


async def test_the_header_names_cluster_member_revision_and_term(client: httpx.AsyncClient) -> None:
    answer = (await client.post(PUT, json={"key": b64(b"k")})).json()
    assert answer["header"] == {
        "cluster_id": str(id_of(CLUSTER)),
        "member_id": str(id_of("local")),
        "revision": "2",
        "raft_term": "1",
    }
    assert 0 < int(answer["header"]["cluster_id"]) < 2**64


class StatusOnly:
    """A store whose engine has no cheap way to say who it is."""

    def __init__(self, store: RaftStore) -> None:
        self.put = store.put
        self.status = store.status


async def test_the_header_is_the_same_of_an_engine_that_must_be_asked(
    store: RaftStore, client: httpx.AsyncClient
) -> None:
    first = (await client.post(PUT, json={"key": b64(b"k")})).json()["header"]
    async with client_of(StatusOnly(store)) as asking:  # type: ignore[arg-type]  # as much of a store as is needed
        second = (await asking.post(PUT, json={"key": b64(b"k")})).json()["header"]
    assert second == {**first, "revision": "3"}


@pytest.mark.parametrize(
    "operation",
    [
        PutOp(b"quorate/x", b""),
        PutOp(b"quorate/", b""),
        DeleteOp(b"quorate/x"),
        DeleteOp(b"quorate/x", b"quorate/y"),
        DeleteOp(b"quorate/x", b"\0"),
        DeleteOp(b"quorat", b"quoratf"),
        DeleteOp(b"a", b"\0"),
        DeleteOp(b"\0", b"\0"),
        DeleteOp(b"a", b"quorate/x"),
        DeleteOp(b"quorate", b"quorate/\0"),
        TxnOp((), (), (PutOp(b"quorate/x", b""),)),
        TxnOp((), (RangeOp(b"a"), TxnOp((), (TxnOp((), (), (DeleteOp(b"a", b"z"),)),)))),
    ],
)
async def test_what_may_write_a_key_of_the_platform_is_seen(operation: PutOp | DeleteOp | TxnOp) -> None:
    assert may_write_reserved(operation)


@pytest.mark.parametrize(
    "operation",
    [
        PutOp(b"quorate", b""),
        PutOp(b"quorate0", b""),
        PutOp(b"x", b"quorate/x"),
        DeleteOp(b"quorate"),
        DeleteOp(b"a", b"quorate/"),
        DeleteOp(b"quorate0", b"\0"),
        DeleteOp(b"r", b"a"),
        RangeOp(b"quorate/", b"quorate0"),
        TxnOp((), (RangeOp(b"quorate/x"), PutOp(b"a", b"")), (TxnOp((), (DeleteOp(b"b", b"c"),)),)),
    ],
)
async def test_what_cannot_is_let_through(operation: PutOp | DeleteOp | RangeOp | TxnOp) -> None:
    assert not may_write_reserved(operation)


WRITES = (
    (PUT, {"key": b64(b"quorate/registry/x")}),
    (PUT, {"key": b64(b"quorate/registry/x"), "ignore_value": True}),
    (DELETE, {"key": b64(b"quorate/registry/x")}),
    (DELETE, {"key": b64(b"\0"), "range_end": b64(b"\0")}),
    (TXN, {"success": [{"request_delete_range": {"key": b64(b"quorate/registry/x")}}]}),
)


async def test_keys_of_the_platform_are_read_and_not_written(store: RaftStore, client: httpx.AsyncClient) -> None:
    await store.put(b"quorate/registry/x", b"v")
    body = {"key": b64(b"quorate/"), "range_end": b64(b"quorate0")}
    assert (await client.post(RANGE, json=body)).json()["count"] == "1"
    for path, write in WRITES:
        for headers in ({}, {"quorate-platform": "something else"}, {"quorate-platform": ""}):
            response = await client.post(path, json=write, headers=headers)
            assert (response.status_code, response.json()) == (403, error(RESERVED_TEXT, 7)), write
    assert (await store.range(b"quorate/registry/x")).kvs[0].version == 1
    assert (await client.post(PUT, json={"key": b64(b"quoratex")})).status_code == 200


async def test_who_proves_to_be_of_the_platform_writes_them(store: RaftStore, client: httpx.AsyncClient) -> None:
    for path, write in WRITES:
        await store.put(b"quorate/registry/x", b"v")
        response = await client.post(path, json=write, headers={"quorate-platform": CREDENTIAL})
        assert response.status_code == 200, write


async def test_without_a_credential_nobody_is_of_the_platform(store: RaftStore) -> None:
    async with client_of(store, credential="") as client:
        for headers in ({}, {"quorate-platform": ""}):
            response = await client.post(PUT, json={"key": b64(b"quorate/x")}, headers=headers)
            assert response.status_code == 403


async def test_a_write_with_a_request_id_is_done_once(store: RaftStore, client: httpx.AsyncClient) -> None:
    put = (PUT, {"key": b64(b"k"), "value": b64(b"v")})
    keeping = (PUT, {"key": b64(b"k"), "ignore_value": True})
    txn = (TXN, {"success": [{"request_put": {"key": b64(b"k")}}]})
    for number, (path, body) in enumerate((put, keeping, txn, (DELETE, {"key": b64(b"k")}))):
        headers = {"Quorate-Request-Id": f"request-{number}"}
        first = (await client.post(path, json=body, headers=headers)).json()
        again = (await client.post(path, json=body, headers=headers)).json()
        assert first == again, path
    assert (await store.range(b"k")).count == 0
    assert (await store.put(b"k", b"", previous=True)).revision == 6


async def test_the_same_id_for_another_write_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Quorate-Request-Id": "one"}
    await client.post(PUT, json={"key": b64(b"a")}, headers=headers)
    response = await client.post(PUT, json={"key": b64(b"b")}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (412, 9)
    assert "at revision 2" in response.json()["message"]


async def test_an_id_that_is_no_text_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(PUT, json={"key": b64(b"a")}, headers={b"quorate-request-id": b"\xff"})
    assert (response.status_code, response.json()) == (400, error("quorate-request-id is no UTF-8", 3))


async def test_a_request_that_is_too_large_is_refused_as_etcd_does(client: httpx.AsyncClient) -> None:
    for path, body in (
        (PUT, {"key": b64(b"k"), "value": b64(b"x" * REQUEST_BYTES_MAX)}),
        (TXN, {"success": [{"request_put": {"key": b64(b"k"), "value": b64(b"x" * REQUEST_BYTES_MAX)}}]}),
    ):
        response = await client.post(path, json=body)
        assert (response.status_code, response.json()) == (400, error("etcdserver: request is too large", 3))


async def test_a_full_store_takes_no_puts_and_is_read_and_emptied(tmp_path: Path) -> None:
    async with local_store(tmp_path, quota_bytes=1000) as full, client_of(full) as client:
        await full._maintenance.lead()
        await client.post(PUT, json={"key": b64(b"k"), "value": b64(b"x" * 600)})
        response = await client.post(PUT, json={"key": b64(b"k"), "value": b64(b"x" * 300)})
        assert (response.status_code, response.json()) == (429, error("etcdserver: mvcc: database space exceeded", 8))
        keeping = await client.post(PUT, json={"key": b64(b"k"), "ignore_value": True})
        assert keeping.json()["code"] == 8, "what is kept takes room again"
        assert (await client.post(RANGE, json={"key": b64(b"k")})).json()["count"] == "1"
        assert (await client.post(DELETE, json={"key": b64(b"k")})).json()["deleted"] == "1"
        assert (await client.post(COMPACT, json={"revision": 3})).status_code == 200
        assert (await client.post(PUT, json={"key": b64(b"k"), "value": b64(b"x" * 300)})).status_code == 200


async def test_what_is_nested_and_many_is_bounded_too(client: httpx.AsyncClient) -> None:
    """etcd bounds each list alone, so that a request could have tens of thousands."""
    puts = [{"request_put": {"key": b64(b"%d" % number)}} for number in range(60)]
    body = {"success": [{"request_txn": {"success": puts}} for _ in range(60)]}
    response = await client.post(TXN, json=body)
    assert response.json() == error("etcdserver: too many operations in txn request", 3)


async def test_every_call_is_in_the_openapi_document_with_its_errors(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in (
        "kv/range", "kv/put", "kv/deleterange", "kv/txn", "kv/compaction", "lease/grant", "lease/revoke",
        "lease/timetolive", "lease/leases", "lease/keepalive", "kv/lease/revoke", "kv/lease/timetolive",
    ):  # fmt: skip
        for version in ("v3", "v3beta"):
            described = paths[f"/{version}/{path}"]["post"]["responses"]["default"]["content"]
            assert set(described) == {"application/json", "application/problem+json"}

"""etcd's v3 JSON API: our answers are those that a real etcd 3.4 gave to the same requests, one after the other."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.settings import HostPort
from quorate_store.model import REQUEST_BYTES_MAX, KeyValue, RangeResult
from quorate_store.raft_engine import RaftStore
from quorate_store.v3.arrangement import Arrangement, SortOrder
from quorate_store.v3.endpoints import id_of, mount_v3
from support.store_local import local_store

TRANSCRIPT = json.loads((Path(__file__).parent / "etcd_3_4_transcript.json").read_text())
CLUSTER = "cluster-of-the-test"
RANGE, PUT, STATUS = "/v3/kv/range", "/v3/kv/put", "/v3/maintenance/status"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RaftStore]:
    async with local_store(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(store: RaftStore) -> AsyncIterator[httpx.AsyncClient]:
    address = HostPort.parse("127.0.0.1:8501")
    protection = Protection.for_address(address, address, None)
    api = create_app(Surface("node", protection, body_bytes_max=4 * 1024 * 1024))
    mount_v3(api, store, CLUSTER)
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8501") as made:
        yield made


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_the_answers_are_those_of_a_real_etcd(store: RaftStore, client: httpx.AsyncClient) -> None:
    for step in TRANSCRIPT:
        if "grant" in step:
            await store.lease_grant(600, step["grant"])
        elif "compact" in step:
            await store.compact(step["compact"])
        else:
            await _replay(client, step)


async def _replay(client: httpx.AsyncClient, step: dict[str, Any]) -> None:
    response = await client.post(step["path"], content=step["body"])
    answer = response.json()
    for own in ("cluster_id", "member_id", "raft_term"):
        answer.get("header", {}).pop(own, None)
    expected = step["answer"]
    if step.get("own_text"):  # what is wrong with the JSON is said in the decoder's own words
        assert answer.pop("error") == answer.pop("message")
        expected = {"code": expected["code"]}
    assert (response.status_code, answer) == (step["status"], expected), step
    assert response.headers["content-type"] == "application/json"


async def test_the_header_names_cluster_member_revision_and_term(client: httpx.AsyncClient) -> None:
    answer = (await client.post(PUT, json={"key": b64(b"k")})).json()
    assert answer["header"] == {
        "cluster_id": str(id_of(CLUSTER)),
        "member_id": str(id_of("local")),
        "revision": "2",
        "raft_term": "1",
    }
    assert 0 < int(answer["header"]["cluster_id"]) < 2**64


@pytest.mark.parametrize("body", ["", "{}", '{"unknown":1}'])
async def test_the_status_of_a_member(client: httpx.AsyncClient, body: str) -> None:
    await client.post(PUT, json={"key": b64(b"k")})
    answer = (await client.post(STATUS, content=body)).json()
    assert answer["header"]["revision"] == "2"
    assert answer["leader"] == answer["header"]["member_id"]
    assert (answer["raftTerm"], answer["raftIndex"], answer["raftAppliedIndex"]) == ("1", "1", "1")
    assert int(answer["dbSize"]) >= int(answer["dbSizeInUse"]) > 0
    assert answer["version"].startswith("3.")


async def test_the_status_refuses_what_is_no_object(client: httpx.AsyncClient) -> None:
    assert (await client.post(STATUS, content="[]")).status_code == 400


async def test_keys_of_the_platform_are_read_and_not_written(store: RaftStore, client: httpx.AsyncClient) -> None:
    await store.put(b"quorate/registry/x", b"v")
    body = {"key": b64(b"quorate/"), "range_end": b64(b"quorate0")}
    assert (await client.post(RANGE, json=body)).json()["count"] == "1"
    for extra in ({}, {"ignore_value": True}):
        response = await client.post(PUT, json={"key": b64(b"quorate/registry/x"), **extra})
        assert (response.status_code, response.json()["code"]) == (403, 7)
        assert response.json()["error"] == response.json()["message"]
    assert (await store.range(b"quorate/registry/x")).kvs[0].version == 1
    assert (await client.post(PUT, json={"key": b64(b"quoratex")})).status_code == 200


async def test_a_request_that_is_too_large_is_refused_as_etcd_does(client: httpx.AsyncClient) -> None:
    response = await client.post(PUT, json={"key": b64(b"k"), "value": b64(b"x" * REQUEST_BYTES_MAX)})
    message = "etcdserver: request is too large"
    assert (response.status_code, response.json()) == (400, {"error": message, "message": message, "code": 3})


async def test_what_the_store_cannot_do_now_is_said_with_a_code_that_clients_retry(tmp_path: Path) -> None:
    async with local_store(tmp_path, quota_bytes=200) as full:
        await full._maintenance.lead()
        address = HostPort.parse("127.0.0.1:8501")
        api = create_app(Surface("node", Protection.for_address(address, address, None)))
        mount_v3(api, full, CLUSTER)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://127.0.0.1") as client:
            response = await client.post(PUT, json={"key": b64(b"k"), "value": b64(b"x" * 300)})
    message = "etcdserver: mvcc: database space exceeded"
    assert (response.status_code, response.json()) == (429, {"error": message, "message": message, "code": 8})


async def test_the_endpoints_are_in_the_openapi_document(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in (RANGE, PUT, STATUS):
        assert "post" in paths[path]


def test_a_sorted_answer_that_just_fits_its_limit_has_no_more() -> None:
    whole = RangeResult(9, tuple(KeyValue(b"%d" % n, b"", n, n, 1) for n in (1, 2, 3)), 3)
    backwards = Arrangement(order=SortOrder.DESCEND)
    assert backwards.arrange(whole, 3, keys_only=False) == RangeResult(9, whole.kvs[::-1], 3, False)
    assert backwards.arrange(whole, 2, keys_only=False) == RangeResult(9, whole.kvs[:0:-1], 3, True)

"""The config center's API, on a real store: what `quorate_sdk.wire` promises."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from quorate_config_center import ConfigCenterApp
from quorate_core.clock import ManualClock
from quorate_core.errors import NotProposed, OutcomeUnknown
from quorate_sdk.wire import (
    CONTENT_BYTES_MAX,
    ConfigDocument,
    ConfigHistory,
    ConfigList,
    ConfigMetadata,
)
from quorate_store.port import Store
from support import plain_http
from support.node_app import client_of, mounted_app, served
from support.store_local import local_store

SETTINGS = "/v1/config/default/order/settings.yaml"


class FailingStore:
    """A real store whose transactions fail as told, before they are proposed or after they were."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fails_with: Exception | None = None
        self.is_done_all_the_same = False

    async def txn(self, *arguments: Any) -> Any:
        if self.fails_with is None or self.is_done_all_the_same:
            result = await self.store.txn(*arguments)
        if self.fails_with is not None:
            raise self.fails_with
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    async with local_store(tmp_path) as local:
        yield FailingStore(local)


@pytest.fixture
async def api(store: FailingStore) -> AsyncIterator[FastAPI]:
    async with mounted_app(ConfigCenterApp(), store, ManualClock(1_700_000_000.0)) as api:
        yield api


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(api) as client:
        yield client


def problem(answer: httpx.Response, status: int, slug: str, retry: str = "never") -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, body["type"], body["retry"]) == (status, f"urn:quorate:problem:{slug}", retry)
    return body


async def test_a_document_is_published_and_read_back(client: httpx.AsyncClient) -> None:
    answer = await client.put(SETTINGS, params={"author": "ann", "comment": "first"}, content="a: é\n")
    created = ConfigMetadata.model_validate_json(answer.content)
    assert (answer.status_code, answer.headers["etag"]) == (201, '"1"')
    assert (created.version, created.author, created.comment, created.format) == (1, "ann", "first", "yaml")
    assert created.changed_at == "2023-11-14T22:13:20.000Z"

    answer = await client.get(SETTINGS)
    read = ConfigDocument.model_validate_json(answer.content)
    assert (answer.status_code, answer.headers["etag"], read.content) == (200, '"1"', "a: é\n")
    assert read.model_dump(exclude={"content"}) == created.model_dump()


async def test_raw_gives_the_content_alone(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: é\n")
    answer = await client.get(SETTINGS, params={"raw": "true"})
    assert (answer.content, answer.headers["content-type"]) == ("a: é\n".encode(), "application/yaml")
    assert (answer.headers["etag"], answer.headers["x-content-type-options"]) == ('"1"', "nosniff")


async def test_a_change_is_200_and_the_same_content_again_makes_no_version(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    changed = await client.put(SETTINGS, content="a: 2")
    again = await client.put(SETTINGS, content="a: 2", params={"comment": "not needed"})
    assert [changed.status_code, again.status_code] == [200, 200]
    assert changed.json() == again.json()
    assert again.headers["etag"] == '"2"'


async def test_if_match_compares_and_sets(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    assert (await client.put(SETTINGS, content="a: 2", headers={"if-match": '"1"'})).status_code == 200
    refused = await client.put(SETTINGS, content="a: 3", headers={"if-match": "1"})
    assert problem(refused, 412, "precondition-failed")["version"] == 2
    assert (await client.get(SETTINGS)).json()["content"] == "a: 2"


async def test_if_none_match_star_publishes_only_what_is_not_there(client: httpx.AsyncClient) -> None:
    condition = {"if-none-match": "*"}
    assert (await client.put(SETTINGS, content="a: 1", headers=condition)).status_code == 201
    problem(await client.put(SETTINGS, content="a: 1", headers=condition), 412, "precondition-failed")
    await client.delete(SETTINGS)
    answer = await client.put(SETTINGS, content="a: 1", headers=condition)
    assert (answer.status_code, answer.json()["version"]) == (201, 3)


async def test_a_reader_who_has_the_version_is_told_so(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    assert (await client.get(SETTINGS, headers={"if-none-match": '"1"'})).status_code == 304
    assert (await client.get(SETTINGS, headers={"if-none-match": '"7"'})).status_code == 200


async def test_a_deletion_is_a_version_with_history_before_it(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    problem(await client.delete(SETTINGS, headers={"if-match": '"9"'}), 412, "precondition-failed")
    answer = await client.delete(SETTINGS, params={"author": "bob"}, headers={"if-match": '"1"'})
    gone = ConfigMetadata.model_validate_json(answer.content)
    assert (answer.status_code, gone.version, gone.deleted, gone.author) == (200, 2, True, "bob")
    problem(await client.get(SETTINGS), 404, "not-found")
    problem(await client.delete(SETTINGS), 404, "not-found")
    assert (await client.get(SETTINGS, params={"version": 1})).json()["content"] == "a: 1"
    deleted = await client.get(SETTINGS, params={"version": 2})
    assert (deleted.json()["deleted"], deleted.json()["content"]) == (True, "")
    problem(await client.get(SETTINGS, params={"version": 2, "raw": "true"}), 404, "not-found")
    answer = await client.get(SETTINGS + "/history")
    versions = ConfigHistory.model_validate_json(answer.content).versions
    assert [(item.version, item.deleted) for item in versions] == [(2, True), (1, False)]


async def test_history_is_newest_first_and_limited(client: httpx.AsyncClient) -> None:
    for number in range(5):
        await client.put(SETTINGS, content=f"a: {number}")
    answer = await client.get(SETTINGS + "/history", params={"limit": 2})
    assert [item["version"] for item in answer.json()["versions"]] == [5, 4]
    problem(await client.get("/v1/config/default/order/never/history"), 404, "not-found")


async def test_a_rollback_is_a_new_version_with_the_old_content(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    await client.put(SETTINGS, content="a: 2")
    answer = await client.post(SETTINGS + "/rollback", json={"version": 1, "author": "ann"})
    rolled_back = ConfigMetadata.model_validate_json(answer.content)
    assert (answer.status_code, answer.headers["etag"]) == (200, '"3"')
    assert (rolled_back.version, rolled_back.author, rolled_back.comment) == (3, "ann", "rollback to version 1")
    assert (await client.get(SETTINGS)).json()["content"] == "a: 1"
    same = await client.post(SETTINGS + "/rollback", json={"version": 1})
    assert same.json()["version"] == 3
    problem(await client.post(SETTINGS + "/rollback", json={"version": 99}), 404, "not-found")
    late = await client.post(SETTINGS + "/rollback", json={"version": 2}, headers={"if-match": '"1"'})
    problem(late, 412, "precondition-failed")


async def test_a_rollback_brings_a_deleted_document_back(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    await client.delete(SETTINGS)
    assert (await client.post(SETTINGS + "/rollback", json={"version": 1})).status_code == 201
    problem(await client.post(SETTINGS + "/rollback", json={"version": 2}), 409, "conflict")


async def test_documents_are_listed_without_content(client: httpx.AsyncClient) -> None:
    for path in ("order/b", "order/a", "inventory/c", "order/gone"):
        await client.put(f"/v1/config/default/{path}", content="x")
    await client.delete("/v1/config/default/order/gone")
    for consistency in ("linearizable", "stale"):
        answer = await client.get("/v1/config/default", params={"consistency": consistency})
        listed = ConfigList.model_validate_json(answer.content)
        assert [f"{item.group}/{item.key}" for item in listed.documents] == ["inventory/c", "order/a", "order/b"]
        answer = await client.get("/v1/config/default", params={"consistency": consistency, "group": "inventory"})
        assert [item["key"] for item in answer.json()["documents"]] == ["c"]


async def test_a_stale_read_is_answered_from_memory_and_says_not_found_too(client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    linearizable = await client.get(SETTINGS)
    stale = await client.get(SETTINGS, params={"consistency": "stale"})
    assert stale.json() == linearizable.json()
    problem(await client.get("/v1/config/default/order/none", params={"consistency": "stale"}), 404, "not-found")


@pytest.mark.parametrize(
    ("key", "content", "line"),
    [("a.yaml", "a: 1\nb: [", 2), ("a.json", '{"a":\n}', 2), ("a.toml", "a=1\nb=", 2), ("a.properties", "\\u1", 1)],
)
async def test_content_that_is_not_its_format_is_refused_with_a_line(
    client: httpx.AsyncClient, key: str, content: str, line: int
) -> None:
    refused = await client.put(f"/v1/config/default/order/{key}", content=content)
    assert problem(refused, 422, "invalid-content")["errors"][0]["line"] == line
    problem(await client.get(f"/v1/config/default/order/{key}"), 404, "not-found")


async def test_the_format_may_be_named(client: httpx.AsyncClient) -> None:
    path = "/v1/config/default/order/noextension"
    problem(await client.put(path, content="{", params={"format": "json"}), 422, "invalid-content")
    assert (await client.put(path, content="{}", params={"format": "json"})).json()["format"] == "json"
    problem(await client.put(path, content="{}", params={"format": "xml"}), 400, "invalid-request")


async def test_routes_that_the_gateway_cannot_use_are_refused_and_the_old_ones_stay(client: httpx.AsyncClient) -> None:
    path = "/v1/config/default/gateway/routes.yaml"
    good = "routes:\n- match: {path_prefix: /orders}\n  service: order\n"
    assert (await client.put(path, content=good)).status_code == 201
    refused = await client.put(path, content="routes:\n- match: {path_prefix: /orders}\n  colour: blue\n")
    assert problem(refused, 422, "invalid-content")["errors"][0]["message"]
    assert (await client.get(path)).json()["content"] == good


async def test_oversized_and_undecodable_bodies_are_refused(client: httpx.AsyncClient) -> None:
    problem(await client.put(SETTINGS, content=b"a" * (CONTENT_BYTES_MAX + 1)), 413, "payload-too-large")
    problem(await client.put(SETTINGS, content=b"\xff"), 422, "invalid-content")
    largest = b"# " + b"a" * (CONTENT_BYTES_MAX - 2)
    assert (await client.put(SETTINGS, content=largest)).status_code == 201
    assert (await client.get(SETTINGS, params={"raw": "true"})).content == largest


@pytest.mark.parametrize(
    "path", ["/v1/config/Default/order/a", "/v1/config/default/-a/b", "/v1/config/default/order/a%20b",
             "/v1/config/default/order/.hidden", "/v1/config/default/order/a%0a",
             "/v1/config/default/" + "a" * 64 + "/b"],
)  # fmt: skip
async def test_names_that_no_document_may_have_are_refused(client: httpx.AsyncClient, path: str) -> None:
    problem(await client.put(path, content=""), 400, "invalid-request")


@pytest.mark.parametrize(
    ("method", "path", "arguments"),
    [
        ("PUT", SETTINGS, {"content": "", "headers": {"if-match": "one"}}),
        ("PUT", SETTINGS, {"content": "", "params": {"author": "a" * 129}}),
        ("PUT", SETTINGS, {"content": "", "params": {"comment": "a" * 1_025}}),
        ("GET", SETTINGS, {"params": {"version": 0}}),
        ("GET", SETTINGS, {"params": {"consistency": "maybe"}}),
        ("GET", SETTINGS + "/history", {"params": {"limit": 0}}),
        ("POST", SETTINGS + "/rollback", {"json": {"version": "x"}}),
        ("POST", SETTINGS + "/rollback", {"json": {"version": 1, "author": "a" * 129}}),
        ("POST", SETTINGS + "/rollback", {"content": "{"}),
        ("GET", "/v1/config/default/watch", {"params": {"key": "order"}}),
        ("GET", "/v1/config/default/watch", {"headers": {"last-event-id": "-1"}}),
        ("GET", "/v1/config/default/watch", {"params": {"revision": -1}}),
    ],
)
async def test_requests_that_make_no_sense_are_refused(
    client: httpx.AsyncClient, method: str, path: str, arguments: dict[str, Any]
) -> None:
    problem(await client.request(method, path, **arguments), 400, "invalid-request")


async def test_a_write_that_was_not_proposed_may_be_sent_again(client: httpx.AsyncClient, store: FailingStore) -> None:
    store.fails_with = NotProposed("there is no leader")
    problem(await client.put(SETTINGS, content="a: 1"), 503, "not-proposed", retry="safe")
    store.fails_with = None
    assert (await client.put(SETTINGS, content="a: 1")).json()["version"] == 1


async def test_a_write_of_unknown_outcome_says_so_and_sending_it_again_makes_no_second_version(
    client: httpx.AsyncClient, store: FailingStore
) -> None:
    store.fails_with, store.is_done_all_the_same = OutcomeUnknown("the leader was lost"), True
    problem(await client.put(SETTINGS, content="a: 1"), 504, "outcome-unknown", retry="unknown")
    store.fails_with = None
    answer = await client.put(SETTINGS, content="a: 1")
    assert (answer.status_code, answer.json()["version"]) == (200, 1)


async def next_event(lines: AsyncIterator[str]) -> tuple[str, dict[str, Any]]:
    fields: dict[str, str] = {}
    async for line in lines:
        if line.startswith(":"):
            continue
        if not line and fields:
            return fields["event"], json.loads(fields["data"])
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
    raise AssertionError("the stream has ended")


async def test_a_watch_over_http_begins_with_a_snapshot_follows_and_resumes(
    api: FastAPI, client: httpx.AsyncClient
) -> None:
    await client.put(SETTINGS, content="a: 1")
    async with served(api) as url, plain_http.async_client(base_url=url, timeout=10) as remote:
        watch = "/v1/config/default/watch?key=order/settings.yaml"
        async with remote.stream("GET", watch) as answer, aclosing(answer.aiter_lines()) as lines:
            assert answer.headers["content-type"].startswith("text/event-stream")
            kind, data = await next_event(lines)
            assert (kind, [item["content"] for item in data["documents"]]) == ("snapshot", ["a: 1"])
            await client.put(SETTINGS, content="a: 2")
            kind, data = await next_event(lines)
            assert (kind, [item["content"] for item in data["documents"]]) == ("delta", ["a: 2"])
        await client.delete(SETTINGS)
        resumed = {"last-event-id": str(data["revision"])}
        async with remote.stream("GET", watch, headers=resumed) as answer, aclosing(answer.aiter_lines()) as lines:
            kind, data = await next_event(lines)
            assert (kind, [item["deleted"] for item in data["documents"]]) == ("delta", [True])


async def test_a_client_from_another_stores_life_gets_a_snapshot(api: FastAPI, client: httpx.AsyncClient) -> None:
    await client.put(SETTINGS, content="a: 1")
    async with served(api) as url, plain_http.async_client(base_url=url, timeout=10) as remote:
        watch = remote.stream("GET", "/v1/config/default/watch?revision=1000000")
        async with watch as answer, aclosing(answer.aiter_lines()) as lines:
            kind, data = await next_event(lines)
    assert (kind, [item["content"] for item in data["documents"]]) == ("snapshot", ["a: 1"])


async def test_an_open_watch_ends_when_the_server_stops(api: FastAPI) -> None:
    async with (
        served(api) as url,
        plain_http.async_client(base_url=url, timeout=10) as remote,
        remote.stream("GET", "/v1/config/default/watch") as answer,
        aclosing(answer.aiter_lines()) as lines,
    ):
        await next_event(lines)
        api.state.surface.stopping.set()
        assert [line async for line in lines if line and not line.startswith(":")] == []


async def test_the_api_is_described_in_openapi(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert set(paths["/v1/config/{namespace}/{group}/{key}"]) == {"put", "get", "delete"}
    assert "text/plain" in paths["/v1/config/{namespace}/{group}/{key}"]["put"]["requestBody"]["content"]
    assert "get" in paths["/v1/config/{namespace}/watch"]

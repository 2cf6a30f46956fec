"""The registry's API on a real state machine, without a socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_core.clock import ManualClock
from quorate_registry.model import (
    KEY_PREFIX,
    KEY_PREFIX_END,
    REGISTRY_PREFIX,
    REGISTRY_PREFIX_END,
    decode_note,
    decode_record,
)
from quorate_sdk.wire import HEARTBEAT_INSTANCES_MAX, Instance, ServiceInstances, ServiceSettings
from quorate_store.model import EventKind
from quorate_store.port import Store
from support.registry_server import WAIT_S_MAX, BreakableStore, asgi_client
from support.store_local import local_store

SERVICES = "/v1/registry/default/services"
ORDER_1 = f"{SERVICES}/order/instances/order-1"
SPEC: dict[str, Any] = {"host": "127.0.0.1", "port": 9001}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Store]:
    async with local_store(tmp_path, clock=clock) as store:
        yield store


@pytest.fixture
async def client(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with asgi_client(store) as client:
        yield client


async def listed(client: httpx.AsyncClient, service: str = "order", **params: Any) -> ServiceInstances:
    answer = await client.get(f"{SERVICES}/{service}", params=params)
    assert answer.status_code == 200, answer.text
    return ServiceInstances.model_validate_json(answer.content)


ALIVE_1 = b"quorate/registry-alive/default/order/order-1"


async def lease_of(store: Store, key: bytes = ALIVE_1) -> int:
    return (await store.range(key)).kvs[0].lease


async def test_a_registered_instance_is_answered_listed_and_has_its_revision(client: httpx.AsyncClient) -> None:
    spec = {**SPEC, "weight": 7, "zone": "a", "version": "1.2", "metadata": {"git": "abc"}, "ttl_s": 30}
    answer = await client.put(ORDER_1, json=spec)
    assert answer.status_code == 201
    instance = Instance.model_validate_json(answer.content)
    assert instance.model_dump(include=set(spec)) == spec
    assert (instance.namespace, instance.service, instance.id) == ("default", "order", "order-1")
    assert Instance.model_validate_json((await client.get(ORDER_1)).content) == instance
    found = await listed(client)
    assert found.instances == [instance]
    assert found.revision >= instance.revision


async def test_registering_again_replaces_and_answers_200(client: httpx.AsyncClient) -> None:
    await client.put(ORDER_1, json=SPEC)
    answer = await client.put(ORDER_1, json={**SPEC, "port": 9002})
    assert answer.status_code == 200
    assert [instance.port for instance in (await listed(client)).instances] == [9002]


async def test_registering_again_with_the_same_time_to_live_keeps_the_lease(
    client: httpx.AsyncClient, store: Store
) -> None:
    await client.put(ORDER_1, json=SPEC)
    former = await lease_of(store)
    await client.put(ORDER_1, json={**SPEC, "port": 9002})
    assert await lease_of(store) == former


async def test_registering_again_with_another_time_to_live_never_flaps(client: httpx.AsyncClient, store: Store) -> None:
    await client.put(ORDER_1, json=SPEC)
    former = await lease_of(store)
    async with store.watch(KEY_PREFIX, KEY_PREFIX_END) as watch, asyncio.timeout(WAIT_S_MAX):
        batches = aiter(watch)
        await anext(batches)
        await client.put(ORDER_1, json={**SPEC, "ttl_s": 20})
        await watch.request_progress()
        kinds = [event.kind for event in (await anext(batches)).events]
        assert kinds == [EventKind.PUT]
        assert not (await anext(batches)).events  # the bookmark: nothing else has happened
    assert await lease_of(store) != former
    assert list(await store.lease_keepalive([former])) == [former]


async def until_lapsed(store: Store, clock: ManualClock, seconds: float, *keys: bytes) -> None:
    """Let time pass until these alive keys have gone."""
    async with store.watch(REGISTRY_PREFIX, REGISTRY_PREFIX_END) as watch, asyncio.timeout(WAIT_S_MAX):
        batches, gone = aiter(watch), set[bytes]()
        await anext(batches)
        clock.advance(seconds)
        while gone < set(keys):
            gone.update(event.kv.key for event in (await anext(batches)).events if event.kind is EventKind.DELETE)
    assert gone == set(keys)


async def test_one_of_many_without_heartbeats_is_hidden_after_its_time_to_live(
    client: httpx.AsyncClient, store: Store, clock: ManualClock
) -> None:
    await client.put(ORDER_1, json={**SPEC, "ttl_s": 5})
    for number in (2, 3):
        await client.put(f"{SERVICES}/order/instances/order-{number}", json={**SPEC, "ttl_s": 600})
    await until_lapsed(store, clock, 60, ALIVE_1)
    found = await listed(client)
    assert [instance.id for instance in found.instances] == ["order-2", "order-3"]
    assert not found.is_protected
    assert (await client.get(ORDER_1)).status_code == 404
    assert (await client.patch(ORDER_1, json={"weight": 1})).status_code == 404
    answer = await client.put(ORDER_1, json=SPEC)
    assert answer.status_code == 201, "it begins anew"
    assert [instance.id for instance in (await listed(client)).instances] == ["order-1", "order-2", "order-3"]


async def test_when_most_are_gone_at_once_they_stay_marked_stale_until_they_are_back(
    client: httpx.AsyncClient, store: Store, clock: ManualClock
) -> None:
    await client.put(ORDER_1, json={**SPEC, "ttl_s": 5})
    await until_lapsed(store, clock, 60, ALIVE_1)
    found = await listed(client)
    assert [(instance.id, instance.stale, instance.status) for instance in found.instances] == [("order-1", True, "UP")]
    assert found.is_protected
    summary = (await client.get(SERVICES)).json()["services"]
    assert summary == [{"service": "order", "instances": 1, "up": 0, "stale": 1, "is_protected": True}]
    assert (await client.patch(ORDER_1, json={"weight": 1})).json()["stale"]
    beat = await client.post("/v1/registry/heartbeat", json={"instances": [{"service": "order", "id": "order-1"}]})
    assert [one["id"] for one in beat.json()["unknown"]] == ["order-1"], "it has to register again"
    await client.put(ORDER_1, json=SPEC)
    found = await listed(client)
    assert ([instance.stale for instance in found.instances], found.is_protected) == ([False], False)


async def test_without_protection_all_may_go_at_once(
    client: httpx.AsyncClient, store: Store, clock: ManualClock
) -> None:
    settings = f"{SERVICES}/order/settings"
    assert (await client.get(settings)).json() == ServiceSettings().model_dump()
    answer = await client.put(settings, json={"protection_threshold": 0})
    assert answer.json()["protection_threshold"] == 0
    await client.put(ORDER_1, json={**SPEC, "ttl_s": 5})
    await until_lapsed(store, clock, 60, ALIVE_1)
    assert (await listed(client)).instances == []
    assert (await client.delete(settings)).json() == ServiceSettings().model_dump()
    assert [instance.stale for instance in (await listed(client)).instances] == [True], "which counts at once"
    for wrong in ({"protection_threshold": 1.1}, {"hold_s": 9}, {"hold_s": True}, {"threshold": 1}):
        assert (await client.put(settings, json=wrong)).status_code == 400, wrong


async def test_a_persistent_instance_needs_no_heartbeats_and_waits_for_its_first_check(
    client: httpx.AsyncClient, store: Store, clock: ManualClock
) -> None:
    spec = {"host": "192.0.2.1", "port": 9001, "ephemeral": False}
    answer = await client.put(ORDER_1, json=spec)
    assert (answer.status_code, answer.json()["status"]) == (201, "UP"), "nobody checks it"
    clock.advance(86_400 * 2)
    assert [instance.status for instance in (await listed(client)).instances] == ["UP"]
    checked = {**spec, "check": {"type": "tcp", "interval_s": 3_600}}
    assert (await client.put(ORDER_1, json=checked)).json()["status"] == "STARTING"
    beat = await client.post("/v1/registry/heartbeat", json={"instances": [{"service": "order", "id": "order-1"}]})
    assert beat.json() == {"renewed": 1, "unknown": []}
    assert (await client.put(ORDER_1, json={**SPEC, "check": {"type": "tcp"}})).status_code == 400
    assert (await client.delete(ORDER_1)).status_code == 200
    assert (await client.get(ORDER_1)).status_code == 404


async def test_an_instance_may_become_persistent_and_ephemeral_again(
    client: httpx.AsyncClient, store: Store, clock: ManualClock
) -> None:
    await client.put(ORDER_1, json={**SPEC, "ttl_s": 5})
    await client.put(ORDER_1, json={**SPEC, "ephemeral": False})
    assert (await store.range(ALIVE_1)).kvs == ()
    clock.advance(60)
    assert [instance.stale for instance in (await listed(client)).instances] == [False]
    await client.put(ORDER_1, json={**SPEC, "ttl_s": 5})
    await until_lapsed(store, clock, 60, ALIVE_1)


async def test_a_list_has_an_etag_of_what_is_shown_and_the_revision_it_is_of(
    client: httpx.AsyncClient, store: Store
) -> None:
    await client.put(ORDER_1, json=SPEC)
    answer = await client.get(f"{SERVICES}/order")
    assert int(answer.headers["quorate-revision"]) == answer.json()["revision"]
    await store.put(b"something-else", b"")
    again = await client.get(f"{SERVICES}/order", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert int(again.headers["quorate-revision"]) > answer.json()["revision"]
    await client.patch(ORDER_1, json={"weight": 5})
    changed = await client.get(f"{SERVICES}/order", headers={"If-None-Match": answer.headers["etag"]})
    assert changed.status_code == 200
    assert changed.headers["etag"] != answer.headers["etag"]


async def test_long_lists_are_compressed_for_those_who_take_it(client: httpx.AsyncClient) -> None:
    for number in range(8):
        await client.put(f"{SERVICES}/order/instances/order-{number}", json=SPEC)
    plain = await client.get(f"{SERVICES}/order", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    for accepted, is_zipped in (("gzip", True), ("br, GZIP;q=0.5", True), ("gzip;q=0", False), ("deflate", False)):
        answer = await client.get(f"{SERVICES}/order", headers={"Accept-Encoding": accepted})
        assert (answer.headers.get("content-encoding") == "gzip") is is_zipped
        assert answer.json() == plain.json()


async def test_lists_are_filtered_by_any_of_each_kind(client: httpx.AsyncClient) -> None:
    kinds = [("a", "1", ["blue"]), ("b", "1", ["green", "canary"]), ("b", "2", [])]
    for number, (zone, version, tags) in enumerate(kinds):
        spec = {**SPEC, "zone": zone, "version": version, "tags": tags}
        await client.put(f"{SERVICES}/order/instances/{number}", json=spec)
    await client.patch(f"{SERVICES}/order/instances/2", json={"status": "DRAINING", "tags": ["old"]})

    async def ids(**params: object) -> list[str]:
        return [instance.id for instance in (await listed(client, **params)).instances]

    assert await ids(zone="b") == ["1", "2"]
    assert await ids(zone="b", version="1") == ["1"]
    assert await ids(tag=["blue", "canary"]) == ["0", "1"]
    assert await ids(status="UP") == ["0", "1"]
    assert await ids(tag="old", status=["UP", "DRAINING"]) == ["2"]
    assert await ids(zone="nowhere") == []
    assert (await client.get(f"{SERVICES}/order", params={"status": "up"})).status_code == 400


async def test_namespaces_are_those_with_instances(client: httpx.AsyncClient) -> None:
    await client.put(ORDER_1, json=SPEC)
    await client.put("/v1/registry/other/services/a/instances/1", json=SPEC)
    await client.put("/v1/registry/other/services/b/instances/1", json=SPEC)
    await client.delete("/v1/registry/other/services/b/instances/1")
    assert (await client.get("/v1/registry/namespaces")).json()["namespaces"] == [
        {"namespace": "default", "services": 1, "instances": 1}, {"namespace": "other", "services": 1, "instances": 1},
    ]  # fmt: skip


async def test_who_changed_it_is_written_down(client: httpx.AsyncClient, store: Store) -> None:
    await client.put(ORDER_1, json=SPEC, headers={"Quorate-Author": "ada@laptop"})
    key = KEY_PREFIX + b"default/order/order-1"
    assert decode_record((await store.range(key)).kvs[0].value).changed_by == "ada@laptop"
    await client.patch(ORDER_1, json={"weight": 3})
    assert decode_record((await store.range(key)).kvs[0].value).changed_by.startswith("127.0.0.1")
    await client.delete(ORDER_1, headers={"Quorate-Author": "eve"})
    note = decode_note((await store.range(b"quorate/registry-notes/default/order")).kvs[0].value)
    assert (note.id, note.by, note.reason) == ("order-1", "eve", "deregistered")
    assert (await client.put(ORDER_1, json=SPEC, headers={"Quorate-Author": "x" * 129})).status_code == 400


async def test_heartbeats_keep_an_instance_and_name_what_is_unknown(
    client: httpx.AsyncClient, store: Store, clock: ManualClock
) -> None:
    await client.put(ORDER_1, json={**SPEC, "ttl_s": 10})
    beat = {"instances": [{"service": "order", "id": "order-1"}, {"namespace": "other", "service": "order", "id": "x"}]}
    for _ in range(4):
        clock.advance(6)
        answer = await client.post("/v1/registry/heartbeat", json=beat)
        assert answer.json() == {"renewed": 1, "unknown": [{"namespace": "other", "service": "order", "id": "x"}]}
    assert len((await listed(client)).instances) == 1


async def test_a_heartbeat_counts_an_instance_that_is_named_twice_once(client: httpx.AsyncClient) -> None:
    await client.put(ORDER_1, json=SPEC)
    beat = {"instances": [{"service": "order", "id": "order-1"}] * 2}
    answer = await client.post("/v1/registry/heartbeat", json=beat)
    assert answer.json() == {"renewed": 1, "unknown": []}


async def test_a_heartbeat_right_after_registration_elsewhere_is_never_called_unknown(store: Store) -> None:
    """Two nodes: the second one may not have heard yet of what was registered by the first one."""
    async with asgi_client(store) as first, asgi_client(store) as second:
        for number in range(20):
            spec = {**SPEC, "ttl_s": 10 + number % 2}  # another lease each time
            assert (await first.put(ORDER_1, json=spec)).is_success
            beat = {"instances": [{"service": "order", "id": "order-1"}]}
            assert (await second.post("/v1/registry/heartbeat", json=beat)).json() == {"renewed": 1, "unknown": []}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "heartbeat"),
        (b'{"instances": 1}', "instances"),
        (b'{"instances": [{"service": "Order!", "id": "a"}]}', "service"),
        (b'{"instances": [{"service": "order"}]}', "id"),
        (b'{"instances": [], "more": 1}', "more"),
        (
            b'{"instances": [%b]}' % b",".join([b'{"service":"a","id":"b"}'] * (HEARTBEAT_INSTANCES_MAX + 1)),
            "instances",
        ),
    ],
)
async def test_a_bad_heartbeat_is_refused_naming_the_field(client: httpx.AsyncClient, body: bytes, named: str) -> None:
    answer = await client.post("/v1/registry/heartbeat", content=body)
    assert answer.status_code == 400
    assert named in answer.json()["detail"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"port": 0}, "port"),
        ({"port": "many"}, "port"),
        ({"host": "a b"}, "host"),
        ({"weight": -1}, "weight"),
        ({"ttl_s": 1}, "ttl_s"),
        ({"status": "SLEEPING"}, "status"),
        ({"metadata": {"k": "v" * 2_000}}, "metadata"),
        ({"metadata": {f"k{number}": "" for number in range(65)}}, "metadata"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_bad_registration_is_refused_naming_the_field(
    client: httpx.AsyncClient, change: dict[str, Any], named: str
) -> None:
    answer = await client.put(ORDER_1, json={**SPEC, **change})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in answer.json()["detail"]
    assert (await listed(client)).instances == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/registry/default/services/Order/instances/order-1",
        "/v1/registry/-/services/order/instances/order-1",
        "/v1/registry/default/services/order/instances/order 1",
        f"/v1/registry/default/services/{'a' * 64}/instances/order-1",
    ],
)
async def test_a_bad_name_is_refused(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.put(path, json=SPEC)).status_code == 400


async def test_a_patch_changes_only_what_it_gives_and_keeps_the_lease(client: httpx.AsyncClient, store: Store) -> None:
    await client.put(ORDER_1, json={**SPEC, "metadata": {"a": "1"}})
    former = await lease_of(store)
    answer = await client.patch(ORDER_1, json={"weight": 3, "status": "DRAINING"})
    assert answer.status_code == 200
    instance = (await listed(client)).instances[0]
    assert (instance.weight, instance.status, instance.metadata) == (3, "DRAINING", {"a": "1"})
    assert not instance.takes_traffic
    assert await lease_of(store) == former


async def test_patches_at_the_same_time_are_all_kept(client: httpx.AsyncClient) -> None:
    await client.put(ORDER_1, json=SPEC)
    changes = [{"weight": 5}, {"status": "DRAINING"}, {"metadata": {"b": "2"}}]
    answers = await asyncio.gather(*(client.patch(ORDER_1, json=change) for change in changes))
    assert {answer.status_code for answer in answers} == {200}
    instance = (await listed(client)).instances[0]
    assert (instance.weight, instance.status, instance.metadata) == (5, "DRAINING", {"b": "2"})


async def test_registrations_of_one_instance_at_the_same_time_leave_one_lease(
    client: httpx.AsyncClient, store: Store
) -> None:
    specs = [{**SPEC, "port": 9000 + number, "ttl_s": 10 + number} for number in range(5)]
    answers = await asyncio.gather(*(client.put(ORDER_1, json=spec) for spec in specs))
    assert all(answer.is_success for answer in answers)
    assert [answer.status_code for answer in answers].count(201) == 1
    status = await store.lease_time_to_live(await lease_of(store), keys=True)
    assert status.keys == (ALIVE_1,)


async def test_a_deregistered_instance_is_gone_at_the_answered_revision(client: httpx.AsyncClient) -> None:
    await client.put(ORDER_1, json=SPEC)
    answer = await client.delete(ORDER_1)
    assert answer.status_code == 200
    found = await listed(client, consistency="stale", min_revision=answer.json()["revision"])
    assert found.instances == []
    assert (await client.delete(ORDER_1)).status_code == 404
    assert (await client.patch(ORDER_1, json={"weight": 1})).status_code == 404


async def test_a_service_that_nobody_has_registered_is_an_empty_list(client: httpx.AsyncClient) -> None:
    assert (await listed(client, "nobody")).instances == []


async def test_services_are_counted(client: httpx.AsyncClient) -> None:
    await client.put(ORDER_1, json=SPEC)
    await client.put(f"{SERVICES}/order/instances/order-2", json={**SPEC, "status": "DRAINING"})
    await client.put(f"{SERVICES}/inventory/instances/i-1", json=SPEC)
    await client.put("/v1/registry/other/services/elsewhere/instances/e-1", json=SPEC)
    answer = (await client.get(SERVICES)).json()
    assert answer["services"] == [
        {"service": "inventory", "instances": 1, "up": 1, "stale": 0, "is_protected": False},
        {"service": "order", "instances": 2, "up": 1, "stale": 0, "is_protected": False},
    ]


async def test_a_blocking_query_waits_for_its_own_service_only(client: httpx.AsyncClient) -> None:
    seen = (await client.put(ORDER_1, json=SPEC)).json()["revision"]
    async with asyncio.timeout(WAIT_S_MAX), asyncio.TaskGroup() as group:
        query = group.create_task(listed(client, min_revision=seen + 1, wait=50))
        for _ in range(20):
            await client.put(f"{SERVICES}/inventory/instances/i-1", json=SPEC)
        assert not query.done()
        changed = (await client.patch(ORDER_1, json={"weight": 1})).json()["revision"]
        found = await query
    assert found.revision >= changed
    assert [instance.weight for instance in found.instances] == [1]


async def test_a_blocking_query_hears_of_a_removal(client: httpx.AsyncClient) -> None:
    seen = (await client.put(ORDER_1, json=SPEC)).json()["revision"]
    async with asyncio.timeout(WAIT_S_MAX), asyncio.TaskGroup() as group:
        query = group.create_task(listed(client, min_revision=seen + 1, wait=50))
        await client.delete(ORDER_1)
        assert (await query).instances == []


async def test_a_blocking_query_answers_with_what_there_is_when_its_time_is_over(client: httpx.AsyncClient) -> None:
    seen = (await client.put(ORDER_1, json=SPEC)).json()["revision"]
    found = await listed(client, min_revision=seen + 1, wait=0.01)
    assert [instance.id for instance in found.instances] == ["order-1"]


async def test_a_revision_ahead_of_the_store_is_refused_without_a_wait(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{SERVICES}/order", params={"min_revision": 10**9})
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:quorate:problem:future-revision")


@pytest.mark.parametrize(
    "params", [{"wait": 56}, {"wait": -1}, {"min_revision": -1}, {"min_revision": "x"}, {"consistency": "maybe"}]
)
async def test_a_bad_query_is_refused_naming_the_parameter(client: httpx.AsyncClient, params: dict[str, Any]) -> None:
    answer = await client.get(f"{SERVICES}/order", params=params)
    assert answer.status_code == 400
    assert next(iter(params)) in answer.json()["detail"]


async def test_without_a_store_stale_lists_go_on_and_all_else_says_that_it_may_be_tried_again(store: Store) -> None:
    breakable = BreakableStore(store)
    async with asgi_client(breakable) as client:
        await client.put(ORDER_1, json=SPEC)
        await listed(client)
        breakable.cut()
        assert [instance.id for instance in (await listed(client, consistency="stale")).instances] == ["order-1"]
        beat = {"instances": [{"service": "order", "id": "order-1"}]}
        for answer in (
            await client.get(f"{SERVICES}/order"),
            await client.get(ORDER_1),
            await client.put(ORDER_1, json=SPEC),
            await client.delete(ORDER_1),
            await client.post("/v1/registry/heartbeat", json=beat),
        ):
            assert (answer.status_code, answer.json()["retry"]) == (503, "safe")
        breakable.mend()
        assert [instance.id for instance in (await listed(client)).instances] == ["order-1"]


async def test_a_list_after_the_store_came_back_has_what_changed_meanwhile(store: Store) -> None:
    breakable = BreakableStore(store)
    async with asgi_client(breakable) as client, asgi_client(store) as other:
        await client.put(ORDER_1, json=SPEC)
        breakable.cut()
        await other.put(f"{SERVICES}/order/instances/order-2", json=SPEC)
        await other.delete(ORDER_1)
        breakable.mend()
        assert [instance.id for instance in (await listed(client)).instances] == ["order-2"]


async def test_a_node_whose_history_is_compacted_loads_anew_and_misses_nothing(store: Store) -> None:
    breakable = BreakableStore(store)
    async with asgi_client(breakable) as client, asgi_client(store) as other:
        await client.put(ORDER_1, json=SPEC)
        await listed(client)
        breakable.cut()
        await other.put(f"{SERVICES}/order/instances/order-2", json=SPEC)
        await other.delete(ORDER_1)
        breakable.history_lost = True
        breakable.mend()
        assert [instance.id for instance in (await listed(client)).instances] == ["order-2"]
        assert not breakable.history_lost


async def test_the_api_describes_itself(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert "/v1/registry/heartbeat" in paths
    assert "put" in paths["/v1/registry/{namespace}/services/{service}/instances/{id}"]

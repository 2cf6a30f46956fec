"""What changed? Instances, settings, documents and routes in one timeline, read from the store's history."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from quorate_core.clock import ManualClock
from quorate_sdk.wire import ChangeList
from quorate_store.port import Store
from support.registry_fleet import FleetMember, client_of, registry_fleet
from support.store_local import local_store

ORDER = "/v1/registry/default/services/order"
SPEC: dict[str, Any] = {"host": "127.0.0.1", "port": 9001, "ttl_s": 600}
BY = {"quorate-author": "ann@desk"}
ROUTES = b"routes: []\n"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


@pytest.fixture
async def node(store: Store) -> AsyncIterator[FleetMember]:
    async with registry_fleet(store, ["node-1"]) as (member,):
        yield member


async def send(node: FleetMember, method: str, path: str, **content: Any) -> None:
    async with client_of(node) as client:
        answer = await client.request(method, path, headers=BY, **content)
    assert answer.is_success, answer.text


async def changes(node: FleetMember, **parameters: Any) -> ChangeList:
    async with client_of(node) as client:
        answer = await client.get("/v1/changes", params=parameters)
    assert answer.status_code == 200, answer.text
    return ChangeList.model_validate_json(answer.content)


def told(found: ChangeList) -> list[tuple[str, str, str, str]]:
    return [(change.kind, change.name, change.what, change.by) for change in found.changes]


async def one_of_each(node: FleetMember) -> None:
    await send(node, "PUT", f"{ORDER}/instances/order-1", json=SPEC)
    await send(node, "PATCH", f"{ORDER}/instances/order-1", json={"weight": 7})
    await send(node, "PUT", f"{ORDER}/settings", json={"protection_threshold": 0.25})
    params = {"author": "bob", "comment": "why not"}
    await send(node, "PUT", "/v1/config/default/order/settings.yaml", params=params, content=b"password: hidden\n")
    await send(node, "PUT", "/v1/config/default/gateway/routes.yaml", params=params, content=ROUTES)
    await send(node, "DELETE", "/v1/config/default/order/settings.yaml", params={"author": "bob"})
    await send(node, "DELETE", f"{ORDER}/instances/order-1")


ONE_OF_EACH = [
    ("instance", "order/order-1", "registered", "ann@desk"),
    ("instance", "order/order-1", "changed", "ann@desk"),
    ("service", "order", "settings changed", "ann@desk"),
    ("config", "order/settings.yaml", "published", "bob"),
    ("route", "gateway/routes.yaml", "published", "bob"),
    ("config", "order/settings.yaml", "deleted", "bob"),
    ("instance", "order/order-1", "deregistered", "ann@desk"),
]


async def test_all_is_told_in_one_timeline_with_who_did_it_and_what_was_before(node: FleetMember) -> None:
    await one_of_each(node)
    found = await changes(node)
    assert told(found) == ONE_OF_EACH
    assert found.complete
    revisions = [change.revision for change in found.changes]
    assert revisions == sorted(revisions)
    assert found.changes[1].details == {"weight": ["100", "7"]}
    assert found.changes[2].details["protection_threshold"] == ["", "0.25"]
    assert found.changes[3].details == {"version": ["", "1"], "comment": ["", "why not"], "format": ["", "yaml"]}
    times = [datetime.fromisoformat(change.at) for change in found.changes]
    assert all(abs(time - datetime.now(UTC)) < timedelta(minutes=1) for time in times)


async def test_contents_of_documents_are_not_told(node: FleetMember) -> None:
    await one_of_each(node)
    assert "hidden" not in (await changes(node)).model_dump_json()


async def test_a_node_that_has_just_started_tells_the_same(node: FleetMember, store: Store) -> None:
    await one_of_each(node)
    async with registry_fleet(store, ["node-2"]) as (late,):
        assert told(await changes(late)) == ONE_OF_EACH


async def test_a_span_by_revision_includes_both_ends(node: FleetMember) -> None:
    await one_of_each(node)
    everything = (await changes(node)).changes
    second, fourth = everything[1].revision, everything[3].revision
    found = await changes(node, **{"from": second, "to": fourth})
    assert (told(found), found.complete) == (ONE_OF_EACH[1:4], True)
    assert (found.from_revision, found.to_revision) == (second, fourth)


async def test_a_span_by_time_includes_both_ends(node: FleetMember) -> None:
    await one_of_each(node)
    at = (await changes(node)).changes[2].at
    assert any(change.at == at for change in (await changes(node, **{"from": at, "to": at})).changes)
    assert (await changes(node, to="2020-01-01T00:00:00Z", **{"from": "2019-01-01T00:00:00Z"})).changes == []


async def test_of_more_than_the_limit_the_newest_are_told_and_that_there_were_more(node: FleetMember) -> None:
    await one_of_each(node)
    found = await changes(node, limit=3)
    assert (told(found), found.complete) == (ONE_OF_EACH[-3:], False)
    assert found.from_revision == found.changes[0].revision


async def test_what_compaction_has_taken_is_said_to_be_missing(node: FleetMember, store: Store) -> None:
    await one_of_each(node)
    everything = (await changes(node)).changes
    await store.compact(everything[3].revision)
    found = await changes(node, **{"from": everything[0].revision})
    assert (told(found), found.complete) == (ONE_OF_EACH[4:], False)
    assert found.from_revision > everything[3].revision
    later = await changes(node, **{"from": everything[5].revision})
    assert (told(later), later.complete) == (ONE_OF_EACH[5:], True)


async def test_after_the_newest_there_is_nothing_and_nothing_is_missed_by_going_on(node: FleetMember) -> None:
    await send(node, "PUT", f"{ORDER}/instances/order-1", json=SPEC)
    first = await changes(node)
    following = await changes(node, **{"from": first.to_revision + 1})
    assert (following.changes, following.complete) == ([], True)
    await send(node, "DELETE", f"{ORDER}/instances/order-1")
    following = await changes(node, **{"from": following.to_revision + 1})
    assert told(following) == [("instance", "order/order-1", "deregistered", "ann@desk")]


async def test_a_bound_that_says_nothing_is_refused(node: FleetMember) -> None:
    async with client_of(node) as client:
        for bound in ("soon", "10", "-1", "10w", "2026-01-01", "2026-01-01T00:00:00", "9" * 41):
            answer = await client.get("/v1/changes", params={"from": bound})
            assert answer.status_code == (200 if bound == "10" else 400), bound


async def test_one_that_lapsed_and_came_back_is_told_so(tmp_path: Path) -> None:
    clock = ManualClock()
    async with local_store(tmp_path / "aside", clock=clock) as store, registry_fleet(store, ["node-1"]) as (node,):
        for name in ("order-1", "order-2"):
            await send(node, "PUT", f"{ORDER}/instances/{name}", json=SPEC)
        lease = (await store.range(b"quorate/registry-alive/default/order/order-1")).kvs[0].lease
        await store.lease_revoke(lease)
        await send(node, "PUT", f"{ORDER}/instances/order-1", json=SPEC)
        found = (await changes(node, **{"from": 1})).changes
    assert [(change.name, change.what) for change in found] == [
        ("order/order-1", "registered"), ("order/order-2", "registered"), ("order/order-1", "lapsed"),
        ("order/order-1", "came back"),
    ]  # fmt: skip
    assert (found[2].by, found[2].at) == ("", "")

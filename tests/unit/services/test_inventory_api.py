"""The inventory service over HTTP, on a real database."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_inventory.settings import InventorySettings
from support.services_events import as_request
from support.services_shop import Shop, open_shop

PLACED = "quorate.order.placed.v1"
CANCELLED = "quorate.order.cancelled.v1"


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path) as shop:
        shop.network.is_cut = True  # nobody hears the answers: only this service is under test
        yield shop


@pytest.fixture
def client(shop: Shop) -> httpx.AsyncClient:
    return shop.inventory_clients[0]


def require_problem(answer: httpx.Response, status: int, cause: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert cause in answer.json()["detail"]


def placed(order_id: str, **quantities: int) -> tuple[dict[str, str], bytes]:
    lines = [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()]
    return as_request(PLACED, {"order_id": order_id, "lines": lines}, id=f"{order_id}-placed")


def cancelled(order_id: str) -> tuple[dict[str, str], bytes]:
    return as_request(CANCELLED, {"order_id": order_id, "reason": "why"}, id=f"{order_id}-cancelled")


async def post(client: httpx.AsyncClient, event: tuple[dict[str, str], bytes]) -> httpx.Response:
    return await client.post("/stock/events", headers=event[0], content=event[1])


async def test_stock_is_shown_as_it_is_available_and_reserved(client: httpx.AsyncClient) -> None:
    assert (await client.get("/stock/widget")).json() == {"sku": "widget", "available": 60, "reserved": 0}
    require_problem(await client.get("/stock/unheard-of"), 404, "there is no SKU unheard-of")


async def test_every_order_of_arrival_of_repeated_events_ends_in_the_same_stock(
    shop: Shop, client: httpx.AsyncClient
) -> None:
    """An order placed and cancelled, each told twice: nothing stays reserved, whatever comes first."""
    events = ["placed", "cancelled", "placed", "cancelled"]
    for number, arrival in enumerate(sorted(set(itertools.permutations(events)))):
        order_id = f"o-{number}"
        for name in arrival:
            event = placed(order_id, widget=7, gadget=1) if name == "placed" else cancelled(order_id)
            assert (await post(client, event)).status_code == 204
        assert (await shop.stock())["widget"] == (60, 0), arrival
        assert (await shop.reservations())[order_id].status == "RELEASED"


async def test_an_event_that_comes_again_is_answered_as_a_success_and_changes_nothing(
    shop: Shop, client: httpx.AsyncClient
) -> None:
    for _ in range(3):
        assert (await post(client, placed("o-1", widget=7))).status_code == 204
    assert (await shop.stock())["widget"] == (53, 7)
    assert await shop.undelivered() == 1


async def test_an_order_that_is_placed_twice_under_different_event_ids_is_reserved_once(
    shop: Shop, client: httpx.AsyncClient
) -> None:
    for number in range(2):
        data = {"order_id": "o-1", "lines": [{"sku": "widget", "quantity": 7}]}
        assert (await post(client, as_request(PLACED, data, id=f"e-{number}"))).status_code == 204
    assert (await shop.stock())["widget"] == (53, 7)


async def test_all_lines_are_reserved_or_none(shop: Shop, client: httpx.AsyncClient) -> None:
    await post(client, placed("o-1", gadget=1, rarity=4, widget=1))
    assert {sku: reserved for sku, (_, reserved) in (await shop.stock()).items()} == {
        "gadget": 0, "rarity": 0, "widget": 0
    }  # fmt: skip
    await post(client, placed("o-2", gadget=1, rarity=3, widget=1))
    assert {sku: reserved for sku, (_, reserved) in (await shop.stock()).items()} == {
        "gadget": 1, "rarity": 3, "widget": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "cause"),
    [
        ({"type": "quorate.order.unheard-of.v9"}, 422, "not consumed by inventory"),
        ({"data": {"order_id": "o-1"}}, 422, "lines"),
        ({"data": {"order_id": "o-1", "lines": []}}, 422, "lines"),
        ({"data": {"order_id": "o-1", "lines": [{"sku": "widget", "quantity": 0}]}}, 422, "quantity"),
        ({"data": {"order_id": "o-1", "lines": [{"sku": "widget", "quantity": -5}]}}, 422, "quantity"),
        ({"data": {"order_id": "o-1", "lines": [{"sku": "w", "quantity": 1}] * 2}}, 422, "more than one line"),
        ({"data": {"order_id": "", "lines": [{"sku": "w", "quantity": 1}]}}, 422, "order_id"),
        ({"sequence": "later"}, 400, "sequence"),
    ],
)
async def test_an_event_that_can_never_be_taken_is_refused_for_good(
    shop: Shop, client: httpx.AsyncClient, changes: dict[str, Any], status: int, cause: str
) -> None:
    data = {"order_id": "o-1", "lines": [{"sku": "widget", "quantity": 1}]}
    require_problem(await post(client, as_request(PLACED, data, **changes)), status, cause)
    assert await shop.reservations() == {}
    assert (await post(client, as_request(PLACED, data))).status_code == 204  # a refusal leaves no trace in the inbox
    assert len(await shop.reservations()) == 1


async def test_received_stock_is_added_and_counted_stock_replaces(client: httpx.AsyncClient) -> None:
    await post(client, placed("o-1", widget=7))
    answer = await client.post("/stock/widget/receive", json={"quantity": 10})
    assert (answer.status_code, answer.json()) == (200, {"sku": "widget", "available": 63, "reserved": 7})
    answer = await client.put("/stock/widget", json={"available": 5})
    assert (answer.status_code, answer.json()) == (200, {"sku": "widget", "available": 5, "reserved": 7})


async def test_a_new_sku_begins_with_what_is_available(client: httpx.AsyncClient) -> None:
    require_problem(await client.post("/stock/gizmo/receive", json={"quantity": 1}), 404, "there is no SKU gizmo")
    answer = await client.put("/stock/gizmo", json={"available": 4})
    assert (answer.status_code, answer.json()) == (201, {"sku": "gizmo", "available": 4, "reserved": 0})


async def test_stock_has_a_limit(client: httpx.AsyncClient) -> None:
    answer = await client.post("/stock/widget/receive", json={"quantity": 10**12})
    require_problem(answer, 409, "more than 1000000000000 pieces of widget")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/stock/widget", {"available": -1}),
        ("PUT", "/stock/widget", {"available": "5"}),
        ("PUT", "/stock/widget", {"available": 5, "reserved": 0}),
        ("PUT", "/stock/events", {"available": 5}),
        ("PUT", "/stock/no%20spaces", {"available": 5}),
        ("POST", "/stock/widget/receive", {"quantity": 0}),
        ("POST", "/stock/widget/receive", {}),
    ],
)
async def test_stock_that_is_not_understood_is_refused(
    shop: Shop, client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    before = await shop.stock()
    require_problem(await client.request(method, path, json=body), 400, "")
    assert await shop.stock() == before


async def test_skus_are_listed_by_name_page_by_page(client: httpx.AsyncClient) -> None:
    first = (await client.get("/stock", params={"limit": 2})).json()
    assert [stock["sku"] for stock in first["stock"]] == ["gadget", "rarity"]
    rest = (await client.get("/stock", params={"limit": 2, "after": first["next"]})).json()
    assert rest == {"stock": [{"sku": "widget", "available": 60, "reserved": 0}]}


async def test_what_is_low_follows_the_live_settings_at_once(shop: Shop, client: httpx.AsyncClient) -> None:
    async def low() -> list[str]:
        return [stock["sku"] for stock in (await client.get("/stock", params={"low": "true"})).json()["stock"]]

    assert await low() == ["rarity"]
    shop.inventory_settings.current = InventorySettings(low_stock_threshold=40)
    assert await low() == ["gadget", "rarity"]
    assert (await client.get("/stock/settings")).json() == {
        "version": 0,
        "revision": 0,
        "settings": {"low_stock_threshold": 40, "fault": {"mode": "off", "delay_ms": 1500, "percent": 100}},
    }  # fmt: skip

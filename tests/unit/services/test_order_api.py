"""The order service over HTTP, on a real database."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_order.settings import OrderSettings
from support.services_events import as_request
from support.services_shop import Shop, open_shop

LINE = {"sku": "widget", "quantity": 2}
ORDER = {"customer": "c-1", "lines": [LINE]}


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path) as shop:
        yield shop


@pytest.fixture
def client(shop: Shop) -> httpx.AsyncClient:
    return shop.order_clients[0]


def require_problem(answer: httpx.Response, status: int, cause: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert cause in answer.json()["detail"]


async def test_an_order_is_accepted_with_its_place_and_can_be_read_there(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json=ORDER)
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted == {"id": accepted["id"], "status": "PENDING"}
    assert answer.headers["location"] == f"/orders/{accepted['id']}"
    order = (await client.get(answer.headers["location"])).json()
    assert order["id"] == accepted["id"]
    assert (order["customer"], order["lines"]) == ("c-1", [LINE])
    assert order["placed_at"].startswith("2023-11-14T22:13:20.")


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ({}, "customer"),
        ({"customer": "c-1"}, "lines"),
        ({**ORDER, "customer": ""}, "customer"),
        ({**ORDER, "customer": 7}, "customer"),
        ({**ORDER, "customer": "c" * 129}, "customer"),
        ({**ORDER, "lines": []}, "lines"),
        ({**ORDER, "lines": "widget"}, "lines"),
        ({**ORDER, "lines": [{"sku": f"s{n}", "quantity": 1} for n in range(101)]}, "lines"),
        ({**ORDER, "lines": [{"sku": "widget"}]}, "quantity"),
        ({**ORDER, "lines": [{**LINE, "quantity": 0}]}, "quantity"),
        ({**ORDER, "lines": [{**LINE, "quantity": 10_001}]}, "quantity"),
        ({**ORDER, "lines": [{**LINE, "quantity": "2"}]}, "quantity"),
        ({**ORDER, "lines": [{**LINE, "quantity": True}]}, "quantity"),
        ({**ORDER, "lines": [{**LINE, "quantity": 1.5}]}, "quantity"),
        ({**ORDER, "lines": [{**LINE, "quantity": 10**30}]}, "quantity"),
        ({**ORDER, "lines": [{**LINE, "sku": "no spaces"}]}, "sku"),
        ({**ORDER, "lines": [{**LINE, "price": 1}]}, "price"),
        ({**ORDER, "status": "CONFIRMED"}, "status"),
        ([ORDER], "body"),
    ],
)
async def test_an_order_that_is_not_understood_is_refused_naming_the_field(
    shop: Shop, client: httpx.AsyncClient, body: Any, cause: str
) -> None:
    require_problem(await client.post("/orders", json=body), 400, cause)
    assert await shop.all_orders() == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 50_000, b'{"customer":"\\ud800","lines":[]}', b"9" * 5_000]
)
async def test_a_body_that_is_no_json_is_refused(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post("/orders", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text


async def test_one_sku_on_two_lines_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json={**ORDER, "lines": [LINE, {**LINE, "quantity": 1}]})
    require_problem(answer, 422, "SKU widget is on more than one line")


async def test_live_settings_lower_what_an_order_may_have_at_once(shop: Shop, client: httpx.AsyncClient) -> None:
    shop.order_settings.current = OrderSettings(max_lines=1, max_quantity=5)
    shop.order_settings.version, shop.order_settings.revision = 3, 77
    two_lines = {**ORDER, "lines": [LINE, {"sku": "gadget", "quantity": 1}]}
    require_problem(await client.post("/orders", json=two_lines), 422, "max_lines")
    many = {**ORDER, "lines": [{**LINE, "quantity": 6}]}
    require_problem(await client.post("/orders", json=many), 422, "max_quantity")
    assert (await client.post("/orders", json=ORDER)).status_code == 202
    assert (await client.get("/orders/settings")).json() == {
        "version": 3,
        "revision": 77,
        "settings": {"max_lines": 1, "max_quantity": 5, "pending_timeout_s": 60.0},
    }


async def test_an_unknown_order_is_not_found_in_any_way(client: httpx.AsyncClient) -> None:
    require_problem(await client.get("/orders/nothing"), 404, "there is no order nothing")
    require_problem(await client.post("/orders/nothing/cancel"), 404, "there is no order nothing")
    require_problem(await client.get("/orders/" + "x" * 65), 400, "order_id")


async def test_a_rejected_order_cannot_be_cancelled(shop: Shop, client: httpx.AsyncClient) -> None:
    order_id = await shop.place(("rarity", 100))
    await shop.settle()
    require_problem(await client.post(f"/orders/{order_id}/cancel"), 409, "REJECTED")


async def test_orders_are_listed_newest_first_page_by_page(shop: Shop, client: httpx.AsyncClient) -> None:
    placed = []
    for _ in range(5):
        placed.append(await shop.place(("widget", 1)))
        shop.clock.advance(0.01)
    first = (await client.get("/orders", params={"limit": 3})).json()
    rest = (await client.get("/orders", params={"limit": 3, "after": first["next"]})).json()
    assert [order["id"] for order in first["orders"] + rest["orders"]] == placed[::-1]
    assert "next" not in rest
    for limit in ("0", "101", "x"):
        require_problem(await client.get("/orders", params={"limit": limit}), 400, "limit")


@pytest.mark.parametrize(
    ("changes", "status", "cause"),
    [
        ({"type": "quorate.inventory.unheard-of.v9"}, 422, "not consumed by orders"),
        ({"data": {}}, 422, "order_id"),
        ({"data": {"order_id": 5}}, 422, "order_id"),
        ({"data": {"order_id": "nobody-placed-this"}}, 422, "which there is not"),
        ({"id": None}, 400, "id is missing"),
    ],
)
async def test_an_event_that_can_never_be_taken_is_refused_for_good(
    client: httpx.AsyncClient, changes: dict[str, Any], status: int, cause: str
) -> None:
    headers, content = as_request("quorate.inventory.stock-reserved.v1", {"order_id": "o-1"}, **changes)
    require_problem(await client.post("/orders/events", headers=headers, content=content), status, cause)


async def test_a_newer_producer_may_say_more_in_its_events(shop: Shop, client: httpx.AsyncClient) -> None:
    shop.network.is_cut = True
    order_id = await shop.place(("widget", 1))
    data = {"order_id": order_id, "warehouse": "north"}
    headers, content = as_request("quorate.inventory.stock-reserved.v1", data)
    assert (await client.post("/orders/events", headers=headers, content=content)).status_code == 204
    assert (await shop.order(order_id))["status"] == "CONFIRMED"


async def test_an_answer_that_comes_late_does_not_confirm_a_cancelled_order(
    shop: Shop, client: httpx.AsyncClient
) -> None:
    shop.network.is_cut = True
    order_id = await shop.place(("widget", 1))
    await client.post(f"/orders/{order_id}/cancel")
    headers, content = as_request("quorate.inventory.stock-reserved.v1", {"order_id": order_id})
    assert (await client.post("/orders/events", headers=headers, content=content)).status_code == 204
    assert (await shop.order(order_id))["status"] == "CANCELLED"


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "via"])
async def test_an_event_that_came_through_a_gateway_is_refused(client: httpx.AsyncClient, header: str) -> None:
    headers, content = as_request("quorate.inventory.stock-reserved.v1", {"order_id": "o-1"})
    answer = await client.post("/orders/events", headers={**headers, header: "10.0.0.1"}, content=content)
    require_problem(answer, 403, "not through a gateway")


async def test_a_path_that_is_not_served_says_so(client: httpx.AsyncClient) -> None:
    require_problem(await client.get("/order"), 404, "GET /order is not served here")
    require_problem(await client.delete("/orders"), 405, "DELETE /orders is not served here")


async def test_health_and_metrics_are_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    assert b"quorate_messaging_delivery_attempts_total" in (await client.get("/metrics")).content


async def test_a_database_that_is_away_is_answered_with_503_and_not_ready(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "shop") as shop:
        order_id = await shop.place(("widget", 1))
        await shop.settle()
    hidden = tmp_path / "shop" / "hidden"
    file = tmp_path / "shop" / "order.db"
    async with open_shop(tmp_path / "shop") as shop:
        for relayed in (*shop.orders, *shop.inventories):
            await relayed.relay.stop()
        await shop.order_database.close()
        file.rename(hidden)
        answer = await shop.order_clients[0].post("/orders", json=ORDER)
        require_problem(answer, 503, "not available now")
        assert (answer.json()["retry"], answer.headers["retry-after"]) == ("safe", "1")
        await shop.order_database.probe()
        not_ready = await shop.order_clients[0].get("/readyz")
        assert (not_ready.status_code, str(file) in not_ready.text) == (503, True)
        hidden.rename(file)
        await shop.order_database.probe()
        assert (await shop.order_clients[0].get("/readyz")).status_code == 200
        assert (await shop.order(order_id))["status"] == "CONFIRMED"

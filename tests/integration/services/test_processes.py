"""The shop as processes: what is killed comes back, and no accepted order is lost."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.services_processes import Process, RunningShop, eventually, migrate, running_shop

pytestmark = pytest.mark.asyncio(loop_scope="module")

STOCK = 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningShop]:
    """One shop for all: starting seven processes takes its time, so each test leaves it whole."""
    async with running_shop(tmp_path_factory.mktemp("shop"), f"widget={STOCK}") as shop:
        yield shop


async def place(shop: RunningShop, url: str, quantity: int = 1) -> str:
    body = {"customer": "c-1", "lines": [{"sku": "widget", "quantity": quantity}]}
    answer = await shop.http.post(f"{url}/orders", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def ended(shop: RunningShop, url: str, order_id: str) -> str | None:
    order = (await shop.http.get(f"{url}/orders/{order_id}")).json()
    return None if order["status"] == "PENDING" else str(order["status"])


async def widget(shop: RunningShop) -> dict[str, Any]:
    (url, *_) = (await shop.instances("inventory")).values()
    return dict((await shop.http.get(f"{url}/stock/widget")).json())


async def test_an_order_is_confirmed_by_services_that_find_each_other(shop: RunningShop) -> None:
    urls = await shop.instances("order")
    assert set(urls) == {"order-1", "order-2"}
    before = await widget(shop)
    order_id = await place(shop, urls["order-1"], quantity=2)
    assert await eventually("the order ends", lambda: ended(shop, urls["order-2"], order_id)) == "CONFIRMED"
    after = await widget(shop)
    assert after == {"sku": "widget", "available": before["available"] - 2, "reserved": before["reserved"] + 2}
    await shop.processes["order-1"].until_logged("order_placed", order_id)


async def test_a_changed_live_setting_is_served_and_logged_by_every_instance(shop: RunningShop) -> None:
    urls = await shop.instances("order")
    document = f"{shop.node_url}/v1/config/default/order/settings.yaml"
    answer = await shop.http.put(document, params={"format": "yaml"}, content="max_quantity: 7\n")
    assert answer.status_code == 201, answer.text

    async def in_force(url: str) -> bool:
        settings = (await shop.http.get(f"{url}/orders/settings")).json()
        return bool(settings["version"] == 1 and settings["settings"]["max_quantity"] == 7)

    for name, url in urls.items():
        await eventually(f"{name} has the new setting", lambda url=url: in_force(url))
        await shop.processes[name].until_logged("settings_in_force", "max_quantity=7")


async def test_killed_instances_lose_no_accepted_order_and_stock_adds_up(shop: RunningShop) -> None:
    """kill -9 of one instance each under load, and both started again: every order that was accepted ends."""
    urls = await shop.instances("order")
    before = await widget(shop)
    accepted: list[str] = []
    stop = asyncio.Event()

    async def customer(number: int) -> None:
        turn = number
        while not stop.is_set():
            turn += 1
            try:
                accepted.append(await place(shop, urls[f"order-{turn % 2 + 1}"]))
            except httpx.TransportError:
                continue  # what was under way on a killed instance may fail; it was not accepted

    async def breaker() -> None:
        await eventually("orders come in", lambda: reached(30))
        await shop.kill("order-1")
        await shop.kill("inventory-1")
        await eventually("orders go on", lambda: reached(80))
        await asyncio.gather(shop.start("order-1"), shop.start("inventory-1"))
        urls.update(await shop.instances("order"))
        count = len(accepted)
        await eventually("orders go on", lambda: reached(count + 30))
        stop.set()

    async def reached(count: int) -> bool:
        return len(accepted) >= count

    async with asyncio.TaskGroup() as group:
        group.create_task(breaker())
        for number in range(3):
            group.create_task(customer(number))
    states = [
        await eventually("the order ends", lambda order_id=order_id: ended(shop, urls["order-2"], order_id))
        for order_id in accepted
    ]
    assert set(states) == {"CONFIRMED"}

    async def adds_up() -> bool:
        # What a killed instance took and did not answer for is an order too: it may be more than was accepted.
        stock = await widget(shop)
        taken = stock["reserved"] - before["reserved"]
        return bool(stock["available"] + stock["reserved"] == STOCK and taken >= len(accepted))

    assert await eventually("stock adds up", adds_up)


async def test_orders_go_on_while_the_control_plane_is_away(shop: RunningShop) -> None:
    urls = await shop.instances("order")
    first = await place(shop, urls["order-1"])
    await eventually("the order ends", lambda: ended(shop, urls["order-1"], first))
    await shop.kill("node-1")
    second = await place(shop, urls["order-2"])
    assert await eventually("the order ends", lambda: ended(shop, urls["order-2"], second)) == "CONFIRMED"
    await shop.start_node()


async def test_an_instance_that_is_asked_to_stop_leaves_the_registry_and_ends_well(shop: RunningShop) -> None:
    assert await shop.processes["order-1"].end(signal.SIGTERM) == 0, shop.processes["order-1"].log
    assert set(await shop.instances("order")) == {"order-2"}
    assert "Traceback" not in shop.processes["order-1"].log
    await shop.start("order-1")


@pytest.mark.parametrize("member", ["order", "inventory"])
async def test_a_service_without_a_migrated_database_says_what_to_run(tmp_path: Path, member: str) -> None:
    process = await Process.start(
        member, f"quorate_{member}", "--name", f"{member}-1", "--data-dir", str(tmp_path), "--endpoints",
        "http://127.0.0.1:1",
    )  # fmt: skip
    assert await process.ended() == 78
    assert process.log == (
        f"quorate_{member}: the database {tmp_path}/{member}.db has no schema yet; "
        f"run: python -m quorate_{member}.migrate --data-dir {tmp_path}\n"
    )


async def test_migrations_that_run_at_once_take_turns(tmp_path: Path) -> None:
    at_once = await asyncio.gather(*(migrate("inventory", tmp_path, "--stock", "widget=5") for _ in range(3)))
    assert [await each.ended() for each in at_once] == [0, 0, 0], [each.log for each in at_once]
    assert sum(each.log.count("stocked") for each in at_once) == 1


async def test_settings_that_cannot_be_are_named_without_a_trace(tmp_path: Path) -> None:
    process = await migrate("inventory", tmp_path, "--stock", "widget=many")
    assert await process.ended() == 78
    assert "--stock (or QUORATE_INVENTORY_STOCK): 'widget=many' is no stock" in process.log
    assert "Traceback" not in process.log

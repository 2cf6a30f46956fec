"""Order and inventory together: every order ends, and stock adds up, whatever the network does."""

import asyncio
import random
from pathlib import Path

import pytest
from support.services_shop import START_STOCK, Network, Shop, open_shop


async def require_consistent(shop: Shop) -> None:
    """Stock adds up, and what is reserved is exactly what confirmed orders asked for."""
    orders, reservations, stock = await shop.all_orders(), await shop.reservations(), await shop.stock()
    promised = dict.fromkeys(START_STOCK, 0)
    for order in orders.values():
        if order.status == "CONFIRMED":
            for line in order.lines:
                promised[line["sku"]] += line["quantity"]
    for sku, (available, reserved) in stock.items():
        assert available >= 0
        assert reserved == promised[sku]
        assert available + reserved == START_STOCK[sku]
    reserved_orders = {order_id for order_id, row in reservations.items() if row.status == "RESERVED"}
    assert reserved_orders == {order_id for order_id, row in orders.items() if row.status == "CONFIRMED"}
    assert all(order.reason for order in orders.values() if order.status in ("REJECTED", "CANCELLED"))


async def test_an_order_that_can_be_met_is_confirmed_and_its_stock_reserved(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        order_id = await shop.place(("widget", 2), ("gadget", 1))
        await shop.settle()
        order = await shop.order(order_id)
        assert (order["status"], "reason" in order) == ("CONFIRMED", False)
        assert await shop.stock() == {"widget": (58, 2), "gadget": (39, 1), "rarity": (3, 0)}


async def test_an_order_is_confirmed_at_once_and_not_at_the_next_poll(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        await shop.place(("gadget", 1))
        await shop.settle()  # from here on, relays wait for their next poll, or to be woken
        await shop.place(("widget", 2))
        async with asyncio.timeout(10):
            while not await shop.is_quiet():  # noqa: ASYNC110 - the database is asked, the clock stands still
                await asyncio.sleep(0)


async def test_an_order_for_more_than_there_is_is_rejected_with_a_reason_and_takes_nothing(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        order_id = await shop.place(("widget", 2), ("rarity", 4), ("unheard-of", 1))
        await shop.settle()
        order = await shop.order(order_id)
        assert order["status"] == "REJECTED"
        assert order["reason"] == (
            "not enough stock: rarity: 4 wanted, 3 available; unheard-of: 1 wanted, not kept here"
        )
        assert await shop.stock() == {sku: (available, 0) for sku, available in START_STOCK.items()}


async def test_the_last_pieces_go_to_one_order_only(tmp_path: Path) -> None:
    async with open_shop(tmp_path, instances=2) as shop:
        await asyncio.gather(*(shop.place(("rarity", 2), instance=n % 2) for n in range(10)))
        await shop.settle()
        states = [order.status for order in (await shop.all_orders()).values()]
        assert sorted(states) == ["CONFIRMED"] + ["REJECTED"] * 9
        await require_consistent(shop)


async def test_cancelling_a_confirmed_order_releases_its_stock(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        order_id = await shop.place(("widget", 5))
        await shop.settle()
        for _ in range(2):  # cancelling again is no error
            answer = await shop.order_clients[0].post(f"/orders/{order_id}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")
        await shop.settle()
        assert (await shop.stock())["widget"] == (60, 0)


async def test_an_order_without_an_answer_is_cancelled_after_its_time_and_holds_nothing_in_the_end(
    tmp_path: Path,
) -> None:
    async with open_shop(tmp_path) as shop:
        shop.network.is_cut = True
        order_id = await shop.place(("widget", 5))
        shop.clock.advance(59.0)
        await shop.tick()
        assert (await shop.order(order_id))["status"] == "PENDING"
        shop.clock.advance(1.0)
        await shop.tick()
        order = await shop.order(order_id)
        assert (order["status"], order["reason"]) == ("CANCELLED", "no answer about its stock within 60 s")
        shop.network.is_cut = False
        await shop.settle()
        assert (await shop.order(order_id))["status"] == "CANCELLED"
        assert (await shop.reservations())[order_id].status == "RELEASED"
        await require_consistent(shop)


async def test_a_shorter_waiting_time_holds_at_once_for_orders_that_wait_already(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        shop.network.is_cut = True
        order_id = await shop.place(("widget", 5))
        shop.clock.advance(10.0)
        shop.order_settings.current = shop.order_settings.current.model_copy(update={"pending_timeout_s": 5.0})
        await shop.tick()
        assert (await shop.order(order_id))["status"] == "CANCELLED"


@pytest.mark.parametrize("seed", range(3))
async def test_under_faults_every_order_ends_and_stock_adds_up(tmp_path: Path, seed: int) -> None:
    """Half of all events meet a fault; two instances each; customers cancel as they like."""
    lot = random.Random(seed)
    async with open_shop(tmp_path, instances=2, network=Network(random.Random(seed), fault_share=0.5)) as shop:

        async def customer(number: int) -> None:
            skus = lot.sample(sorted(START_STOCK), lot.randint(1, 3))
            order_id = await shop.place(*((sku, lot.randint(1, 6)) for sku in skus), instance=number % 2)
            for _ in range(lot.randrange(20)):
                await asyncio.sleep(0)
            if lot.random() < 0.4:
                answer = await shop.order_clients[lot.randrange(2)].post(f"/orders/{order_id}/cancel")
                assert answer.status_code in (200, 409), answer.text

        await asyncio.gather(*(customer(number) for number in range(25)))
        await shop.settle()
        orders = await shop.all_orders()
        assert len(orders) == 25
        assert {order.status for order in orders.values()} <= {"CONFIRMED", "REJECTED", "CANCELLED"}
        await require_consistent(shop)

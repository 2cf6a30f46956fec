"""The two services share no code: what one writes, the other must read, and each must know the other's names."""

import quorate_inventory.bootstrap
import quorate_inventory.events as inventory
import quorate_order.bootstrap
import quorate_order.events as order
from quorate_order import model
from quorate_order.model import OrderLine
from quorate_order.settings import LINES_MAX, QUANTITY_MAX


def test_inventory_reads_what_order_writes() -> None:
    lines = tuple(OrderLine("s" * 60 + f"{n:04}", QUANTITY_MAX) for n in range(LINES_MAX))
    placed = model.place("o" * 36, "c-1", lines, 100.0)
    assert placed.tells is not None
    read = inventory.OrderPlaced.model_validate_json(placed.tells.model_dump_json())
    assert [(line.sku, line.quantity) for line in read.lines] == [(line.sku, line.quantity) for line in lines]
    cancelled = model.cancel(placed.order, "why", 101.0)
    assert cancelled.tells is not None
    assert inventory.OrderCancelled.model_validate_json(cancelled.tells.model_dump_json()).order_id == "o" * 36


def test_order_reads_what_inventory_writes() -> None:
    reserved = inventory.StockReserved(order_id="o-1").model_dump_json()
    assert order.StockReserved.model_validate_json(reserved).order_id == "o-1"
    rejected = inventory.StockRejected(order_id="o-1", reason="none left").model_dump_json()
    assert order.StockRejected.model_validate_json(rejected).reason == "none left"


def test_both_call_the_events_by_the_same_names_and_send_each_to_the_other() -> None:
    for name in ("OrderPlaced", "OrderCancelled", "StockReserved", "StockRejected"):
        assert getattr(order, name).TYPE == getattr(inventory, name).TYPE
    assert set(quorate_order.bootstrap.CONSUMERS) == {order.OrderPlaced.TYPE, order.OrderCancelled.TYPE}
    assert set(quorate_inventory.bootstrap.CONSUMERS) == {inventory.StockReserved.TYPE, inventory.StockRejected.TYPE}

"""The life of an order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.errors import Conflict
from quorate_order import model
from quorate_order.events import OrderCancelled, OrderPlaced
from quorate_order.model import Change, Order, OrderLine, OrderStatus

LINES = (OrderLine("widget", 2), OrderLine("gadget", 1))


def placed() -> Order:
    return model.place("o-1", "c-1", LINES, 100.0).order


def in_status(status: OrderStatus) -> Order:
    match status:
        case OrderStatus.PENDING:
            return placed()
        case OrderStatus.CONFIRMED:
            return model.confirm(placed(), 101.0).order
        case OrderStatus.REJECTED:
            return model.reject(placed(), "none left", 101.0).order
        case OrderStatus.CANCELLED:
            return model.cancel(placed(), "changed my mind", 101.0).order


def test_a_placed_order_waits_and_tells_what_it_wants() -> None:
    change = model.place("o-1", "c-1", LINES, 100.0)
    assert (change.order.status, change.order.sequence) == (OrderStatus.PENDING, 1)
    assert isinstance(change.tells, OrderPlaced)
    assert change.tells.model_dump() == {
        "order_id": "o-1",
        "lines": ({"sku": "widget", "quantity": 2}, {"sku": "gadget", "quantity": 1}),
    }


def test_an_answer_ends_the_wait_and_tells_nothing() -> None:
    confirmed = model.confirm(placed(), 101.0)
    assert (confirmed.order.status, confirmed.order.reason, confirmed.tells) == (OrderStatus.CONFIRMED, None, None)
    rejected = model.reject(placed(), "none left", 101.0)
    assert (rejected.order.status, rejected.order.reason, rejected.tells) == (OrderStatus.REJECTED, "none left", None)


@pytest.mark.parametrize("status", [OrderStatus.CONFIRMED, OrderStatus.REJECTED, OrderStatus.CANCELLED])
def test_an_answer_that_finds_the_order_ended_changes_nothing(status: OrderStatus) -> None:
    order = in_status(status)
    assert model.confirm(order, 102.0) == Change(order)
    assert model.reject(order, "late", 102.0) == Change(order)
    assert model.cancel_overdue(order, 1.0, 10_000.0) == Change(order)


@pytest.mark.parametrize("status", [OrderStatus.PENDING, OrderStatus.CONFIRMED])
def test_a_cancelled_order_tells_so_after_all_it_told_before(status: OrderStatus) -> None:
    order = in_status(status)
    change = model.cancel(order, "changed my mind", 102.0)
    assert (change.order.status, change.order.reason) == (OrderStatus.CANCELLED, "changed my mind")
    assert change.order.sequence == order.sequence + 1
    assert change.tells == OrderCancelled(order_id="o-1", reason="changed my mind")


def test_cancelling_again_changes_nothing() -> None:
    order = in_status(OrderStatus.CANCELLED)
    assert model.cancel(order, "again", 102.0) == Change(order)


def test_a_rejected_order_cannot_be_cancelled() -> None:
    with pytest.raises(Conflict, match="o-1 is REJECTED"):
        model.cancel(in_status(OrderStatus.REJECTED), "again", 102.0)


def test_an_order_is_overdue_from_the_moment_its_time_is_over() -> None:
    assert model.cancel_overdue(placed(), 60.0, 159.9).order.status is OrderStatus.PENDING
    change = model.cancel_overdue(placed(), 60.0, 160.0)
    assert change.order.reason == "no answer about its stock within 60 s"
    assert isinstance(change.tells, OrderCancelled)


def test_a_long_reason_is_cut_to_what_is_kept() -> None:
    assert model.reject(placed(), "x" * 10_000, 101.0).order.reason == "x" * model.REASON_CHARS_MAX


@given(st.lists(st.sampled_from(["confirm", "reject", "cancel", "overdue"]), max_size=8))
def test_whatever_comes_an_ended_order_only_ever_becomes_cancelled_and_tells_at_most_twice(steps: list[str]) -> None:
    order, told = placed(), 1
    for step in steps:
        before = order
        try:
            change = {
                "confirm": lambda o: model.confirm(o, 200.0),
                "reject": lambda o: model.reject(o, "none", 200.0),
                "cancel": lambda o: model.cancel(o, "why", 200.0),
                "overdue": lambda o: model.cancel_overdue(o, 10.0, 200.0),
            }[step](order)
        except Conflict:
            continue
        order, told = change.order, told + (change.tells is not None)
        if before.status in (OrderStatus.REJECTED, OrderStatus.CANCELLED):
            assert order is before
        if before.status is OrderStatus.CONFIRMED:
            assert order.status in (OrderStatus.CONFIRMED, OrderStatus.CANCELLED)
        assert order.version == before.version + (order is not before)
    assert order.sequence == told <= 2

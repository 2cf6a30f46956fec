"""What inventory decides, and how its start stock is read."""

import pytest
from quorate_inventory import model
from quorate_inventory.events import Line, StockRejected, StockReserved
from quorate_inventory.model import Change, Reservation, ReservationStatus, Shortage
from quorate_inventory.stocking import is_sku, parse_stock

LINES = (Line(sku="widget", quantity=2), Line(sku="gadget", quantity=1))


def test_without_a_shortage_the_order_is_told_that_its_stock_is_reserved() -> None:
    change = model.answer("o-1", LINES, [], 100.0)
    assert change.reservation == Reservation("o-1", LINES, ReservationStatus.RESERVED, None, 100.0)
    assert change.tells == StockReserved(order_id="o-1")


def test_a_shortage_rejects_the_whole_order_and_names_each_sku() -> None:
    shortages = [Shortage("widget", 2, 1), Shortage("gizmo", 1, None)]
    change = model.answer("o-1", LINES, shortages, 100.0)
    reason = "not enough stock: widget: 2 wanted, 1 available; gizmo: 1 wanted, not kept here"
    assert change.reservation.status is ReservationStatus.REJECTED
    assert change.tells == StockRejected(order_id="o-1", reason=reason)


def test_a_long_reason_is_cut_to_what_is_kept() -> None:
    shortages = [Shortage(f"sku-{n}", 2, 1) for n in range(1_000)]
    reason = model.answer("o-1", LINES, shortages, 100.0).reservation.reason
    assert reason is not None
    assert len(reason) == model.REASON_CHARS_MAX


def test_a_cancelled_order_gives_back_what_was_reserved_for_it_once() -> None:
    held = model.answer("o-1", LINES, [], 100.0).reservation
    released = model.release("o-1", held, 101.0)
    assert (released.reservation.status, released.gives_back) == (ReservationStatus.RELEASED, LINES)
    assert model.release("o-1", released.reservation, 102.0) == Change(released.reservation)


def test_a_cancelled_order_that_was_rejected_gives_nothing_back() -> None:
    held = model.answer("o-1", LINES, [Shortage("widget", 2, 1)], 100.0).reservation
    assert model.release("o-1", held, 101.0) == Change(held)


def test_a_cancellation_before_its_order_leaves_a_tombstone() -> None:
    change = model.release("o-1", None, 101.0)
    assert change == Change(Reservation("o-1", (), ReservationStatus.RELEASED, None, 101.0))


def test_start_stock_is_read_by_sku() -> None:
    assert parse_stock(" widget=1000, gadget=500 ,") == {"widget": 1000, "gadget": 500}
    assert parse_stock("") == {}


@pytest.mark.parametrize(
    "text", ["widget", "widget=", "=5", "widget=-1", "widget=1.5", "widget=1=2", "a b=1", "settings=1", "w=1,w=2",
             "widget=" + "9" * 13]
)  # fmt: skip
def test_start_stock_that_cannot_be_read_is_refused_naming_the_entry(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no stock|named twice"):
        parse_stock(text)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64])
def test_a_sku_is_a_name_that_fits_into_a_path(name: str) -> None:
    assert is_sku(name)


@pytest.mark.parametrize("name", ["", "-a", "a\n", "a b", "a/b", "x" * 65, "events", "settings"])
def test_what_does_not_fit_or_means_something_else_is_no_sku(name: str) -> None:
    assert not is_sku(name)

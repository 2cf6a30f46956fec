"""Stock, and what is reserved of it for an order. Pure: time is an argument.

A reservation, by order:

    (none)    --placed, enough of everything-->    RESERVED, tells StockReserved
    (none)    --placed, not enough-->              REJECTED, tells StockRejected
    (none)    --cancelled-->                       RELEASED: a tombstone, so that an order placed late takes nothing
    RESERVED  --cancelled-->                       RELEASED, and its stock is available again

Everything else changes nothing and tells nothing: an order that is placed again was answered, one that is placed after
its cancellation needs no answer. So events may come twice and in any order.

For every SKU, available and reserved are never negative, and their sum changes only when stock is received.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from quorate_inventory.events import Line, StockRejected, StockReserved

REASON_CHARS_MAX = 500


class ReservationStatus(StrEnum):
    RESERVED = "RESERVED"
    REJECTED = "REJECTED"
    RELEASED = "RELEASED"


@dataclass(frozen=True, slots=True)
class Stock:
    sku: str
    available: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """`available` is None for a SKU that was never kept."""

    sku: str
    wanted: int
    available: int | None

    def __str__(self) -> str:
        if self.available is None:
            return f"{self.sku}: {self.wanted} wanted, not kept here"
        return f"{self.sku}: {self.wanted} wanted, {self.available} available"


@dataclass(frozen=True, slots=True)
class Reservation:
    order_id: str
    lines: tuple[Line, ...]
    """What was asked for; nothing in a tombstone."""
    status: ReservationStatus
    reason: str | None
    """Why it was rejected."""
    changed_at_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """What a decision leads to, all in one transaction: `gives_back` becomes available again."""

    reservation: Reservation
    tells: StockReserved | StockRejected | None = None
    gives_back: tuple[Line, ...] = ()


def answer(order_id: str, lines: tuple[Line, ...], shortages: Sequence[Shortage], now_s: float) -> Change:
    """The answer to an order that had none yet: RESERVED when there is no shortage, and its lines have been taken."""
    if not shortages:
        reservation = Reservation(order_id, lines, ReservationStatus.RESERVED, None, now_s)
        return Change(reservation, StockReserved(order_id=order_id))
    reason = ("not enough stock: " + "; ".join(str(shortage) for shortage in shortages))[:REASON_CHARS_MAX]
    reservation = Reservation(order_id, lines, ReservationStatus.REJECTED, reason, now_s)
    return Change(reservation, StockRejected(order_id=order_id, reason=reason))


def release(order_id: str, reservation: Reservation | None, now_s: float) -> Change:
    """The order was cancelled."""
    if reservation is None:
        return Change(Reservation(order_id, (), ReservationStatus.RELEASED, None, now_s))
    if reservation.status is not ReservationStatus.RESERVED:
        return Change(reservation)
    released = replace(reservation, status=ReservationStatus.RELEASED, changed_at_s=now_s)
    return Change(released, gives_back=reservation.lines)

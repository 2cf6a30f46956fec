"""An order and its life. Pure: time is an argument, and what is to be told others is part of the answer.

    PENDING    --stock reserved-->            CONFIRMED
    PENDING    --stock rejected-->            REJECTED
    PENDING    --cancelled, or too late-->    CANCELLED, tells OrderCancelled
    CONFIRMED  --cancelled-->                 CANCELLED, tells OrderCancelled

REJECTED and CANCELLED are final. Answers about stock may come late, twice, or in another order than they were sent: an
answer that finds the order ended changes nothing. A reservation made for an order that was cancelled meanwhile needs
no word from here: its OrderCancelled is on the way already, with a higher sequence number than its OrderPlaced.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from quorate_core.errors import Conflict

from quorate_order.events import Line, OrderCancelled, OrderPlaced

REASON_CHARS_MAX = 500


class OrderStatus(StrEnum):
    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class OrderLine:
    sku: str
    quantity: int
    """At least 1."""


@dataclass(frozen=True, slots=True)
class Order:
    id: str
    customer: str
    lines: tuple[OrderLine, ...]
    """At least one, each of another SKU."""
    status: OrderStatus
    reason: str | None
    """Why it was rejected or cancelled."""
    version: int
    """Counts the changes of this order from 1."""
    sequence: int
    """How many events were told of this order; the last one's sequence number."""
    placed_at_s: float
    changed_at_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """What a decision leads to: the order as it is now, and what is to be told in the same transaction."""

    order: Order
    tells: OrderPlaced | OrderCancelled | None = None


def place(order_id: str, customer: str, lines: tuple[OrderLine, ...], now_s: float) -> Change:
    order = Order(
        id=order_id,
        customer=customer,
        lines=lines,
        status=OrderStatus.PENDING,
        reason=None,
        version=1,
        sequence=1,
        placed_at_s=now_s,
        changed_at_s=now_s,
    )
    told = tuple(Line(sku=line.sku, quantity=line.quantity) for line in lines)
    return Change(order, OrderPlaced(order_id=order_id, lines=told))


def confirm(order: Order, now_s: float) -> Change:
    """Its stock is reserved."""
    if order.status is not OrderStatus.PENDING:
        return Change(order)
    return Change(_changed(order, OrderStatus.CONFIRMED, None, now_s))


def reject(order: Order, reason: str, now_s: float) -> Change:
    """There is not enough stock."""
    if order.status is not OrderStatus.PENDING:
        return Change(order)
    return Change(_changed(order, OrderStatus.REJECTED, reason, now_s))


def cancel(order: Order, reason: str, now_s: float) -> Change:
    """Raises Conflict for a rejected order; cancelling again changes nothing."""
    if order.status is OrderStatus.CANCELLED:
        return Change(order)
    if order.status is OrderStatus.REJECTED:
        raise Conflict(f"order {order.id} is REJECTED and cannot be cancelled: nothing is reserved for it")
    cancelled = replace(_changed(order, OrderStatus.CANCELLED, reason, now_s), sequence=order.sequence + 1)
    return Change(cancelled, OrderCancelled(order_id=order.id, reason=reason[:REASON_CHARS_MAX]))


def cancel_overdue(order: Order, pending_timeout_s: float, now_s: float) -> Change:
    """Cancel `order` if it has waited for an answer for longer than `pending_timeout_s` seconds."""
    if order.status is not OrderStatus.PENDING or now_s - order.placed_at_s < pending_timeout_s:
        return Change(order)
    return cancel(order, f"no answer about its stock within {pending_timeout_s:g} s", now_s)


def _changed(order: Order, status: OrderStatus, reason: str | None, now_s: float) -> Order:
    cut = None if reason is None else reason[:REASON_CHARS_MAX]
    return replace(order, status=status, reason=cut, version=order.version + 1, changed_at_s=now_s)

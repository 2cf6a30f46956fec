"""The use cases of orders, on ports: each is one transaction around one decision of the model."""

from collections.abc import Callable
from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from quorate_core.clock import Clock
from quorate_core.errors import InvalidContent, NotFound
from quorate_messaging import Event

from quorate_order import model
from quorate_order.events import StockRejected, StockReserved
from quorate_order.model import Change, Order, OrderLine, OrderStatus
from quorate_order.ports import Orders
from quorate_order.settings import LiveOrderSettings, OrderSettings

log = structlog.get_logger(__name__)

OVERDUE_ORDERS_MAX = 100
"""Overdue orders that one sweep cancels; the next sweep takes the rest."""
CANCELLED_BY_REQUEST = "cancelled on request"

ModelT = TypeVar("ModelT", bound=BaseModel)


class OrderHandlers:
    """`new_id` makes an order's id from the time in seconds since the epoch; later ids sort after earlier ones."""

    def __init__(
        self, orders: Orders, settings: LiveOrderSettings, clock: Clock, new_id: Callable[[float], str]
    ) -> None:
        self._orders = orders
        self._settings = settings
        self._clock = clock
        self._new_id = new_id

    async def place(self, customer: str, lines: tuple[OrderLine, ...]) -> Order:
        """Raises InvalidContent for lines that are not allowed, Unavailable."""
        _require_allowed(lines, self._settings.current)
        now_s = self._clock.wall_s()
        change = model.place(self._new_id(now_s), customer, lines, now_s)
        async with self._orders.unit() as unit:
            await unit.add(change)
        _log_change(change.order)
        return change.order

    async def cancel(self, order_id: str) -> Order:
        """Raises NotFound, Conflict for a rejected order, Unavailable."""
        return await self._decide(
            order_id, lambda order: model.cancel(order, CANCELLED_BY_REQUEST, self._clock.wall_s())
        )

    async def find(self, order_id: str) -> Order:
        """Raises NotFound, Unavailable."""
        order = await self._orders.find(order_id)
        if order is None:
            raise _not_found(order_id)
        return order

    async def on_event(self, event: Event) -> None:
        """Take an event of another service, once however often it comes.

        Raises InvalidContent for one that can never be taken, Unavailable for one that may come again.
        """
        match event.type:
            case StockReserved.TYPE:
                reserved = _parse(StockReserved, event)
                await self._take(event, reserved.order_id, lambda order: model.confirm(order, self._clock.wall_s()))
            case StockRejected.TYPE:
                rejected = _parse(StockRejected, event)
                await self._take(
                    event,
                    rejected.order_id,
                    lambda order: model.reject(order, rejected.reason, self._clock.wall_s()),
                )
            case _:
                raise InvalidContent(f"events of type {event.type} are not consumed by orders")

    async def cancel_overdue(self) -> int:
        """Cancel orders that wait for an answer for too long; returns how many. Raises Unavailable."""
        timeout_s = self._settings.current.pending_timeout_s
        overdue = await self._orders.pending_since(self._clock.wall_s() - timeout_s, OVERDUE_ORDERS_MAX)
        cancelled = 0
        for order_id in overdue:
            order = await self._decide(
                order_id, lambda order: model.cancel_overdue(order, timeout_s, self._clock.wall_s())
            )
            cancelled += order.status is OrderStatus.CANCELLED
        return cancelled

    async def _decide(self, order_id: str, decide: Callable[[Order], Change]) -> Order:
        async with self._orders.unit() as unit:
            order = await unit.get(order_id)
            if order is None:
                raise _not_found(order_id)
            change = decide(order)
            if change.order is not order:
                await unit.save(order, change)
        if change.order is not order:
            _log_change(change.order)
        return change.order

    async def _take(self, event: Event, order_id: str, decide: Callable[[Order], Change]) -> None:
        async with self._orders.unit() as unit:
            if not await unit.admit(event):
                return
            order = await unit.get(order_id)
            if order is None:
                raise InvalidContent(f"event {event.id} is about order {order_id}, which there is not")
            change = decide(order)
            if change.order is not order:
                await unit.save(order, change)
        if change.order is not order:
            _log_change(change.order)
        else:
            log.info("late_answer_ignored", order_id=order_id, status=order.status.value, type=event.type)


def _require_allowed(lines: tuple[OrderLine, ...], settings: OrderSettings) -> None:
    if len(lines) > settings.max_lines:
        raise InvalidContent(f"an order may have {settings.max_lines} lines (max_lines), not {len(lines)}")
    seen: set[str] = set()
    for line in lines:
        if line.sku in seen:
            raise InvalidContent(f"SKU {line.sku} is on more than one line; put its whole quantity on one")
        seen.add(line.sku)
        if line.quantity > settings.max_quantity:
            raise InvalidContent(
                f"{line.quantity} pieces of {line.sku} are more than an order may have: "
                f"{settings.max_quantity} (max_quantity)"
            )


def _parse(shape: type[ModelT], event: Event) -> ModelT:
    try:
        return shape.model_validate(event.data)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InvalidContent(f"event {event.id} of type {event.type} cannot be read: {where}") from error


def _not_found(order_id: str) -> NotFound:
    return NotFound(f"there is no order {order_id}")


def _log_change(order: Order) -> None:
    words = {
        OrderStatus.PENDING: "order_placed",
        OrderStatus.CONFIRMED: "order_confirmed",
        OrderStatus.REJECTED: "order_rejected",
        OrderStatus.CANCELLED: "order_cancelled",
    }
    reason = {} if order.reason is None else {"reason": order.reason}
    log.info(words[order.status], order_id=order.id, **reason)

"""The use cases of stock, on ports: each is one transaction around one decision of the model."""

from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from quorate_core.clock import Clock
from quorate_core.errors import InvalidContent, NotFound
from quorate_messaging import Event

from quorate_inventory import model
from quorate_inventory.events import OrderCancelled, OrderPlaced
from quorate_inventory.model import Reservation, ReservationStatus, Stock
from quorate_inventory.ports import Inventory, Taken
from quorate_inventory.settings import LiveInventorySettings

log = structlog.get_logger(__name__)

AVAILABLE_MAX = 1_000_000_000_000
"""Pieces of one SKU that may be available."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class InventoryHandlers:
    def __init__(self, inventory: Inventory, settings: LiveInventorySettings, clock: Clock) -> None:
        self._inventory = inventory
        self._settings = settings
        self._clock = clock

    async def on_event(self, event: Event) -> None:
        """Take an event of another service, once however often it comes.

        Raises InvalidContent for one that can never be taken, Unavailable for one that may come again.
        """
        match event.type:
            case OrderPlaced.TYPE:
                await self._reserve(event, _parse(OrderPlaced, event))
            case OrderCancelled.TYPE:
                await self._release(event, _parse(OrderCancelled, event))
            case _:
                raise InvalidContent(f"events of type {event.type} are not consumed by inventory")

    async def _reserve(self, event: Event, placed: OrderPlaced) -> None:
        async with self._inventory.unit() as unit:
            if not await unit.admit(event):
                return
            held = await unit.reservation(placed.order_id)
            if held is not None:
                log.info("order_has_its_answer", order_id=placed.order_id, status=held.status.value)
                return
            taken = await unit.take(placed.lines)
            change = model.answer(placed.order_id, placed.lines, taken.shortages, self._clock.wall_s())
            await unit.keep(None, change)
        _log_change(change.reservation)
        self._log_low(taken)

    async def _release(self, event: Event, cancelled: OrderCancelled) -> None:
        async with self._inventory.unit() as unit:
            if not await unit.admit(event):
                return
            held = await unit.reservation(cancelled.order_id)
            change = model.release(cancelled.order_id, held, self._clock.wall_s())
            if change.reservation is held:
                return
            await unit.keep(held, change)
        _log_change(change.reservation)

    async def find(self, sku: str) -> Stock:
        """Raises NotFound, Unavailable."""
        stock = await self._inventory.find(sku)
        if stock is None:
            raise _not_found(sku)
        return stock

    async def set_available(self, sku: str, available: int) -> tuple[Stock, bool]:
        """Count `available` pieces of `sku` from now on, whatever is reserved; also says whether the SKU is new.
        Raises Unavailable."""
        async with self._inventory.unit() as unit:
            stock, is_new = await unit.set_available(sku, available)
        log.info("stock_set", sku=sku, available=stock.available, reserved=stock.reserved)
        return stock, is_new

    async def receive(self, sku: str, quantity: int) -> Stock:
        """Add `quantity` pieces. Raises NotFound, Conflict over AVAILABLE_MAX, Unavailable."""
        async with self._inventory.unit() as unit:
            stock = await unit.receive(sku, quantity, AVAILABLE_MAX)
            if stock is None:
                raise _not_found(sku)
        log.info("stock_received", sku=sku, quantity=quantity, available=stock.available)
        return stock

    def _log_low(self, taken: Taken) -> None:
        threshold = self._settings.current.low_stock_threshold
        for stock in taken.left:
            if stock.available <= threshold:
                log.warning("stock_low", sku=stock.sku, available=stock.available, threshold=threshold)


def _parse(shape: type[ModelT], event: Event) -> ModelT:
    try:
        return shape.model_validate(event.data)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InvalidContent(f"event {event.id} of type {event.type} cannot be read: {where}") from error


def _not_found(sku: str) -> NotFound:
    return NotFound(f"there is no SKU {sku}")


def _log_change(reservation: Reservation) -> None:
    words = {
        ReservationStatus.RESERVED: "stock_reserved",
        ReservationStatus.REJECTED: "stock_rejected",
        ReservationStatus.RELEASED: "stock_released",
    }
    reason = {} if reservation.reason is None else {"reason": reservation.reason}
    log.info(words[reservation.status], order_id=reservation.order_id, **reason)

"""What the use cases need of the world."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from quorate_messaging import Event

from quorate_inventory.events import Line
from quorate_inventory.model import Change, Reservation, Shortage, Stock


@dataclass(frozen=True, slots=True)
class Taken:
    """Either `shortages`, and nothing was taken; or the stock that is left of each SKU after all lines were."""

    shortages: tuple[Shortage, ...] = ()
    left: tuple[Stock, ...] = ()


class InventoryUnit(Protocol):
    """One transaction: all of it is kept, or nothing."""

    async def admit(self, event: Event) -> bool:
        """Whether `event` comes for the first time; later it does not."""
        ...

    async def reservation(self, order_id: str) -> Reservation | None: ...

    async def take(self, lines: Sequence[Line]) -> Taken:
        """Move the quantities of all `lines` from available to reserved, or none of them."""
        ...

    async def keep(self, before: Reservation | None, change: Change) -> None:
        """Keep `change` in the place of `before`, give back what it gives back, and what is to be told of it. Raises
        Unavailable when the reservation is no longer as in `before`."""
        ...

    async def set_available(self, sku: str, available: int) -> tuple[Stock, bool]:
        """The stock as it is then, and whether the SKU is new."""
        ...

    async def receive(self, sku: str, quantity: int, available_max: int) -> Stock | None:
        """The stock as it is then; None for a SKU that was never kept. Raises Conflict over `available_max`."""
        ...


class Inventory(Protocol):
    def unit(self) -> AbstractAsyncContextManager[InventoryUnit]:
        """A transaction that is committed when its block ends. Raises Unavailable."""
        ...

    async def find(self, sku: str) -> Stock | None: ...

    async def page(self, limit: int, after: str | None, available_max: int | None) -> Sequence[Stock]:
        """Up to `limit` SKUs by name, after the SKU `after`; only those with at most `available_max` available."""
        ...

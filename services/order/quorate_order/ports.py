"""What the use cases need of the world."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from quorate_messaging import Event

from quorate_order.model import Change, Order


class OrderUnit(Protocol):
    """One transaction: all of it is kept, or nothing."""

    async def get(self, order_id: str) -> Order | None: ...

    async def add(self, change: Change) -> None:
        """Keep a new order, and what is to be told of it."""
        ...

    async def save(self, before: Order, change: Change) -> None:
        """Keep `change` in the place of `before`, and what is to be told of it. Raises Unavailable when the order is
        no longer as in `before`."""
        ...

    async def admit(self, event: Event) -> bool:
        """Whether `event` comes for the first time; later it does not."""
        ...


class Orders(Protocol):
    def unit(self) -> AbstractAsyncContextManager[OrderUnit]:
        """A transaction that is committed when its block ends. Raises Unavailable."""
        ...

    async def find(self, order_id: str) -> Order | None: ...

    async def page(self, limit: int, after: str | None) -> Sequence[Order]:
        """Up to `limit` orders, newest first, older than the order `after`."""
        ...

    async def pending_since(self, placed_before_s: float, limit: int) -> Sequence[str]:
        """Ids of up to `limit` PENDING orders placed before that moment, oldest first."""
        ...

"""The port `Orders` on a database: the order, its outbox row and its inbox row in one transaction."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from quorate_core.clock import Clock
from quorate_core.errors import Unavailable
from quorate_messaging import Database, Event, Inbox, Outbox
from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from quorate_order.adapters.tables import ORDERS
from quorate_order.events import SOURCE
from quorate_order.model import Change, Order, OrderLine, OrderStatus


class SqlOrders:
    """`told` is called after a commit that put events into `outbox`; `new_id` makes an event's id from the time."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        inbox: Inbox,
        clock: Clock,
        new_id: Callable[[float], str],
        told: Callable[[], None],
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._inbox = inbox
        self._clock = clock
        self._new_id = new_id
        self._told = told

    @asynccontextmanager
    async def unit(self) -> AsyncIterator["SqlOrderUnit"]:
        async with self._database.writing() as connection:
            unit = SqlOrderUnit(connection, self._outbox, self._inbox, self._clock, self._new_id)
            yield unit
        if unit.has_told:
            self._told()

    async def find(self, order_id: str) -> Order | None:
        async with self._database.reading() as connection:
            return await _get(connection, order_id)

    async def page(self, limit: int, after: str | None) -> Sequence[Order]:
        # NB: ids sort by time, so that they are the order of the pages too.
        query = select(ORDERS).order_by(ORDERS.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(ORDERS.c.id < after)
        async with self._database.reading() as connection:
            return [_order_of(row) for row in await connection.execute(query)]

    async def pending_since(self, placed_before_s: float, limit: int) -> Sequence[str]:
        query = (
            select(ORDERS.c.id)
            .where(ORDERS.c.status == OrderStatus.PENDING.value, ORDERS.c.placed_at_s <= placed_before_s)
            .order_by(ORDERS.c.placed_at_s)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).scalars())


class SqlOrderUnit:
    def __init__(
        self, connection: AsyncConnection, outbox: Outbox, inbox: Inbox, clock: Clock, new_id: Callable[[float], str]
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._inbox = inbox
        self._clock = clock
        self._new_id = new_id
        self.has_told = False

    async def get(self, order_id: str) -> Order | None:
        return await _get(self._connection, order_id)

    async def add(self, change: Change) -> None:
        await self._connection.execute(insert(ORDERS).values(_values_of(change.order)))
        await self._tell(change)

    async def save(self, before: Order, change: Change) -> None:
        result = await self._connection.execute(
            update(ORDERS)
            .where(ORDERS.c.id == before.id, ORDERS.c.version == before.version)
            .values(_values_of(change.order))
        )
        if result.rowcount != 1:
            raise Unavailable(f"order {before.id} was changed by another instance at the same moment; try again")
        await self._tell(change)

    async def admit(self, event: Event) -> bool:
        return await self._inbox.admit(self._connection, event, self._clock.wall_s())

    async def _tell(self, change: Change) -> None:
        if change.tells is None:
            return
        now_s = change.order.changed_at_s
        event = Event(
            id=self._new_id(now_s),
            source=SOURCE,
            type=change.tells.TYPE,
            aggregate_id=change.order.id,
            sequence=change.order.sequence,
            occurred_at_s=now_s,
            data=change.tells.model_dump(mode="json"),
        )
        await self._outbox.add(self._connection, event)
        self.has_told = True


async def _get(connection: AsyncConnection, order_id: str) -> Order | None:
    row = (await connection.execute(select(ORDERS).where(ORDERS.c.id == order_id))).one_or_none()
    return None if row is None else _order_of(row)


def _values_of(order: Order) -> dict[str, Any]:
    return {
        "id": order.id,
        "customer": order.customer,
        "lines": [{"sku": line.sku, "quantity": line.quantity} for line in order.lines],
        "status": order.status.value,
        "reason": order.reason,
        "version": order.version,
        "sequence": order.sequence,
        "placed_at_s": order.placed_at_s,
        "changed_at_s": order.changed_at_s,
    }


def _order_of(row: Row[Any]) -> Order:
    return Order(
        id=row.id,
        customer=row.customer,
        lines=tuple(OrderLine(line["sku"], line["quantity"]) for line in row.lines),
        status=OrderStatus(row.status),
        reason=row.reason,
        version=row.version,
        sequence=row.sequence,
        placed_at_s=row.placed_at_s,
        changed_at_s=row.changed_at_s,
    )

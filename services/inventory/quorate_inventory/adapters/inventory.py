"""The port `Inventory` on a database: stock, reservation, outbox row and inbox row in one transaction."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from quorate_core.clock import Clock
from quorate_core.errors import Conflict, InvariantViolation, Unavailable
from quorate_messaging import Database, Event, Inbox, Outbox
from sqlalchemy import Row, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from quorate_inventory.adapters.tables import RESERVATIONS, STOCK
from quorate_inventory.events import SOURCE, Line
from quorate_inventory.model import Change, Reservation, ReservationStatus, Shortage, Stock
from quorate_inventory.ports import Taken

ANSWER_SEQUENCE = 1
"""An order gets one answer from here, so that is the only event of its aggregate."""


class SqlInventory:
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
    async def unit(self) -> AsyncIterator["SqlInventoryUnit"]:
        async with self._database.writing() as connection:
            unit = SqlInventoryUnit(connection, self._outbox, self._inbox, self._clock, self._new_id)
            yield unit
        if unit.has_told:
            self._told()

    async def find(self, sku: str) -> Stock | None:
        async with self._database.reading() as connection:
            return await _find(connection, sku)

    async def page(self, limit: int, after: str | None, available_max: int | None) -> Sequence[Stock]:
        query = select(STOCK).order_by(STOCK.c.sku).limit(limit)
        if after is not None:
            query = query.where(STOCK.c.sku > after)
        if available_max is not None:
            query = query.where(STOCK.c.available <= available_max)
        async with self._database.reading() as connection:
            return [_stock_of(row) for row in await connection.execute(query)]


class SqlInventoryUnit:
    def __init__(
        self, connection: AsyncConnection, outbox: Outbox, inbox: Inbox, clock: Clock, new_id: Callable[[float], str]
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._inbox = inbox
        self._clock = clock
        self._new_id = new_id
        self.has_told = False

    async def admit(self, event: Event) -> bool:
        return await self._inbox.admit(self._connection, event, self._clock.wall_s())

    async def reservation(self, order_id: str) -> Reservation | None:
        query = select(RESERVATIONS).where(RESERVATIONS.c.order_id == order_id)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _reservation_of(row)

    async def take(self, lines: Sequence[Line]) -> Taken:
        left: list[Stock] = []
        shortages: list[Shortage] = []
        async with self._connection.begin_nested() as savepoint:
            # By SKU, so that two orders never wait for each other in a circle on a database that locks rows.
            for line in sorted(lines, key=lambda line: line.sku):
                stock = await self._take_line(line)
                if stock is not None:
                    left.append(stock)
                    continue
                found = await _find(self._connection, line.sku)
                shortages.append(Shortage(line.sku, line.quantity, None if found is None else found.available))
            if shortages:
                await savepoint.rollback()
        return Taken(shortages=tuple(shortages)) if shortages else Taken(left=tuple(left))

    async def _take_line(self, line: Line) -> Stock | None:
        """One conditional update: what is not available cannot be taken, whoever else takes at this moment."""
        result = await self._connection.execute(
            update(STOCK)
            .where(STOCK.c.sku == line.sku, STOCK.c.available >= line.quantity)
            .values(available=STOCK.c.available - line.quantity, reserved=STOCK.c.reserved + line.quantity)
            .returning(*STOCK.c)
        )
        row = result.one_or_none()
        return None if row is None else _stock_of(row)

    async def keep(self, before: Reservation | None, change: Change) -> None:
        values = _values_of(change.reservation)
        if before is None:
            try:
                await self._connection.execute(insert(RESERVATIONS).values(values))
            except IntegrityError as error:
                raise _changed_meanwhile(change.reservation.order_id) from error
        else:
            result = await self._connection.execute(
                update(RESERVATIONS)
                .where(RESERVATIONS.c.order_id == before.order_id, RESERVATIONS.c.status == before.status.value)
                .values(values)
            )
            if result.rowcount != 1:
                raise _changed_meanwhile(before.order_id)
        for line in sorted(change.gives_back, key=lambda line: line.sku):
            await self._give_back(line)
        await self._tell(change)

    async def _give_back(self, line: Line) -> None:
        result = await self._connection.execute(
            update(STOCK)
            .where(STOCK.c.sku == line.sku, STOCK.c.reserved >= line.quantity)
            .values(available=STOCK.c.available + line.quantity, reserved=STOCK.c.reserved - line.quantity)
        )
        if result.rowcount != 1:
            raise InvariantViolation(f"{line.quantity} pieces of {line.sku} are to be released and are not reserved")

    async def _tell(self, change: Change) -> None:
        if change.tells is None:
            return
        now_s = change.reservation.changed_at_s
        event = Event(
            id=self._new_id(now_s),
            source=SOURCE,
            type=change.tells.TYPE,
            aggregate_id=change.reservation.order_id,
            sequence=ANSWER_SEQUENCE,
            occurred_at_s=now_s,
            data=change.tells.model_dump(mode="json"),
        )
        await self._outbox.add(self._connection, event)
        self.has_told = True

    async def set_available(self, sku: str, available: int) -> tuple[Stock, bool]:
        result = await self._connection.execute(
            update(STOCK).where(STOCK.c.sku == sku).values(available=available).returning(*STOCK.c)
        )
        row = result.one_or_none()
        if row is not None:
            return _stock_of(row), False
        try:
            await self._connection.execute(insert(STOCK).values(sku=sku, available=available, reserved=0))
        except IntegrityError as error:
            raise _changed_meanwhile(sku) from error
        return Stock(sku, available, 0), True

    async def receive(self, sku: str, quantity: int, available_max: int) -> Stock | None:
        result = await self._connection.execute(
            update(STOCK)
            .where(STOCK.c.sku == sku, STOCK.c.available <= available_max - quantity)
            .values(available=STOCK.c.available + quantity)
            .returning(*STOCK.c)
        )
        row = result.one_or_none()
        if row is not None:
            return _stock_of(row)
        if await _find(self._connection, sku) is not None:
            raise Conflict(f"more than {available_max} pieces of {sku} would be available")
        return None


def _changed_meanwhile(name: str) -> Unavailable:
    return Unavailable(f"{name} was changed by another instance at the same moment; try again")


async def _find(connection: AsyncConnection, sku: str) -> Stock | None:
    row = (await connection.execute(select(STOCK).where(STOCK.c.sku == sku))).one_or_none()
    return None if row is None else _stock_of(row)


def _stock_of(row: Row[Any]) -> Stock:
    return Stock(row.sku, row.available, row.reserved)


def _values_of(reservation: Reservation) -> dict[str, Any]:
    return {
        "order_id": reservation.order_id,
        "lines": [line.model_dump(mode="json") for line in reservation.lines],
        "status": reservation.status.value,
        "reason": reservation.reason,
        "changed_at_s": reservation.changed_at_s,
    }


def _reservation_of(row: Row[Any]) -> Reservation:
    return Reservation(
        order_id=row.order_id,
        lines=tuple(Line.model_validate(line) for line in row.lines),
        status=ReservationStatus(row.status),
        reason=row.reason,
        changed_at_s=row.changed_at_s,
    )

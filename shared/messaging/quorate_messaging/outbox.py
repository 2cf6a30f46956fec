"""The outbox (local message table): events stored in the transaction of the change that they tell of.

`next_attempt_at_s` is when a row may be claimed. A claim moves it to the end of the claim's lease, so that one column
says both "not before" and "again after, if the relay died". Times in the table are of the wall clock, since processes
and restarts share them: no promise rests on them, only how soon something is tried.

NB: only the oldest undelivered event of an aggregate can be claimed. That, and not the order in which relays work,
keeps the order of one aggregate; and it asks for no order between aggregates, whose ids are given before they commit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from quorate_messaging.delivery import LAST_ERROR_CHARS_MAX, DeliveryState, DeliveryStatus
from quorate_messaging.event import Event


def outbox_table(metadata: MetaData) -> Table:
    """The table `outbox`, for a service's own metadata and migrations."""
    return Table(
        "outbox",
        metadata,
        Column("id", String(64), primary_key=True),
        Column("source", String(200), nullable=False),
        Column("type", String(200), nullable=False),
        Column("aggregate_id", String(64), nullable=False),
        Column("sequence", Integer, nullable=False),
        Column("payload", JSON, nullable=False),
        Column("occurred_at_s", Double, nullable=False),
        Column("status", String(16), nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("next_attempt_at_s", Double, nullable=False),
        Column("lease_owner", String(128), nullable=True),
        Column("last_error", String(LAST_ERROR_CHARS_MAX), nullable=False),
        UniqueConstraint("aggregate_id", "sequence", name="uq_outbox_aggregate_sequence"),
        Index("ix_outbox_status_due", "status", "next_attempt_at_s"),
    )


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event to deliver; `attempts` counts those before this one."""

    event: Event
    attempts: int


@dataclass(frozen=True, slots=True)
class Head:
    """The oldest undelivered event of an aggregate, and when it may be claimed."""

    id: str
    due_at_s: float


class Outbox:
    """Statements on the outbox, each within the caller's transaction."""

    def __init__(self, table: Table) -> None:
        self._table = table
        earlier = table.alias("earlier")
        self._is_head: ColumnElement[bool] = ~exists().where(
            earlier.c.aggregate_id == table.c.aggregate_id,
            earlier.c.sequence < table.c.sequence,
            earlier.c.status != DeliveryStatus.DELIVERED.value,
        )
        self._is_pending: ColumnElement[bool] = table.c.status == DeliveryStatus.PENDING.value

    async def add(self, connection: AsyncConnection, event: Event) -> None:
        """Store `event` for delivery, if the caller's transaction commits."""
        await connection.execute(
            insert(self._table).values(
                id=event.id,
                source=event.source,
                type=event.type,
                aggregate_id=event.aggregate_id,
                sequence=event.sequence,
                payload=event.data,
                occurred_at_s=event.occurred_at_s,
                status=DeliveryStatus.PENDING.value,
                attempts=0,
                next_attempt_at_s=event.occurred_at_s,
                lease_owner=None,
                last_error="",
            )
        )

    async def heads(self, connection: AsyncConnection, rows_max: int) -> list[Head]:
        """Up to `rows_max` events that are next in their aggregates, soonest due first."""
        table = self._table
        found = await connection.execute(
            select(table.c.id, table.c.next_attempt_at_s)
            .where(self._is_pending, self._is_head)
            .order_by(table.c.next_attempt_at_s, table.c.id)
            .limit(rows_max)
        )
        return [Head(row_id, due_at_s) for row_id, due_at_s in found]

    async def claim(
        self, connection: AsyncConnection, ids: Collection[str], owner: str, now_s: float, lease_s: float
    ) -> list[Claimed]:
        """Those of `ids` that are due, now leased to `owner` for `lease_s` seconds; what others hold is left out."""
        table = self._table
        rows = await connection.execute(
            update(table)
            .where(table.c.id.in_(ids), self._is_pending, table.c.next_attempt_at_s <= now_s, self._is_head)
            .values(lease_owner=owner, next_attempt_at_s=now_s + lease_s)
            .returning(*table.c)
        )
        return [Claimed(_event_of(row), row.attempts) for row in rows]

    async def mark_delivered(self, connection: AsyncConnection, ids: Sequence[str]) -> None:
        """Delivered is delivered, whoever holds the lease by now."""
        table = self._table
        await connection.execute(
            update(table)
            .where(table.c.id.in_(ids), self._is_pending)
            .values(status=DeliveryStatus.DELIVERED.value, attempts=table.c.attempts + 1, lease_owner=None)
        )

    async def mark_failed(self, connection: AsyncConnection, event_id: str, owner: str, state: DeliveryState) -> bool:
        """Write down what a failed attempt of `owner` led to; False when its lease has passed to another."""
        table = self._table
        result = await connection.execute(
            update(table)
            .where(table.c.id == event_id, table.c.lease_owner == owner, self._is_pending)
            .values(
                status=state.status.value,
                attempts=table.c.attempts + 1,
                next_attempt_at_s=state.next_attempt_at_s,
                lease_owner=None,
                last_error=state.last_error,
            )
        )
        return result.rowcount == 1

    async def free_leases(self, connection: AsyncConnection, owner: str, now_s: float) -> int:
        """End what `owner` holds: its process starts anew, so nothing of it is under way."""
        table = self._table
        result = await connection.execute(
            update(table)
            .where(table.c.lease_owner == owner, self._is_pending)
            .values(lease_owner=None, next_attempt_at_s=now_s)
        )
        return result.rowcount

    async def requeue(self, connection: AsyncConnection, event_id: str, now_s: float) -> bool:
        """Give a dead event another life, and with it what it held back; False when it is not dead."""
        table = self._table
        result = await connection.execute(
            update(table)
            .where(table.c.id == event_id, table.c.status == DeliveryStatus.DEAD.value)
            .values(status=DeliveryStatus.PENDING.value, attempts=0, next_attempt_at_s=now_s)
        )
        return result.rowcount == 1

    async def counts(self, connection: AsyncConnection) -> dict[DeliveryStatus, int]:
        """How many events wait, and how many are dead."""
        table = self._table
        rows = await connection.execute(
            select(table.c.status, func.count())
            .where(table.c.status.in_((DeliveryStatus.PENDING.value, DeliveryStatus.DEAD.value)))
            .group_by(table.c.status)
        )
        return {DeliveryStatus(status): count for status, count in rows}

    async def prune(self, connection: AsyncConnection, claimed_before_s: float, rows_max: int) -> int:
        """Delete up to `rows_max` delivered events last claimed before that moment; returns how many."""
        table = self._table
        oldest = (
            select(table.c.id)
            .where(table.c.status == DeliveryStatus.DELIVERED.value, table.c.next_attempt_at_s < claimed_before_s)
            .order_by(table.c.next_attempt_at_s)
            .limit(rows_max)
        )
        return (await connection.execute(delete(table).where(table.c.id.in_(oldest)))).rowcount

    async def bring_forward(self, connection: AsyncConnection, due_after_s: float, now_s: float) -> int:
        """Make due now what is due later than any backoff or lease could say: the wall clock went back."""
        table = self._table
        result = await connection.execute(
            update(table)
            .where(self._is_pending, table.c.next_attempt_at_s > due_after_s)
            .values(next_attempt_at_s=now_s, lease_owner=None)
        )
        return result.rowcount


def _event_of(row: Row[Any]) -> Event:
    return Event(
        id=row.id,
        source=row.source,
        type=row.type,
        aggregate_id=row.aggregate_id,
        sequence=row.sequence,
        occurred_at_s=row.occurred_at_s,
        data=row.payload,
    )

"""The inbox: an event is consumed exactly once, because its row and the consumer's own change are one transaction."""

from sqlalchemy import Column, Double, Index, MetaData, String, Table, delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from quorate_messaging.event import Event


def inbox_table(metadata: MetaData) -> Table:
    """The table `inbox`, for a service's own metadata and migrations."""
    return Table(
        "inbox",
        metadata,
        Column("source", String(200), primary_key=True),
        Column("event_id", String(64), primary_key=True),
        Column("type", String(200), nullable=False),
        Column("received_at_s", Double, nullable=False),
        Index("ix_inbox_received", "received_at_s"),
    )


class Inbox:
    def __init__(self, table: Table) -> None:
        self._table = table

    async def admit(self, connection: AsyncConnection, event: Event, now_s: float) -> bool:
        """Whether `event` is new; from then on it is known, if the caller's transaction commits.

        A transaction that brings the same event at the same moment is waited for, and decides the answer.
        """
        row = {"source": event.source, "event_id": event.id, "type": event.type, "received_at_s": now_s}
        try:
            async with connection.begin_nested():
                await connection.execute(insert(self._table).values(row))
        except IntegrityError:
            return False
        return True

    async def prune(self, connection: AsyncConnection, received_before_s: float, rows_max: int) -> int:
        """Forget up to `rows_max` events received before that moment; returns how many."""
        table = self._table
        oldest = await connection.execute(
            select(table.c.source, table.c.event_id)
            .where(table.c.received_at_s < received_before_s)
            .order_by(table.c.received_at_s)
            .limit(rows_max)
        )
        rows = oldest.all()
        for source, event_id in rows:
            await connection.execute(delete(table).where(table.c.source == source, table.c.event_id == event_id))
        return len(rows)

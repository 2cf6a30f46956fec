"""A database with the messaging tables and one of its own, on a real file, for as many engines as a test wants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from quorate_messaging import Database, Event, Inbox, Outbox, inbox_table, outbox_table
from quorate_messaging.database import configure_sqlite
from sqlalchemy import URL, Column, Integer, MetaData, String, Table, create_engine, select
from sqlalchemy.ext.asyncio import AsyncConnection

METADATA = MetaData()
OUTBOX = Outbox(outbox_table(METADATA))
INBOX = Inbox(inbox_table(METADATA))
NOTES = Table("notes", METADATA, Column("id", String(64), primary_key=True), Column("amount", Integer, nullable=False))


def create_database(file: Path) -> Path:
    engine = create_engine(URL.create("sqlite", database=str(file)))
    configure_sqlite(engine, "BEGIN IMMEDIATE")
    METADATA.create_all(engine)
    engine.dispose()
    return file


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Database]:
    database = Database.open_sqlite(file)
    try:
        yield database
    finally:
        await database.close()


def an_event(aggregate_id: str, sequence: int, occurred_at_s: float = 1_000.0, type_: str = "test.noted.v1") -> Event:
    return Event(
        id=f"{aggregate_id}-{sequence}",
        source="/test/producer",
        type=type_,
        aggregate_id=aggregate_id,
        sequence=sequence,
        occurred_at_s=occurred_at_s,
        data={"aggregate": aggregate_id, "sequence": sequence},
    )


async def note(connection: AsyncConnection, note_id: str, amount: int) -> None:
    await connection.execute(NOTES.insert().values(id=note_id, amount=amount))


async def notes(database: Database) -> dict[str, int]:
    async with database.reading() as connection:
        return {row.id: row.amount for row in await connection.execute(select(NOTES))}

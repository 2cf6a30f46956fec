"""A service's database: many readers, one writer a process, and errors that say whether to try again.

SQLite is the embedded default, set up so that several processes may share one file: write-ahead log, a full sync at
every commit, and `BEGIN IMMEDIATE` for whoever writes, so that a transaction that reads first never fails at its
first write. SQLAlchemy is told to leave transactions to us, as its SQLite dialect documents for this Python version.
Nothing above this module knows which database it is.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog
from quorate_core.errors import OutcomeUnknown, SettingsError, Unavailable
from sqlalchemy import URL, event, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction, create_async_engine

log = structlog.get_logger(__name__)

BUSY_TIMEOUT_S = 2.0
"""How long one BEGIN waits for a writer in another process."""
BEGIN_ATTEMPTS_MAX = 3
BEGIN_RETRY_PAUSE_S = 0.02
"""Some busy answers of SQLite come at once, without its own waiting; the pause grows with the attempts."""
READERS_MAX = 4
WRITERS_WAITING_MAX = 512
POOL_WAIT_S = 5.0
PROBE_INTERVAL_S = 1.0

_SQLITE_BUSY, _SQLITE_LOCKED = 5, 6


class Database:
    """Transactions on one database. `reading()` sees one consistent state; `writing()` commits when its block ends."""

    def __init__(self, name: str, reader: AsyncEngine, writer: AsyncEngine) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._writers_waiting = 0
        self._unreachable: str | None = None

    @classmethod
    def open_sqlite(cls, file: Path) -> "Database":
        """The database in `file`, which migrations have made: it is never created here."""
        return cls(str(file), _sqlite_engine(file, "BEGIN", READERS_MAX), _sqlite_engine(file, "BEGIN IMMEDIATE", 1))

    @property
    def unreachable(self) -> str | None:
        """Why the last probe failed, or None: what readiness reports."""
        return self._unreachable

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A read transaction. Raises Unavailable."""
        try:
            async with self._reader.connect() as connection:
                await connection.begin()
                yield connection
        except (DatabaseError, PoolTimeout) as error:
            if _is_defect(error):
                raise
            raise self._unavailable(error) from error

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A write transaction, committed at the end of the block, rolled back when the block raises.

        Raises Unavailable when nothing was done (busy, full, too many waiting), OutcomeUnknown when the commit itself
        broke off.
        """
        committing = False
        try:
            async with self._admitted() as connection:
                transaction = await _begin(connection)
                yield connection
                committing = True
                await transaction.commit()
        except (DatabaseError, PoolTimeout) as error:
            if _is_defect(error):
                raise
            if committing and not _is_busy(error):
                raise OutcomeUnknown(f"the commit to {self._name} broke off: {_reason(error)}") from error
            raise self._unavailable(error) from error

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[AsyncConnection]:
        if self._writers_waiting >= WRITERS_WAITING_MAX:
            raise Unavailable(f"{WRITERS_WAITING_MAX} writers wait for {self._name} already; try again")
        self._writers_waiting += 1
        try:
            async with self._writer.connect() as connection:
                yield connection
        finally:
            self._writers_waiting -= 1

    async def probe(self) -> None:
        """Ask the database something, and remember in `unreachable` how that went."""
        try:
            async with self.reading() as connection:
                await connection.execute(text("SELECT 1"))
        except Unavailable as error:
            if self._unreachable is None:
                log.error("database_unreachable", error=error.detail)
            self._unreachable = error.detail
            return
        if self._unreachable is not None:
            log.info("database_reachable_again")
        self._unreachable = None

    async def run_probes(self) -> None:
        """Probe until cancelled."""
        while True:
            await self.probe()
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def require_schema(self, revision: str, remedy: str) -> None:
        """Raise SettingsError unless migrations have brought the schema to exactly `revision`.

        `remedy` is the command that does so; it is named in the error.
        """
        found = await self._schema_revision()
        if found is None:
            raise SettingsError(f"the database {self._name} has no schema yet; run: {remedy}")
        if found != revision:
            raise SettingsError(
                f"the database {self._name} has schema {found}, and this version wants {revision}; "
                f"run: {remedy} (or start the version that made it)"
            )

    async def _schema_revision(self) -> str | None:
        try:
            async with self._reader.connect() as connection:
                return (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
        except OperationalError as error:
            if _is_busy(error):
                raise self._unavailable(error) from error
            return None  # no file, or no such table: never migrated
        except DatabaseError as error:
            raise SettingsError(f"the database {self._name} cannot be used: {_reason(error)}") from error

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(f"the database {self._name} is not available now: {_reason(error)}")


async def _begin(connection: AsyncConnection) -> AsyncTransaction:
    """A transaction that has the write lock; waits for it a bounded time."""
    attempt = 1
    while True:
        try:
            return await connection.begin()
        except OperationalError as error:
            if attempt == BEGIN_ATTEMPTS_MAX or not _is_busy(error):
                raise
        await asyncio.sleep(BEGIN_RETRY_PAUSE_S * attempt)
        attempt += 1


def _sqlite_engine(file: Path, begin: str, connections_max: int) -> AsyncEngine:
    # NB: mode=rw keeps a mistyped folder from becoming a new, empty database.
    url = URL.create(
        "sqlite+aiosqlite", database=f"file:{quote(str(file.absolute()))}", query={"mode": "rw", "uri": "true"}
    )
    engine = create_async_engine(
        url,
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )
    configure_sqlite(engine.sync_engine, begin)

    @event.listens_for(engine.sync_engine, "do_connect")
    def before_connect(*_: Any) -> None:
        # The driver leaves a thread behind when a connection cannot be opened, so the common cause is seen here.
        if not file.exists():
            raise sqlite3.OperationalError(f"the file {file} is not there")

    return engine


def configure_sqlite(engine: Any, begin: str) -> None:
    """Make every transaction of a (synchronous) SQLAlchemy SQLite `engine` start with `begin`, durable and checked."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _is_defect(error: Exception) -> bool:
    """Whether the statement is to blame (a constraint, a name), and not the database it was sent to."""
    return isinstance(error, DatabaseError) and type(error) not in (DatabaseError, OperationalError)


def _is_busy(error: Exception) -> bool:
    """Whether another transaction was in the way, so that the same may be tried again."""
    if isinstance(error, PoolTimeout):
        return True
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)
    return code & 0xFF in (_SQLITE_BUSY, _SQLITE_LOCKED)


def _reason(error: Exception) -> str:
    if isinstance(error, PoolTimeout):
        return f"no connection was free within {POOL_WAIT_S:g} s"
    return str(getattr(error, "orig", None) or error)

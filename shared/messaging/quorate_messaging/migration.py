"""Bringing a SQLite database to the newest schema: once, under a lock, all or nothing.

Only a service's `migrate` command imports this, since Alembic takes its time to load.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from quorate_core.errors import SettingsError
from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import DatabaseError

from quorate_messaging.database import configure_sqlite

LOCK_BUSY_TIMEOUT_S = 30.0
"""How long a migration waits for a writer; another migration is waited for by a lock file, as long as it takes."""


def migrate_sqlite(file: Path, scripts: Path, then: Callable[[Connection], None] | None = None) -> None:
    """Make `file` when it is not there, run the Alembic migrations in folder `scripts`, and then `then`.

    It is one transaction, and running it again changes nothing. Raises SettingsError.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.with_suffix(".migrate.lock")):
            _upgrade(file, scripts, then)
    except OSError as error:
        raise SettingsError(f"the data folder {file.parent} cannot be used: {error.strerror or error}") from error
    except CommandError as error:
        raise SettingsError(f"the database {file} cannot be migrated: {error}") from error
    except DatabaseError as error:
        raise SettingsError(f"the database {file} cannot be migrated: {error.orig}") from error


def _upgrade(file: Path, scripts: Path, then: Callable[[Connection], None] | None) -> None:
    engine = create_engine(URL.create("sqlite", database=str(file)), connect_args={"timeout": LOCK_BUSY_TIMEOUT_S})
    configure_sqlite(engine, "BEGIN IMMEDIATE")
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if then is not None:
                then(connection)
    finally:
        engine.dispose()


@contextmanager
def _locked(lock_file: Path) -> Iterator[None]:
    """Hold `lock_file`; the kernel gives it back when this process ends, however it ends."""
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""Transactions on a real SQLite file: durable, shared by several engines, and honest about what was done."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from quorate_core.errors import SettingsError, Unavailable
from quorate_messaging import Database
from quorate_messaging import database as database_module
from sqlalchemy import text
from support.services_database import create_database, note, notes, opened


async def test_a_block_that_ends_commits_and_one_that_raises_rolls_back(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database:
        async with database.writing() as connection:
            await note(connection, "kept", 1)
        with pytest.raises(ZeroDivisionError):
            async with database.writing() as connection:
                await note(connection, "lost", 1 // 0)
        assert await notes(database) == {"kept": 1}


async def test_every_connection_is_durable_checked_and_waits_for_writers(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database:
        for transaction in (database.reading, database.writing):
            async with transaction() as connection:
                found = [
                    (await connection.execute(text(f"PRAGMA {name}"))).scalar()
                    for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                ]
            assert found == ["wal", 2, 1, 2000]


async def test_a_read_transaction_sees_one_state_whatever_is_committed_meanwhile(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database, database.reading() as connection:
        count = text("SELECT count(*) FROM notes")
        assert (await connection.execute(count)).scalar() == 0
        async with database.writing() as other:
            await note(other, "later", 1)
        assert (await connection.execute(count)).scalar() == 0


async def test_writers_of_two_engines_that_read_first_all_succeed(tmp_path: Path) -> None:
    """A deferred transaction would fail here when it goes from reading to writing."""
    file = create_database(tmp_path / "a.db")
    async with opened(file) as one, opened(file) as other:
        async with one.writing() as connection:
            await note(connection, "n", 0)

        async def add_one(database: Database) -> None:
            async with database.writing() as connection:
                amount = (await connection.execute(text("SELECT amount FROM notes"))).scalar_one()
                await connection.execute(text("UPDATE notes SET amount = :amount"), {"amount": amount + 1})

        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(add_one(one))
                group.create_task(add_one(other))
        assert await notes(one) == {"n": 100}


async def test_a_writer_that_holds_the_lock_too_long_makes_others_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.01)
    file = create_database(tmp_path / "a.db")
    async with opened(file) as database:
        with sqlite3.connect(file, isolation_level=None) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="locked"):
                async with database.writing() as connection:
                    await note(connection, "n", 1)
            holder.execute("ROLLBACK")
        holder.close()
        async with database.writing() as connection:
            await note(connection, "n", 2)
        assert await notes(database) == {"n": 2}


async def test_writers_beyond_the_limit_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "WRITERS_WAITING_MAX", 3)
    async with opened(create_database(tmp_path / "a.db")) as database:

        async def write(name: str) -> None:
            async with database.writing() as connection:
                await note(connection, name, 1)

        results = await asyncio.gather(*(write(str(n)) for n in range(5)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert len(refused) == 2
        assert len(await notes(database)) == 3


async def test_a_cancelled_writer_leaves_nothing_behind_and_nothing_locked(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database:
        inside = asyncio.Event()

        async def write_and_hang() -> None:
            async with database.writing() as connection:
                await note(connection, "cancelled", 1)
                inside.set()
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(write_and_hang())
            await inside.wait()
            task.cancel()
        async with asyncio.timeout(5), database.writing() as connection:
            await note(connection, "after", 1)
        assert await notes(database) == {"after": 1}


async def test_the_probe_says_why_the_database_cannot_be_reached_and_when_it_can_again(tmp_path: Path) -> None:
    file = create_database(tmp_path / "a.db")
    hidden = tmp_path / "hidden"
    file.rename(hidden)
    async with opened(file) as database:
        await database.probe()
        assert database.unreachable is not None
        assert str(file) in database.unreachable
        hidden.rename(file)
        await database.probe()
        assert database.unreachable is None


async def test_a_database_that_was_never_migrated_is_refused_and_not_created(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    async with opened(file) as database:
        with pytest.raises(SettingsError, match="no schema yet; run: migrate it"):
            await database.require_schema("0001", "migrate it")
    assert not file.exists()


async def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    file.write_text("this is no database, and long enough to be looked at as one" * 20)
    async with opened(file) as database:
        with pytest.raises(SettingsError, match=r"a\.db cannot be used: file is not a database"):
            await database.require_schema("0001", "migrate it")
        await database.probe()
        assert "file is not a database" in (database.unreachable or "")


async def test_a_database_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database:
        async with database.writing() as connection:
            await connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
            await connection.execute(text("INSERT INTO alembic_version VALUES ('0002')"))
        await database.require_schema("0002", "migrate it")
        with pytest.raises(SettingsError, match="has schema 0002, and this version wants 0001"):
            await database.require_schema("0001", "migrate it")

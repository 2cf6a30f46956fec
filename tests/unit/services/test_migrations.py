"""Migrations: the schema that the services work with, made once, and stock that is never made twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import quorate_inventory.adapters.tables
import quorate_inventory.migrate
import quorate_order.adapters.tables
import quorate_order.migrate
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from quorate_core.errors import SettingsError
from sqlalchemy import URL, Connection, MetaData, create_engine, text


@contextmanager
def connected(file: Path) -> Iterator[Connection]:
    engine = create_engine(URL.create("sqlite", database=str(file)))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def head_of(scripts: Path) -> str | None:
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config).get_current_head()


def require_same_schema(file: Path, metadata: MetaData) -> None:
    with connected(file) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrations_make_exactly_the_tables_that_order_works_with(tmp_path: Path) -> None:
    quorate_order.migrate.migrate(tmp_path)
    require_same_schema(tmp_path / "order.db", quorate_order.adapters.tables.METADATA)
    assert head_of(quorate_order.migrate.MIGRATIONS) == quorate_order.adapters.tables.SCHEMA_REVISION


def test_migrations_make_exactly_the_tables_that_inventory_works_with(tmp_path: Path) -> None:
    quorate_inventory.migrate.migrate(tmp_path, {})
    require_same_schema(tmp_path / "inventory.db", quorate_inventory.adapters.tables.METADATA)
    assert head_of(quorate_inventory.migrate.MIGRATIONS) == quorate_inventory.adapters.tables.SCHEMA_REVISION


def test_only_skus_that_the_database_never_had_are_stocked(tmp_path: Path) -> None:
    quorate_inventory.migrate.migrate(tmp_path, {"widget": 1000})
    file = tmp_path / "inventory.db"
    with connected(file) as connection:
        connection.execute(text("UPDATE stock SET available = 0, reserved = 3"))
    quorate_inventory.migrate.migrate(tmp_path, {"widget": 1000, "gadget": 500})
    with connected(file) as connection:
        rows = connection.execute(text("SELECT sku, available, reserved FROM stock ORDER BY sku")).all()
    assert [tuple(row) for row in rows] == [("gadget", 500, 0), ("widget", 0, 3)]


def test_the_database_itself_refuses_stock_below_zero(tmp_path: Path) -> None:
    quorate_inventory.migrate.migrate(tmp_path, {"widget": 1})
    for column in ("available", "reserved"):
        with connected(tmp_path / "inventory.db") as connection, pytest.raises(Exception, match="CHECK constraint"):
            connection.execute(text(f"UPDATE stock SET {column} = -1"))  # noqa: S608 - the two names above


def test_a_database_of_a_version_that_is_not_known_is_left_alone(tmp_path: Path) -> None:
    quorate_order.migrate.migrate(tmp_path)
    with connected(tmp_path / "order.db") as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match=r"order\.db cannot be migrated.*9999"):
        quorate_order.migrate.migrate(tmp_path)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "order.db").write_text("this is no database, and long enough to be looked at as one" * 20)
    with pytest.raises(SettingsError, match=r"order\.db cannot be migrated: file is not a database"):
        quorate_order.migrate.migrate(tmp_path)


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SettingsError, match="taken cannot be used"):
        quorate_order.migrate.migrate(tmp_path / "taken")


def test_a_data_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50% of? all#names ü"
    quorate_order.migrate.migrate(folder)
    assert (folder / "order.db").exists()

"""Brings the database in a data folder to the newest schema, and stocks it; run it once, before any instance starts.

Running it again, or twice at once, does no harm: `--stock` touches only SKUs that this database has never had.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict
from quorate_core.logs import configure_logs
from quorate_core.process import Stop, run_process
from quorate_core.settings import ProcessSettings
from quorate_messaging.migration import migrate_sqlite
from sqlalchemy import Connection, insert, select

from quorate_inventory.adapters.tables import DATABASE_FILE, STOCK
from quorate_inventory.stocking import parse_stock

MIGRATIONS = Path(__file__).parent / "migrations"

log = structlog.get_logger(__name__)


def _parse(value: object) -> object:
    return parse_stock(value) if isinstance(value, str) else value


class MigrateSettings(ProcessSettings):
    """Brings the inventory service's database to the newest schema, and stocks it."""

    model_config = SettingsConfigDict(env_prefix="QUORATE_INVENTORY_")

    name: str = "inventory-migrate"
    stock: Annotated[dict[str, int], NoDecode, BeforeValidator(_parse)] = Field(default_factory=dict)
    """What to stock that was never there, such as `widget=1000,gadget=500`."""


def migrate(data_dir: Path, stock: Mapping[str, int]) -> None:
    """Raises SettingsError for a folder or a database that cannot be used."""
    migrate_sqlite(data_dir / DATABASE_FILE, MIGRATIONS, lambda connection: _stock_new(connection, stock))


def _stock_new(connection: Connection, stock: Mapping[str, int]) -> None:
    known = set(connection.execute(select(STOCK.c.sku).where(STOCK.c.sku.in_(stock))).scalars())
    for sku, available in stock.items():
        if sku not in known:
            connection.execute(insert(STOCK).values(sku=sku, available=available, reserved=0))
            log.info("stocked", sku=sku, available=available)


async def main(_stop: Stop) -> None:
    settings = MigrateSettings.from_command_line("quorate-inventory-migrate")
    configure_logs(settings.name, settings.log_format, settings.log_level)
    migrate(settings.data_dir, settings.stock)
    log.info("database_migrated", file=str(settings.data_dir / DATABASE_FILE))


if __name__ == "__main__":
    run_process(main)

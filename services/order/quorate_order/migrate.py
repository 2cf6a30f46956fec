"""Brings the database in a data folder to the newest schema; run it once, before any instance starts.

Running it again, or twice at once, does no harm.
"""

from pathlib import Path

import structlog
from pydantic_settings import SettingsConfigDict
from quorate_core.logs import configure_logs
from quorate_core.process import Stop, run_process
from quorate_core.settings import ProcessSettings
from quorate_messaging.migration import migrate_sqlite

from quorate_order.adapters.tables import DATABASE_FILE

MIGRATIONS = Path(__file__).parent / "migrations"

log = structlog.get_logger(__name__)


class MigrateSettings(ProcessSettings):
    """Brings the order service's database to the newest schema."""

    model_config = SettingsConfigDict(env_prefix="QUORATE_ORDER_")

    name: str = "order-migrate"


def migrate(data_dir: Path) -> None:
    """Raises SettingsError for a folder or a database that cannot be used."""
    migrate_sqlite(data_dir / DATABASE_FILE, MIGRATIONS)


async def main(_stop: Stop) -> None:
    settings = MigrateSettings.from_command_line("quorate-order-migrate")
    configure_logs(settings.name, settings.log_format, settings.log_level)
    migrate(settings.data_dir)
    log.info("database_migrated", file=str(settings.data_dir / DATABASE_FILE))


if __name__ == "__main__":
    run_process(main)

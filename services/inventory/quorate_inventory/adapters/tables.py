"""The tables of the inventory service. A change here wants a migration, and its revision in SCHEMA_REVISION."""

from quorate_messaging import inbox_table, outbox_table
from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, Double, MetaData, String, Table

from quorate_inventory.model import REASON_CHARS_MAX

SCHEMA_REVISION = "0001"
DATABASE_FILE = "inventory.db"

METADATA = MetaData()

STOCK = Table(
    "stock",
    METADATA,
    Column("sku", String(64), primary_key=True),
    Column("available", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    # The last line of defence: no defect of ours can sell what is not there.
    CheckConstraint("available >= 0", name="ck_stock_available"),
    CheckConstraint("reserved >= 0", name="ck_stock_reserved"),
)
RESERVATIONS = Table(
    "reservations",
    METADATA,
    Column("order_id", String(64), primary_key=True),
    Column("lines", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(REASON_CHARS_MAX), nullable=True),
    Column("changed_at_s", Double, nullable=False),
)
OUTBOX = outbox_table(METADATA)
INBOX = inbox_table(METADATA)

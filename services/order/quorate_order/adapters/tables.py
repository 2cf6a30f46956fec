"""The tables of the order service. A change here wants a migration, and its revision in SCHEMA_REVISION."""

from quorate_messaging import inbox_table, outbox_table
from sqlalchemy import JSON, Column, Double, Index, Integer, MetaData, String, Table

from quorate_order.model import REASON_CHARS_MAX

SCHEMA_REVISION = "0001"
DATABASE_FILE = "order.db"

METADATA = MetaData()

ORDERS = Table(
    "orders",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("customer", String(128), nullable=False),
    Column("lines", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(REASON_CHARS_MAX), nullable=True),
    Column("version", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("placed_at_s", Double, nullable=False),
    Column("changed_at_s", Double, nullable=False),
    Index("ix_orders_status_placed", "status", "placed_at_s"),
)
OUTBOX = outbox_table(METADATA)
INBOX = inbox_table(METADATA)

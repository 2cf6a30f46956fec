"""Orders, outbox and inbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("customer", sa.String(128), nullable=False),
        sa.Column("lines", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(500), nullable=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("placed_at_s", sa.Double, nullable=False),
        sa.Column("changed_at_s", sa.Double, nullable=False),
    )
    op.create_index("ix_orders_status_placed", "orders", ["status", "placed_at_s"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("aggregate_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("occurred_at_s", sa.Double, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at_s", sa.Double, nullable=False),
        sa.Column("lease_owner", sa.String(128), nullable=True),
        sa.Column("last_error", sa.String(500), nullable=False),
        sa.UniqueConstraint("aggregate_id", "sequence", name="uq_outbox_aggregate_sequence"),
    )
    op.create_index("ix_outbox_status_due", "outbox", ["status", "next_attempt_at_s"])
    op.create_table(
        "inbox",
        sa.Column("source", sa.String(200), primary_key=True),
        sa.Column("event_id", sa.String(64), primary_key=True),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("received_at_s", sa.Double, nullable=False),
    )
    op.create_index("ix_inbox_received", "inbox", ["received_at_s"])


def downgrade() -> None:
    for table in ("inbox", "outbox", "orders"):
        op.drop_table(table)

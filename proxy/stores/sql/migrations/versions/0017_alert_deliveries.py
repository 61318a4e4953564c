"""Deliveries of alerts to receivers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alert_deliveries",
        sa.Column("alert", sa.String(length=32), nullable=False),
        sa.Column("receiver", sa.String(length=63), nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.Column("problem", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("alert", "receiver"),
    )
    op.create_index("ix_alert_deliveries_state", "alert_deliveries", ["state", "receiver", "at", "alert"])
    op.create_index("ix_alert_deliveries_at", "alert_deliveries", ["at"])
    op.create_index("ix_alert_deliveries_tenant", "alert_deliveries", ["tenant", "subject"])
    op.create_table(
        "alert_receivers",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=True),
        sa.Column("claim", sa.String(length=32), nullable=False),
        sa.Column("claimed_until", sa.Float(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("tenant"),
    )
    op.create_index("ix_alert_receivers_next_at", "alert_receivers", ["next_at"])


def downgrade() -> None:
    op.drop_table("alert_receivers")
    op.drop_table("alert_deliveries")

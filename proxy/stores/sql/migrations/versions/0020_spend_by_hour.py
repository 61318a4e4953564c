"""What tenants use by the hour, for alerts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spend_hours",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("requests", sa.Float(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "hour"),
    )
    op.create_index("ix_spend_hours_hour", "spend_hours", ["hour"])


def downgrade() -> None:
    op.drop_table("spend_hours")

"""Sums of what grants paid, by day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "grant_days",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("window", sa.String(length=16), nullable=False),
        sa.Column("unit", sa.String(length=32), nullable=False),
        sa.Column("paid_whole", sa.BigInteger(), nullable=False),
        sa.Column("paid_rest", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "day", "window", "unit"),
    )


def downgrade() -> None:
    op.drop_table("grant_days")

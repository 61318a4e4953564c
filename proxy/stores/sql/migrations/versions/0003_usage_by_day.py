"""Sums of what removed jobs used, a row a day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UNITS = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")


def upgrade() -> None:
    op.create_table(
        "usage_days",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.String(length=200), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        *(
            sa.Column(f"{unit}_{part}", sa.BigInteger(), nullable=False)
            for unit in _UNITS
            for part in ("whole", "rest")
        ),
        sa.PrimaryKeyConstraint("tenant", "subject", "day", "endpoint"),
    )


def downgrade() -> None:
    op.drop_table("usage_days")

"""Credits that pay where a quota is used up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "grants",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("unit", sa.String(length=32), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float()),
        sa.Column("key_hash", sa.String(length=64)),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant", "key_hash"),
    )
    op.create_index("ix_grants_holder", "grants", ["tenant", "subject", "unit", "expires_at", "id"])
    op.create_index("ix_grants_tenant", "grants", ["tenant", "created_at", "id"])


def downgrade() -> None:
    op.drop_table("grants")

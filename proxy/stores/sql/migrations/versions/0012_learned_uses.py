"""What calls of a class usually use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "learned_uses",
        sa.Column("endpoint", sa.String(200), primary_key=True),
        sa.Column("picture_class", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token_class", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("compute_seconds", sa.BigInteger),
        sa.Column("learned_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("learned_uses")

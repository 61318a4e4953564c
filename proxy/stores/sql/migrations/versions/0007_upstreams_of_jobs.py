"""The name of the key of fal's that a job is submitted with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("upstream", sa.String(length=63), nullable=False, server_default="default"))


def downgrade() -> None:
    op.drop_column("jobs", "upstream")

"""Indexes for the jobs of a whole tenant, and for its usage by day and endpoint."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UNITS = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")
_SUMS = ["calls", *(f"{unit}_{part}" for unit in _UNITS for part in ("whole", "rest"))]


def upgrade() -> None:
    op.create_index("ix_jobs_tenant", "jobs", ["tenant", "submitted_at"])
    op.create_index("ix_usage_days_tenant", "usage_days", ["tenant", "day", "endpoint", *_SUMS])


def downgrade() -> None:
    op.drop_index("ix_usage_days_tenant", table_name="usage_days")
    op.drop_index("ix_jobs_tenant", table_name="jobs")

"""Sums of usage over all subjects, and indexes in the order of reports' pages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UNITS = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")
_SUMS = ["calls", *(f"{unit}_{part}" for unit in _UNITS for part in ("whole", "rest"))]
_KEY = ["tenant", "day", "endpoint"]
_COLUMNS = ", ".join([*_KEY, *_SUMS])
_ADD = f"""
INSERT INTO usage_totals ({_COLUMNS}) VALUES ({", ".join(f"NEW.{name}" for name in [*_KEY, *_SUMS])})
ON CONFLICT ({", ".join(_KEY)}) DO UPDATE SET
{", ".join(f"{name} = usage_totals.{name} + excluded.{name}" for name in _SUMS)};
"""
_SUBTRACT = f"""
UPDATE usage_totals SET {", ".join(f"{name} = usage_totals.{name} - OLD.{name}" for name in _SUMS)}
WHERE {" AND ".join(f"{name} = OLD.{name}" for name in _KEY)};
"""
_FUNCTION = f"""
CREATE FUNCTION keep_usage_totals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'INSERT' THEN {_SUBTRACT} END IF;
  IF TG_OP <> 'DELETE' THEN {_ADD} END IF;
  RETURN NULL;
END $$
"""
_TRIGGER = """
CREATE TRIGGER usage_days_totals AFTER INSERT OR UPDATE OR DELETE ON usage_days
FOR EACH ROW EXECUTE FUNCTION keep_usage_totals()
"""
#: What SQLite does after each kind of change.
_AFTER = {"insert": _ADD, "update": _SUBTRACT + _ADD, "delete": _SUBTRACT}


def upgrade() -> None:
    op.create_table(
        "usage_totals",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.String(length=200), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint(*_KEY),
    )
    is_postgresql = op.get_context().dialect.name == "postgresql"
    # First: it keeps others from changing the sums until this transaction ends.
    if is_postgresql:
        op.execute(_FUNCTION)
        op.execute(_TRIGGER)
    else:
        for change, statements in _AFTER.items():
            op.execute(f"CREATE TRIGGER usage_days_{change} AFTER {change} ON usage_days BEGIN {statements} END")
    op.execute(
        f"INSERT INTO usage_totals ({_COLUMNS}) SELECT {', '.join([*_KEY, *(f'sum({name})' for name in _SUMS)])} "
        f"FROM usage_days GROUP BY {', '.join(_KEY)}"
    )
    op.drop_index("ix_usage_days_tenant", table_name="usage_days")
    as_bytes = ' COLLATE "C"' if is_postgresql else ""
    subject, endpoint = sa.text(f"subject{as_bytes}"), sa.text(f"endpoint{as_bytes}")
    op.create_index("ix_usage_days_day", "usage_days", ["tenant", "day", endpoint, subject])
    if is_postgresql:
        op.create_index("ix_usage_days_subject", "usage_days", ["tenant", subject, "day", endpoint])


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.drop_index("ix_usage_days_subject", table_name="usage_days")
        op.execute("DROP TRIGGER usage_days_totals ON usage_days")
        op.execute("DROP FUNCTION keep_usage_totals()")
    else:
        for change in _AFTER:
            op.execute(f"DROP TRIGGER usage_days_{change}")
    op.drop_index("ix_usage_days_day", table_name="usage_days")
    op.create_index("ix_usage_days_tenant", "usage_days", ["tenant", "day", "endpoint", *_SUMS])
    op.drop_table("usage_totals")

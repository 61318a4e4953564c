"""Sums of usage by hour and by tag of the jobs that are kept, and an index in the order of reports by day and user."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_UNITS = ("requests", "tokens", "compute_seconds", "usd", "upload_bytes")
_SUMS = ["calls", *(f"{unit}_{part}" for unit in _UNITS for part in ("whole", "rest"))]
_KEYS = {"usage_hours": ["tenant", "hour", "endpoint"], "usage_tags": ["tenant", "tag", "day", "endpoint"]}
#: Another process that adds to sums, or removes jobs, waits for the end of this transaction.
_LOCK = "SELECT pg_advisory_xact_lock(7287870002)"
#: What of a counted job is in the sums. A job that is written as it was changes none.
_FACTS = ("state", "tenant", "endpoint", "submitted_at", "used", "tags")
_WORDS = {
    "sqlite": {
        "amount": "coalesce(json_extract({job}.used, '$.{unit}'), 0)",
        "period": "CAST({job}.submitted_at / {seconds}.0 AS INTEGER)",
        "tag": "each_tag.value",
        "tags": "json_each(coalesce({job}.tags, '[\"\"]')) AS each_tag",
    },
    "postgresql": {
        "amount": "coalesce(({job}.used ->> '{unit}')::bigint, 0)",
        "period": "floor({job}.submitted_at / {seconds})::integer",
        "tag": "each_tag",
        "tags": "json_array_elements_text(coalesce({job}.tags, '[\"\"]')) AS each_tag",
    },
}


def _values(dialect: str, table: str, job: str) -> dict[str, str]:
    """What a job adds to each column of a table."""
    words = _WORDS[dialect]
    amounts = {unit: words["amount"].format(job=job, unit=unit) for unit in _UNITS}
    columns = {
        "tenant": f"{job}.tenant",
        "endpoint": f"{job}.endpoint",
        "hour": words["period"].format(job=job, seconds=3_600),
        "day": words["period"].format(job=job, seconds=86_400),
        "tag": words["tag"],
        "calls": "1",
        **{f"{unit}_whole": f"{amount} / 1000000" for unit, amount in amounts.items()},
        **{f"{unit}_rest": f"{amount} % 1000000" for unit, amount in amounts.items()},
    }
    return {name: columns[name] for name in [*_KEYS[table], *_SUMS]}


def _fill(dialect: str, table: str) -> str:
    """Add up the jobs that are counted already."""
    values, keys = _values(dialect, table, "jobs"), _KEYS[table]
    added = [value if name in keys else f"sum({value})" for name, value in values.items()]
    tags = f", {_WORDS[dialect]['tags'].format(job='jobs')}" if "tag" in keys else ""
    places = ", ".join(str(place + 1) for place in range(len(keys)))
    return (
        f"INSERT INTO {table} ({', '.join(values)}) SELECT {', '.join(added)} FROM jobs{tags} "
        f"WHERE jobs.state = 'counted' GROUP BY {places}"
    )


def _change(dialect: str, table: str, job: str, sign: int) -> str:
    """Add a job to a table of sums, or take it off; a sum of no job goes."""
    values, keys = _values(dialect, table, job), _KEYS[table]
    changed = [value if name in keys else f"{sign} * ({value})" for name, value in values.items()]
    # The condition keeps SQLite from reading the conflict as one of a join.
    source = f"FROM {_WORDS[dialect]['tags'].format(job=job)}" if "tag" in keys and dialect == "sqlite" else ""
    insert = (
        f"INSERT INTO {table} ({', '.join(values)}) SELECT {', '.join(changed)} {source} WHERE true "
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET "
        f"{', '.join(f'{name} = {table}.{name} + excluded.{name}' for name in _SUMS)};"
    )
    if sign > 0:
        return insert
    # In SQLite a job has all its tags in one statement.
    tags = f"IN (SELECT value {source})" if source else f"= {values.get('tag')}"
    whose = [f"{name} {tags}" if name == "tag" else f"{name} = {values[name]}" for name in keys]
    return f"{insert} DELETE FROM {table} WHERE {' AND '.join(whose)} AND calls = 0;"


def _changes_postgresql(job: str, sign: int) -> str:
    """The same, for a job with several tags: one after the other, as one may be there twice."""
    hours, tags = (_change("postgresql", table, job, sign) for table in _KEYS)
    return f"{hours} FOR each_tag IN SELECT {_WORDS['postgresql']['tags'].format(job=job)} LOOP {tags} END LOOP;"


def _create_triggers_postgresql() -> None:
    op.execute(f"""
        CREATE FUNCTION keep_usage_of_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE each_tag text;
        BEGIN
          IF OLD.state = 'counted' THEN {_changes_postgresql("OLD", -1)} END IF;
          IF TG_OP = 'UPDATE' THEN
            IF NEW.state = 'counted' THEN {_changes_postgresql("NEW", 1)} END IF;
          END IF;
          RETURN NULL;
        END $$
    """)
    old, new = (
        ", ".join(f"{row}.{name}{'::text' if name in ('used', 'tags') else ''}" for name in _FACTS)
        for row in ("OLD", "NEW")
    )
    is_counted = "(OLD.state = 'counted' OR NEW.state = 'counted')"
    op.execute(
        f"CREATE TRIGGER jobs_usage_update AFTER UPDATE OF {', '.join(_FACTS)} ON jobs FOR EACH ROW "
        f"WHEN ({is_counted} AND ({old}) IS DISTINCT FROM ({new})) EXECUTE FUNCTION keep_usage_of_jobs()"
    )
    op.execute(
        "CREATE TRIGGER jobs_usage_delete AFTER DELETE ON jobs FOR EACH ROW "
        "WHEN (OLD.state = 'counted') EXECUTE FUNCTION keep_usage_of_jobs()"
    )


def _create_triggers_sqlite() -> None:
    added, removed = (
        " ".join(_change("sqlite", table, job, sign) for table in _KEYS) for job, sign in (("NEW", 1), ("OLD", -1))
    )
    differs = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _FACTS)
    update = f"AFTER UPDATE OF {', '.join(_FACTS)} ON jobs WHEN"
    op.execute(f"CREATE TRIGGER jobs_usage_add {update} NEW.state = 'counted' AND ({differs}) BEGIN {added} END")
    op.execute(f"CREATE TRIGGER jobs_usage_remove {update} OLD.state = 'counted' AND ({differs}) BEGIN {removed} END")
    op.execute(f"CREATE TRIGGER jobs_usage_delete AFTER DELETE ON jobs WHEN OLD.state = 'counted' BEGIN {removed} END")


def _create_index(*columns: str) -> None:
    # In the order of bytes, as reports are.
    as_bytes = ' COLLATE "C"' if op.get_context().dialect.name == "postgresql" else ""
    texts = [sa.text(f"{name}{as_bytes}") if name in ("subject", "endpoint") else name for name in columns]
    op.create_index("ix_usage_days_day", "usage_days", texts)


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    if dialect == "postgresql":
        op.execute(_LOCK)
    tag = sa.Text(collation="C" if dialect == "postgresql" else None)
    types: dict[str, Any] = {
        "tenant": sa.String(length=63),
        "endpoint": sa.String(length=200),
        "hour": sa.Integer(),
        "day": sa.Integer(),
        "tag": tag,
    }
    for table, keys in _KEYS.items():
        op.create_table(
            table,
            *(sa.Column(name, types[name], autoincrement=False, nullable=False) for name in keys),
            *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
            sa.PrimaryKeyConstraint(*keys),
        )
        op.execute(_fill(dialect, table))
    op.drop_index("ix_usage_days_day", table_name="usage_days")
    _create_index("tenant", "day", "subject", "endpoint")
    # Last: calls wait from here to the end of this transaction.
    if dialect == "postgresql":
        _create_triggers_postgresql()
    else:
        _create_triggers_sqlite()


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER jobs_usage_delete ON jobs")
        op.execute("DROP TRIGGER jobs_usage_update ON jobs")
        op.execute("DROP FUNCTION keep_usage_of_jobs()")
    else:
        for name in ("add", "remove", "delete"):
            op.execute(f"DROP TRIGGER jobs_usage_{name}")
    op.drop_index("ix_usage_days_day", table_name="usage_days")
    _create_index("tenant", "day", "endpoint", "subject")
    for table in _KEYS:
        op.drop_table(table)

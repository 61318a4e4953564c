"""The tables of what was used, added up; the directory, jobs and accounts are in `schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from proxy.stores.ledger import UNITS
from proxy.stores.sql.alert_tables import metadata

#: Of an index that SQLite does not have.
_ONLY_POSTGRESQL = {"dialect": "postgresql"}
#: Whole units and the rest of millionths are apart: all millionths of a large tenant together are more than 64 bits
#: hold.
USAGE_SUMS = ("calls", *(f"{unit}_{part}" for unit in UNITS for part in ("whole", "rest")))
#: What counted jobs used, by the day on which they were submitted, counted from 1970.
usage_days = Table(
    "usage_days",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("endpoint", String(200), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in USAGE_SUMS),
    # A page of a report reads its groups in their order, which is that of bytes. In PostgreSQL these two sort texts so;
    # its primary key sorts them as the locale does. SQLite's primary key is in the order of the second.
    Index("ix_usage_days_day", "tenant", "day", "subject", "endpoint"),
    Index("ix_usage_days_subject", "tenant", "subject", "day", "endpoint", info=_ONLY_POSTGRESQL),
)

#: The sums of `usage_days` over all subjects. Triggers keep them, so that what an older version counts is in them too.
usage_totals = Table(
    "usage_totals",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("endpoint", String(200), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in USAGE_SUMS),
)

#: The sums of the counted jobs that are kept, by hour and by tag; `tag` is '' for jobs without one. Triggers of `jobs`
#: keep them, so that they follow an older version, the removal of jobs, and tags that are forgotten.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("endpoint", String(200), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in USAGE_SUMS),
)
usage_tags = Table(
    "usage_tags",
    metadata,
    Column("tenant", String(63), primary_key=True),
    # In PostgreSQL sorted as bytes are.
    Column("tag", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("endpoint", String(200), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in USAGE_SUMS),
)

#: What grants paid of counted jobs, by the window of their accounts and the day of `usage_days`.
grant_days = Table(
    "grant_days",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("window", String(16), primary_key=True),
    Column("unit", String(32), primary_key=True),
    Column("paid_whole", BigInteger, nullable=False),
    Column("paid_rest", BigInteger, nullable=False),
)

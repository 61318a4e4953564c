"""The tables, described once for SQLite and PostgreSQL. Times are seconds since 1970 UTC."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from proxy.stores.ledger import UNITS

metadata = MetaData()

#: One row; its number grows with every change to plans, tenants, keys or revocations.
directory_version = Table(
    "directory_version",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
)

plans = Table(
    "plans",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("document", JSON, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("document", JSON, nullable=False),
)

tenant_keys = Table(
    "tenant_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(63), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float),
)

revocations = Table(
    "revocations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("session_id", String(64)),
    Column("subject", String(200)),
    Column("issued_before", Float, nullable=False),
    Column("expires_at", Float, nullable=False, index=True),
    UniqueConstraint("tenant", "session_id"),
)

#: Every call that costs something, and so the ledger's entries. `charges` and `used` are JSON, amounts in millionths.
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("request_id", String(128), unique=True),
    Column("kind", String(16), nullable=False),
    Column("endpoint", String(200), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("charges", JSON, nullable=False),
    Column("used", JSON, nullable=False),
    Column("submitted_at", Float, nullable=False),
    Column("checked_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("ix_jobs_owner", "tenant", "subject", "submitted_at"),
    Index("ix_jobs_state", "state", "checked_at"),
)

#: What removed jobs used, by the day on which they were submitted, counted from 1970. Whole units and the rest of
#: millionths are apart: all millionths of a large tenant together are more than 64 bits hold.
usage_days = Table(
    "usage_days",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("endpoint", String(200), primary_key=True),
    Column("calls", BigInteger, nullable=False),
    *(Column(f"{unit}_{part}", BigInteger, nullable=False) for unit in UNITS for part in ("whole", "rest")),
)

#: The accounts. `used` and `reserved` are millionths of the unit.
quota_usage = Table(
    "quota_usage",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("unit", String(32), primary_key=True),
    Column("window", String(16), primary_key=True),
    Column("window_start", BigInteger, primary_key=True),
    Column("used", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
)

#: The first outcome of a call that came with an Idempotency-Key.
idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("key_hash", String(64), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("job_id", String(32), nullable=False),
    Column("answer", JSON),
    Column("created_at", Float, nullable=False, index=True),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("content_type", String(200), nullable=False),
    Column("file_url", Text, nullable=False),
    Column("upstream_url", Text, nullable=False),
    Column("max_bytes", BigInteger, nullable=False),
    Column("plan", String(63), nullable=False),
    Column("expires_at", Float, nullable=False, index=True),
    Column("size", BigInteger),
    Column("in_parts", Boolean, nullable=False, server_default=false()),
    Column("session_id", String(64)),
    Column("issued_at", Float),
)

#: The latest attempt at each part of an upload; its etag is there once fal has it.
upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload", String(64), ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("attempt", String(32), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("etag", String(200)),
)

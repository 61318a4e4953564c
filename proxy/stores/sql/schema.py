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
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from proxy.stores.ledger import DEFAULT_UPSTREAM
from proxy.stores.sql.alert_tables import alert_deliveries as alert_deliveries
from proxy.stores.sql.alert_tables import alert_receivers as alert_receivers
from proxy.stores.sql.alert_tables import alerts as alerts
from proxy.stores.sql.alert_tables import metadata as metadata
from proxy.stores.sql.alert_tables import spend_hours as spend_hours
from proxy.stores.sql.usage_tables import USAGE_SUMS as USAGE_SUMS
from proxy.stores.sql.usage_tables import grant_days as grant_days
from proxy.stores.sql.usage_tables import usage_days as usage_days
from proxy.stores.sql.usage_tables import usage_hours as usage_hours
from proxy.stores.sql.usage_tables import usage_tags as usage_tags
from proxy.stores.sql.usage_tables import usage_totals as usage_totals

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
    # Beside the document: a plan file that is applied again does not resume its tenants.
    Column("suspended_at", Float),
)

#: What the directory knows of an endpoint beside its schema: its price.
endpoints = Table(
    "endpoints",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("document", JSON, nullable=False),
)

#: Tenants that were deleted. `records` is the name under which their jobs and sums are kept.
former_tenants = Table(
    "former_tenants",
    metadata,
    Column("records", String(63), primary_key=True),
    Column("id", String(63), nullable=False),
    Column("deleted_at", Float, nullable=False),
    Column("is_cleared", Boolean, nullable=False),
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
    Column("subject_digest", String(64)),
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
    Column("upstream", String(63), nullable=False, server_default=DEFAULT_UPSTREAM),
    Column("session", String(64)),
    Column("tags", JSON(none_as_null=True)),
    Index("ix_jobs_owner", "tenant", "subject", "submitted_at"),
    Index("ix_jobs_tenant", "tenant", "submitted_at"),
    Index("ix_jobs_state", "state", "checked_at"),
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

overrides = Table(
    "overrides",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("plan", String(63)),
    Column("limits", JSON(none_as_null=True)),
    Column("until", Float, nullable=False),
)

#: Credits. What calls took from each stands in `quota_usage`.
grants = Table(
    "grants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("unit", String(32), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("reason", String(200), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("key_hash", String(64)),
    UniqueConstraint("tenant", "key_hash"),
    Index("ix_grants_holder", "tenant", "subject", "unit", "expires_at", "id"),
    Index("ix_grants_tenant", "tenant", "created_at", "id"),
)

#: What calls of a class usually use, in millionths of the unit. A process writes what it has learned once a minute.
learned_uses = Table(
    "learned_uses",
    metadata,
    Column("endpoint", String(200), primary_key=True),
    Column("picture_class", Integer, primary_key=True, autoincrement=False),
    Column("token_class", Integer, primary_key=True, autoincrement=False),
    Column("tokens", BigInteger),
    Column("compute_seconds", BigInteger),
    Column("learned_at", Float, nullable=False),
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
    Column("tags", JSON(none_as_null=True)),
    Column("newest_revocation", Integer),
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

#: The audit log. `document` is the text that `hash` is over; `at` and `tenant` stand in it too.
audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("document", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_audit_tenant", "tenant", "number"),
)

#: One row: the newest entry of the audit log, and the newest of those that were removed as past their time.
audit_chain = Table(
    "audit_chain",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("head_number", BigInteger, nullable=False),
    Column("head_hash", String(64), nullable=False),
    Column("anchor_number", BigInteger, nullable=False),
    Column("anchor_hash", String(64), nullable=False),
)

#: The end users whom entries of the audit log concern: entries hold the reference. `last_number` is the newest entry.
audit_subjects = Table(
    "audit_subjects",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("reference", String(16), nullable=False, unique=True),
    Column("last_number", BigInteger, nullable=False, index=True),
)

#: Named tokens of the admin API.
admin_tokens = Table(
    "admin_tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

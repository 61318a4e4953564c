"""The tables of alerts, which `schema` shows with all others. Times are seconds since 1970 UTC."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, MetaData, String, Table

metadata = MetaData()

alerts = Table(
    "alerts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("at", Float, nullable=False),
    Column("details", JSON, nullable=False),
    Index("ix_alerts_at", "at", "id"),
    Index("ix_alerts_tenant", "tenant", "at", "id"),
)

#: What is sent of each alert to whom: a receiver is a tenant, or '' for the operator. `tenant`, `subject` and `at` are
#: those of the alert.
alert_deliveries = Table(
    "alert_deliveries",
    metadata,
    Column("alert", String(32), primary_key=True),
    Column("receiver", String(63), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("at", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    # When it began to wait, and when its state changed or an attempt failed.
    Column("since", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("problem", String(200), nullable=False),
    Index("ix_alert_deliveries_state", "state", "receiver", "at", "alert"),
    Index("ix_alert_deliveries_at", "at"),
    Index("ix_alert_deliveries_tenant", "tenant", "subject"),
)

#: The queue of each receiver. `tenant` is '' for the operator; `next_at` is null while nothing waits.
alert_receivers = Table(
    "alert_receivers",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("next_at", Float, index=True),
    Column("claim", String(32), nullable=False),
    Column("claimed_until", Float, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("failing_since", Float),
)

#: What counted jobs of a tenant used, by the hour in which they were submitted, counted from 1970; of the last days.
#: Nothing is charged by it, so it need not be exact: a float has no sum that is too large.
spend_hours = Table(
    "spend_hours",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("requests", Float, nullable=False),
    Column("usd", Float, nullable=False),
    Index("ix_spend_hours_hour", "hour"),
)

"""A migration that only adds, so that the earlier version keeps running."""

from __future__ import annotations

from proxy.stores.sql import migrate

#: Revisions are numbers, with zeros in front.
NEXT, PREVIOUS = (f"{int(migrate.newest()) + step:04}" for step in (1, -1))
EXPANSION = (
    "ALTER TABLE jobs ADD COLUMN note VARCHAR(40)",
    "ALTER TABLE jobs ADD COLUMN priority INTEGER DEFAULT 0 NOT NULL",
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, note VARCHAR(40) NOT NULL)",
    "CREATE INDEX ix_jobs_note ON jobs (note)",
)

"""The audit log: an author for the changes that tests make without a request or a command, and what a file has."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

from proxy.stores.audit import Author

AUTHOR = Author("command:tester", 1_000_000_000.0, "machine")


def read_entries(database_url: str) -> list[dict[str, Any]]:
    """The entries of the audit log in a SQLite file, oldest first."""
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as database:
        return [json.loads(text) for (text,) in database.execute("SELECT document FROM audit ORDER BY number")]

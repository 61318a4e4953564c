"""What a readiness check writes, and takes back."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import insert

from proxy.stores.sql.direct import Executor
from proxy.stores.sql.schema import jobs

_insert = insert(jobs)
_ROW: dict[str, Any] = {
    "request_id": None,
    "kind": "probe",
    "endpoint": "",
    "tenant": "",
    "subject": "",
    "state": "released",
    "charges": [],
    "used": {},
    "submitted_at": 0.0,
    "checked_at": 0.0,
    "expires_at": 0.0,
}


def write(connection: Executor) -> None:
    """Insert a job without an owner, as every call inserts one."""
    connection.execute(_insert, [{"id": secrets.token_hex(16), **_ROW}])

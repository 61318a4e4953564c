"""What the log line of a request says beside its route, status and duration."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

#: Keys in the state of a request.
FIELDS, QUIET = "log_fields", "quiet"


def bind(scope: Scope, **fields: Any) -> None:
    """Add fields to the log line of a request."""
    scope["state"].setdefault(FIELDS, {}).update(fields)


def quiet(scope: Scope) -> None:
    """Log a request at `debug` only: a line for each poll buries those of the calls that do something."""
    scope["state"][QUIET] = True

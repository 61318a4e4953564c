"""The author of a change that a request makes, for the audit log."""

from __future__ import annotations

from starlette.requests import Request

from proxy.stores.audit import Author


def author_of(request: Request, name: str, now: float) -> Author:
    """Return the author of what a request changes; `name` is that of the credential it came with."""
    client = request.client
    return Author(name, now, client.host if client else "", request.scope["state"]["request_id"])

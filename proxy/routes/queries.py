"""Reading the query of our own routes: a key that is not known is an error, not a silence."""

from __future__ import annotations

from starlette.requests import Request

from proxy.errors import BadRequest


def known_query(request: Request, *names: str) -> dict[str, str]:
    """Read the query's values by key.

    Raises:
        BadRequest: a key that is none of `names`, or one that stands there twice.
    """
    if not request.scope["query_string"]:
        return {}
    pairs = request.query_params.multi_items()
    found = dict(pairs)
    if unknown := sorted(set(found) - set(names)):
        use = f"use {', '.join(names)}" if names else "this address takes none"
        raise BadRequest(f"The query key {unknown[0][:40]!r} is unknown; {use}.")
    if len(found) != len(pairs):
        raise BadRequest("The query contains a key twice.")
    return found


def parse_switch(name: str, given: str | None) -> bool:
    """Return whether a query switches something on that is off by default.

    Raises:
        BadRequest: it is neither 0 nor 1.
    """
    if given not in (None, "0", "1"):
        raise BadRequest(f"{name} must be 0 or 1.")
    return given == "1"

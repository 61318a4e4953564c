"""Reading the query and the path of our own routes: a key that is not known is an error, not a silence."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from proxy.errors import BadRequest


def known_query(request: Request, *names: str) -> dict[str, str]:
    """Read the query's values by key.

    Raises:
        BadRequest: a key that is none of `names`, one that stands there twice, or what is not UTF-8.
    """
    if not request.scope["query_string"]:
        return {}
    _check_utf_8("query", request.scope["query_string"])
    pairs = request.query_params.multi_items()
    found = dict(pairs)
    if unknown := sorted(set(found) - set(names)):
        use = f"use {', '.join(names)}" if names else "this address takes none"
        raise BadRequest(f"The query key {unknown[0][:40]!r} is unknown; {use}.")
    if len(found) != len(pairs):
        raise BadRequest("The query contains a key twice.")
    return found


def subject_in_path(request: Request) -> str:
    """Return the name of an end user that the path ends with.

    Raises:
        BadRequest: it is not UTF-8. What a lenient reader makes of it would be the name of someone else.
    """
    _check_utf_8("path", request.scope["raw_path"])
    subject: str = request.path_params["subject"]
    return subject


def _check_utf_8(part: str, given: bytes) -> None:
    if b"%" not in given:
        return
    try:
        unquote_to_bytes(given).decode()
    except UnicodeDecodeError:
        raise BadRequest(f"The {part} is not UTF-8 in percent-encoding, as %C3%BC for \u00fc.") from None


def parse_switch(name: str, given: str | None) -> bool:
    """Return whether a query switches something on that is off by default.

    Raises:
        BadRequest: it is neither 0 nor 1.
    """
    if given not in (None, "0", "1"):
        raise BadRequest(f"{name} must be 0 or 1.")
    return given == "1"

"""The ids of requests, under which a caller's developer and the log find them."""

from __future__ import annotations

import itertools
import re
import secrets

#: Requests are numbered, after what no other process begins with: drawing lots for each would cost more than routing.
_PROCESS, _numbers = secrets.token_hex(4), itertools.count()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")


def new_request_id() -> str:
    return f"{_PROCESS}{next(_numbers):08x}"


def accept_request_id(given: str | None) -> str | None:
    """Give the id that a caller wants for its request, if it has the form of one."""
    return given if given and _REQUEST_ID.fullmatch(given) else None

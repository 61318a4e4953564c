"""Bounds on the shape of JSON, checked on its bytes before a parser builds objects of it.

Twelve megabytes of `[[],[],…]` are millions of objects: gigabytes of memory, and seconds in which nothing else runs.
"""

from __future__ import annotations

import re

from proxy.errors import BadRequest

#: How deep values may lie in one another, and how many there may be. Inputs of models are small but for their texts.
MAX_DEPTH = 64
MAX_NODES = 100_000
#: A whole string, also one without an end, or a character that opens, closes or separates values. Possessive: no text
#: makes the search go back.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)


def check_bounds(body: bytes | bytearray) -> None:
    """Refuse JSON that is too deep or has too many values.

    Raises:
        BadRequest: it is.
    """
    opened = body.count(b"[") + body.count(b"{")
    # A pair in an object is a separator more and a value more, so values are counted by what stands before them.
    if opened <= MAX_DEPTH and opened + body.count(b",") < MAX_NODES:
        return
    _check_tokens(body)


def _check_tokens(body: bytes | bytearray) -> None:
    """The same, counting only what stands outside of strings; ends at the first value too many."""
    depth, nodes = 0, 1
    for match in _TOKEN.finditer(body):
        token = body[match.start()]
        if token in b"[{":
            depth += 1
            nodes += 1
        elif token in b"]}":
            depth -= 1
        elif token in b",":
            nodes += 1
        if depth > MAX_DEPTH:
            raise BadRequest(f"The JSON of the body is nested too deeply: more than {MAX_DEPTH} levels.")
        if nodes > MAX_NODES:
            raise BadRequest(f"The JSON of the body has more than {MAX_NODES} values.")

"""JSON that an operator writes, in a file or an option: read as it is meant, or refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_strictly(text: str | bytes) -> Any:
    """Parse JSON in which each object has a key once: readers differ in which one counts (RFC 8259, section 4).

    Raises:
        ValueError: it is not JSON, has a key twice or a number that JSON has not, or is nested too deeply; says which.
    """
    try:
        return json.loads(text, object_pairs_hook=_make_object, parse_constant=_refuse_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"the key {name[:100]!r} stands in it twice; keep one")
        document[name] = value
    return document


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is no number of JSON")

"""Queries of the console's own forms."""

from __future__ import annotations


def drop_empty(query: dict[str, str]) -> dict[str, str]:
    """A query without the fields that were left empty."""
    return {name: value for name, value in query.items() if value}

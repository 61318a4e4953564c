"""Queries of the console's own forms."""

from __future__ import annotations


def drop_empty(query: dict[str, str]) -> dict[str, str]:
    """Leave out the fields of a query that are empty."""
    return {name: value for name, value in query.items() if value}

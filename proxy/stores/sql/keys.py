"""Rows that are named by their keys.

SQLite reads a whole table where a key of several columns is looked for in a list: keys are compared one by one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, bindparam, or_


@cache
def is_named(table: Table, number: int) -> ColumnElement[bool]:
    """Make the condition of a row that has one of so many keys."""
    keys = (and_(*(column == bindparam(f"{column.name}_{at}") for column in table.primary_key)) for at in range(number))
    return or_(*keys)


def key_values(table: Table, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """List the values of `is_named`, from rows that begin with the key."""
    names = [column.name for column in table.primary_key]
    return {f"{name}_{at}": value for at, row in enumerate(rows) for name, value in zip(names, row, strict=False)}

"""Reads and deletes rows of a SQLite file by their keys, some with each statement.

Without the work of its triggers, a removed job takes 52 µs of processor time; with SQLAlchemy and a list of keys it
takes 117, and every call waits for the file meanwhile. SQLite also gives the interpreter up for each step of a
statement, and a busy one comes back late: a deletion is one step.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

#: Not a type for mypy: the columns are known when it runs.
_new_row: Any = namedtuple


class KeyedRows:
    """The SQL for the rows of one table.

    Args:
        key: names of the columns of its key.
        columns: names of what is read, the key first.
        only: a condition on the rows that are read.
    """

    def __init__(self, table: str, key: Sequence[str], columns: Sequence[str], only: str = "TRUE") -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        self._selection = f'SELECT {names} FROM "{table}" WHERE {only} AND '
        self._deletion = f'DELETE FROM "{table}" WHERE '
        self._key = tuple(key)
        self._row = _new_row(table, columns)

    def read(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """Read rows again that begin with the key, as named tuples; those that are gone are missing."""
        return list(map(self._row._make, connection.execute(self.selection(len(rows)), self._values(rows)).fetchall()))

    def delete(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> int:
        """Delete rows that begin with the key; return how many there were."""
        return connection.execute(self.deletion(len(rows)), self._values(rows)).rowcount

    def selection(self, number: int) -> str:
        """Write the statement that reads so many rows; its parameters are their keys."""
        return f"{self._selection}({_is_one_of(self._key, number)})"

    def deletion(self, number: int) -> str:
        """Write the statement that deletes so many rows; its parameters are their keys."""
        return f"{self._deletion}{_is_one_of(self._key, number)}"

    def _values(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        return list(chain.from_iterable(row[: len(self._key)] for row in rows))


@lru_cache
def _is_one_of(key: tuple[str, ...], number: int) -> str:
    """Write the condition of a row that has one of so many keys.

    SQLite reads a whole table where a key of several columns is looked for in a list.
    """
    if len(key) == 1:
        return f'"{key[0]}" IN ({", ".join("?" * number)})'
    one = " AND ".join(f'"{name}" = ?' for name in key)
    return " OR ".join([f"({one})"] * number)

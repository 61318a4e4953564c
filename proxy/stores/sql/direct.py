"""SQLite without detours: statements that SQLAlchemy puts into words once, run by the driver itself.

What SQLAlchemy does for every execution takes ten times as long as SQLite does, which is a function call away.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from cachetools import LRUCache
from sqlalchemy import Dialect, Select
from sqlalchemy.sql.base import Executable
from sqlalchemy.types import TypeEngine

#: A lookup is put into words for every length of its list, and there are some tens of statements of each.
KEPT_STATEMENTS = 512
#: The values of one row by name, those of many rows, or by one name all the keys of a lookup.
Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Executor(Protocol):
    """What the ledger needs of a connection: one of SQLAlchemy's, or `Direct`."""

    @property
    def dialect(self) -> Dialect: ...

    def execute(self, statement: Any, values: Any, /) -> Iterable[Any]:
        """The rows that a statement finds, with the columns' names as attributes."""


class Direct:
    """A connection to SQLite within a transaction of one thread."""

    def __init__(self, connection: sqlite3.Connection, prepared: Prepared) -> None:
        self.dialect = prepared.dialect
        self._connection = connection
        self._prepared = prepared

    def execute(self, statement: Executable, values: Values, /) -> list[Any]:
        if isinstance(values, Mapping):
            ((_, keys),) = values.items()
            lookup = self._prepared.lookup(statement, keys)
            return lookup.rows(self._connection.execute(lookup.sql, lookup.bound(keys)))
        change = self._prepared.change(statement)
        self._connection.executemany(change.sql, map(change.bound, values))
        return []


class Prepared:
    """Statements in the words of a dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._known: LRUCache[tuple[Executable, int], Any] = LRUCache(KEPT_STATEMENTS)

    def lookup(self, statement: Executable, keys: Sequence[Any]) -> _Lookup:
        place = statement, len(keys)
        found: _Lookup | None = self._known.get(place)
        if found is None:
            found = self._known[place] = _Lookup(statement, keys, self.dialect)
        return found

    def change(self, statement: Executable) -> _Change:
        found: _Change | None = self._known.get((statement, 0))
        if found is None:
            found = self._known[statement, 0] = _Change(statement, self.dialect)
        return found


class _Lookup:
    """A select with a list of keys, which are texts and numbers, or tuples of them."""

    def __init__(self, statement: Any, keys: Sequence[Any], dialect: Dialect) -> None:
        assert isinstance(statement, Select)
        (name,) = statement.compile().params
        how = {"render_postcompile": True}
        self.sql = str(statement.params({name: keys}).compile(dialect=dialect, compile_kwargs=how))
        columns = statement.selected_columns
        self._row = namedtuple("Row", columns.keys())  # type: ignore[misc]
        readers = [_implementation(column.type, dialect).result_processor(dialect, None) for column in columns]
        self._readers = [(place, read) for place, read in enumerate(readers) if read is not None]

    @staticmethod
    def bound(keys: Sequence[Any]) -> Sequence[Any]:
        return list(chain.from_iterable(keys)) if isinstance(keys[0], tuple) else keys

    def rows(self, found: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [self._row(*self._read(row)) for row in found]

    def _read(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for place, read in self._readers:
            values[place] = read(values[place])
        return values


class _Change:
    """An insert or an update of one row, whose values have names."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup
        types = {name: bind.type for name, bind in compiled.binds.items()}
        writers = {name: _implementation(types[name], dialect).bind_processor(dialect) for name in self._names}
        self._writers = [(place, write) for place, write in enumerate(map(writers.get, self._names)) if write]

    def bound(self, values: Mapping[str, Any]) -> Sequence[Any]:
        bound = [values[name] for name in self._names]
        for place, write in self._writers:
            bound[place] = write(bound[place])
        return bound


def _implementation(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    return kind.dialect_impl(dialect)

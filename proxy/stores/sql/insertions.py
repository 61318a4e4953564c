"""Insert statements for rows whose keys may be there already."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Table


@cache
def insert_missing(dialect: str, table: Table) -> Any:
    """Make the statement that inserts those rows whose key is not there yet, in the order given."""
    return insert_of(dialect, table).on_conflict_do_nothing()


def insert_of(dialect: str, table: Table) -> Any:
    """Give a dialect's own insertion, which can say what happens to a row whose key is there."""
    # Imported here: the dialect that is not used is best not loaded.
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_postgresql

        return insert_postgresql(table)
    from sqlalchemy.dialects.sqlite import insert as insert_sqlite

    return insert_sqlite(table)


@cache
def add_rows(dialect: str, table: Table) -> Any:
    """Make the statement that inserts rows, and adds their figures to those whose keys are there."""
    statement = insert_of(dialect, table)
    figures = [column for column in table.c if not column.primary_key]
    more = {column.name: column + statement.excluded[column.name] for column in figures}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=more)

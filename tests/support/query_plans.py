"""How a database would run the statements that it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event

_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE")
_EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}


class Plan(NamedTuple):
    statement: str
    steps: list[str]

    @property
    def whole_tables(self) -> list[str]:
        """The steps that read a table, or an index, from its start to its end."""
        tables = [step for step in self.steps if step.startswith("SCAN ") or "Seq Scan" in step]
        return [step for step in tables if "CONSTANT ROW" not in step]


@contextmanager
def query_plans(*avoided: str) -> Iterator[list[Plan]]:
    """Collect the plan of each statement before SQLAlchemy executes it, on every connection.

    `avoided` are steps (`sort`) that PostgreSQL takes only where there is no other way.
    """
    plans = list[Plan]()

    def explain(
        connection: Connection, cursor: Any, statement: str, parameters: Any, _context: object, is_many: bool
    ) -> None:
        if not statement.lstrip().startswith(_EXPLAINED):
            return
        if connection.dialect.name == "postgresql":
            # It reads a small table whole, whatever indexes it has.
            for way in ("seqscan", *avoided):
                cursor.execute(f"SET LOCAL enable_{way} = off")
        cursor.execute(_EXPLAIN[connection.dialect.name] + statement, parameters[0] if is_many else parameters)
        plans.append(Plan(statement, [str(row[-1]).strip() for row in cursor.fetchall()]))

    event.listen(Engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(Engine, "before_cursor_execute", explain)

"""Adds what settled jobs of a SQLite file used to the sums of usage.

SQLite gives the interpreter up for each step of a statement, and a busy one comes back late, while all calls wait for
the file. So SQLite itself adds up: each of these statements is one step, however many jobs there are. Each finds the
same jobs, as nothing else changes the file meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.stores.grants import GRANT_WINDOWS
from proxy.stores.ledger import UNITS

#: The jobs that have waited longest. Its parameter is how many.
_FIND = "SELECT {} FROM jobs WHERE state = 'settled' ORDER BY checked_at, rowid LIMIT ?"
_AMOUNTS = {unit: f"CAST(coalesce(json_extract(used, '$.{unit}'), 0) AS INTEGER)" for unit in UNITS}


def _add_to(table: str, keys: dict[str, str], sums: dict[str, str]) -> str:
    """Write the statement that adds sums, given as SQL, to the rows of a table with these keys."""
    columns = ", ".join([*keys, *sums])
    values = ", ".join([*keys.values(), *sums.values()])
    more = ", ".join(f"{name} = {name} + excluded.{name}" for name in sums)
    found = _FIND.format("tenant, subject, endpoint, submitted_at, used")
    return (
        f"INSERT INTO {table} ({columns}) SELECT {values} FROM ({found}) WHERE TRUE"
        f" GROUP BY {', '.join(keys.values())} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {more}"
    )


_ADD_TO_DAYS = _add_to(
    "usage_days",
    {name: name for name in ("tenant", "subject", "endpoint")} | {"day": "CAST(submitted_at / 86400.0 AS INTEGER)"},
    {"calls": "count(*)"}
    | {f"{unit}_whole": f"sum({amount} / 1000000)" for unit, amount in _AMOUNTS.items()}
    | {f"{unit}_rest": f"sum({amount} % 1000000)" for unit, amount in _AMOUNTS.items()},
)
_ADD_TO_HOURS = _add_to(
    "spend_hours",
    {"tenant": "tenant", "hour": "CAST(submitted_at / 3600.0 AS INTEGER)"},
    {"requests": "count(*)", "usd": f"sum({_AMOUNTS['usd']} / 1000000.0)"},
)
#: Hardly any call is paid by a grant.
_FIND_GRANTED = f"SELECT * FROM ({_FIND.format('tenant, submitted_at, used, charges')}) WHERE " + " OR ".join(
    f"instr(charges, '\"{window}\"')" for window in sorted(GRANT_WINDOWS)
)
_ADD_TO_GRANTS = (
    "INSERT INTO grant_days (tenant, day, window, unit, paid_whole, paid_rest)"
    " VALUES (:tenant, :day, :window, :unit, :paid_whole, :paid_rest) ON CONFLICT (tenant, day, window, unit)"
    " DO UPDATE SET paid_whole = paid_whole + excluded.paid_whole, paid_rest = paid_rest + excluded.paid_rest"
)
_MARK = f"UPDATE jobs SET state = 'counted' WHERE rowid IN ({_FIND.format('rowid')})"


def find_granted(connection: sqlite3.Connection, most: int) -> list[tuple[Any, ...]]:
    """Find those of the next jobs that grants may have paid for: tenant, time, and in JSON what each used, and its
    charges."""
    return connection.execute(_FIND_GRANTED, [most]).fetchall()


def add_granted(connection: sqlite3.Connection, sums: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to those of `grant_days` with their keys."""
    connection.executemany(_ADD_TO_GRANTS, sums)


def count_settled(connection: sqlite3.Connection, most: int) -> int:
    """Add what the next jobs used to the sums of their days and hours, and mark them; return how many there were."""
    for addition in (_ADD_TO_DAYS, _ADD_TO_HOURS):
        connection.execute(addition, [most])
    return connection.execute(_MARK, [most]).rowcount

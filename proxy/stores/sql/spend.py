"""Sums of hours in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, or_, select

from proxy.stores.spend import HOUR_SECONDS, SpendHour
from proxy.stores.sql.database import Database
from proxy.stores.sql.insertions import add_rows
from proxy.stores.sql.schema import spend_hours

_MILLION = 1_000_000


class SqlSpend:
    """`SpendStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_above(self, hours: Collection[int], floors: Mapping[str, float]) -> Sequence[SpendHour]:
        is_above = or_(*(spend_hours.c[unit] >= floor for unit, floor in floors.items()))
        return await self._read(spend_hours.c.hour.in_(hours), is_above)

    async def list_hours(self, tenants: Collection[str], first: int, end: int) -> Sequence[SpendHour]:
        hour = spend_hours.c.hour
        return await self._read(spend_hours.c.tenant.in_(tenants), hour >= first, hour < end)

    async def _read(self, *which: Any) -> Sequence[SpendHour]:
        async with self._database.reading() as connection:
            return [SpendHour(**row._mapping) for row in await connection.execute(select(spend_hours).where(*which))]


def add_to_hours(connection: Connection, settled: Iterable[Any]) -> None:
    """Add what settled jobs used to the sums of the hours in which they were submitted."""
    sums: defaultdict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for job in settled:
        found = sums[job.tenant, int(job.submitted_at // HOUR_SECONDS)]
        found[0] += 1
        found[1] += job.used.get("usd", 0) / _MILLION
    rows = [
        {"tenant": tenant, "hour": hour, "requests": requests, "usd": usd}
        for (tenant, hour), (requests, usd) in sorted(sums.items())
    ]
    if rows:
        connection.execute(add_rows(connection.dialect.name, spend_hours), rows)

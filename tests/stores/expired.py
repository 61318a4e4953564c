"""Short ways to remove what is past its time, and to look at what is left."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Table, func, select

from proxy.stores.retention import Expiry, Row
from proxy.stores.sql import SqlStores
from proxy.stores.sql.database import Database


def expiry(**moments: float) -> Expiry:
    """Nothing is past its time but what is named."""
    facts = {**dict.fromkeys(("jobs", "idempotency", "uploads", "revocations", "alerts", "audit"), 0.0), **moments}
    return Expiry(accounts={}, **facts)


async def remove(stores: SqlStores, kind: str, found: Sequence[Row]) -> int:
    """Remove found rows, however long it takes."""
    tried = total = 0
    while tried < len(found):
        removal = await stores.retention.remove(kind, found[tried:], 60.0)
        assert removal is not None
        tried += removal.tried
        total += removal.removed
    return total


async def removed(stores: SqlStores, kind: str, past: Expiry, most: int = 50) -> int:
    """Remove all that is past its time, a batch after the other."""
    total = 0
    while found := await stores.retention.find(kind, past, most):
        rows = await remove(stores, kind, found)
        assert rows == len(found)
        total += rows
    return total


async def count(url: str, table: Table) -> int:
    database = Database(url)
    try:
        async with database.reading() as connection:
            return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())
    finally:
        await database.close()

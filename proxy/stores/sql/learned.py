"""What calls usually use, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import delete, func, select

from proxy.stores.learned import LearnedUse
from proxy.stores.ledger import SizeClass
from proxy.stores.sql.database import Database
from proxy.stores.sql.insertions import insert_of
from proxy.stores.sql.schema import learned_uses as rows


class SqlLearned:
    """`LearnedStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, since: float, most: int) -> Sequence[LearnedUse]:
        newest = select(rows).where(rows.c.learned_at >= since).order_by(rows.c.learned_at.desc()).limit(most)
        async with self._database.reading() as connection:
            return [_learned_use(row) for row in await connection.execute(newest)]

    async def save(self, uses: Sequence[LearnedUse], at: float, forgotten_before: float) -> None:
        async with self._database.writing() as connection:
            await connection.execute(delete(rows).where(rows.c.learned_at < forgotten_before))
            # In one order, so that processes that write at once do not wait for each other in a circle.
            values = [_values(use, at) for use in sorted(uses, key=lambda use: use.size)]
            await connection.execute(_insert_or_update(connection.dialect.name), values)


@cache
def _insert_or_update(dialect: str) -> Any:
    inserted = insert_of(dialect, rows)
    known = {name: func.coalesce(inserted.excluded[name], rows.c[name]) for name in ("tokens", "compute_seconds")}
    values = {**known, "learned_at": inserted.excluded.learned_at}
    return inserted.on_conflict_do_update(index_elements=list(rows.primary_key), set_=values)


def _values(use: LearnedUse, at: float) -> dict[str, Any]:
    size = {"endpoint": use.size.endpoint, "picture_class": use.size.picture, "token_class": use.size.tokens}
    return {**size, "tokens": use.tokens, "compute_seconds": use.compute_seconds, "learned_at": at}


def _learned_use(row: Any) -> LearnedUse:
    return LearnedUse(SizeClass(row.endpoint, row.picture_class, row.token_class), row.tokens, row.compute_seconds)

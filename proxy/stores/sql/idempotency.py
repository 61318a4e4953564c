"""The first outcome of calls that came with an Idempotency-Key, in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Delete, Update, and_, delete, select, update

from proxy.stores.idempotency import Claim
from proxy.stores.sql.database import Database
from proxy.stores.sql.insertions import insert_missing
from proxy.stores.sql.schema import idempotency as rows


class SqlIdempotency:
    """`IdempotencyStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, claim: Claim, forgotten_before: float) -> Claim | None:
        self._database.join()
        return await self._database.write(partial(_claim, claim=claim, forgotten_before=forgotten_before))

    async def find(self, claim: Claim) -> Claim | None:
        async with self._database.reading() as connection:
            found = (await connection.execute(select(rows).where(*_matches(claim)))).one_or_none()
            return Claim(**found._mapping) if found else None

    async def take_over(self, claim: Claim, from_job: str) -> bool:
        mine = and_(*_matches(claim), rows.c.job_id == from_job)
        return bool(await self._change(update(rows).where(mine).values(_values(claim))))

    async def finish(self, claim: Claim, answer: Mapping[str, Any]) -> None:
        mine = and_(*_matches(claim), rows.c.job_id == claim.job_id)
        await self._change(update(rows).where(mine).values(answer=answer))

    async def forget(self, claim: Claim) -> None:
        await self._change(delete(rows).where(*_matches(claim), rows.c.job_id == claim.job_id))

    async def is_alone(self) -> bool:
        return self._database.is_alone()

    async def _change(self, statement: Update | Delete) -> int:
        return await self._database.write(lambda connection: connection.execute(statement).rowcount)


def _claim(connection: Connection, *, claim: Claim, forgotten_before: float) -> Claim | None:
    connection.execute(delete(rows).where(*_matches(claim), rows.c.created_at < forgotten_before))
    while True:
        # The second to insert waits for the first transaction, and then finds its row, unless it has been freed in
        # between.
        added = connection.execute(insert_missing(connection.dialect.name, rows).values(_values(claim)))
        if added.rowcount:
            return None
        held = connection.execute(select(rows).where(*_matches(claim))).one_or_none()
        if held is not None:
            return Claim(**held._mapping)


def _matches(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return rows.c.tenant == claim.tenant, rows.c.subject == claim.subject, rows.c.key_hash == claim.key_hash


def _values(claim: Claim) -> dict[str, Any]:
    return {column.name: getattr(claim, column.name) for column in rows.c}

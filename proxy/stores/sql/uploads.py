"""Files on their way to fal, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import upload_parts as parts
from proxy.stores.sql.schema import uploads as rows
from proxy.stores.uploads import WHOLE, Part, Upload


class SqlUploads:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, upload: Upload) -> None:
        async with self._database.writing() as connection:
            await connection.execute(insert(rows).values(asdict(upload)))

    async def get(self, upload_id: str) -> Upload | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(rows).where(rows.c.id == upload_id))).one_or_none()
            return Upload(**row._mapping) if row else None

    async def begin(self, part: Part) -> bool | None:
        async with self._database.writing() as connection:
            most = await _room(connection, part.upload)
            if most is None:
                return None
            others = select(func.sum(parts.c.size)).where(parts.c.upload == part.upload, parts.c.number != part.number)
            if ((await connection.execute(others)).scalar() or 0) + part.size > most:
                return False
            same = and_(parts.c.upload == part.upload, parts.c.number == part.number)
            await connection.execute(delete(parts).where(same))
            await connection.execute(insert(parts).values(asdict(part)))
            return True

    async def is_current(self, part: Part) -> bool:
        wanted = select(parts.c.number).join(rows).where(_attempt(part), rows.c.size.is_(None))
        async with self._database.reading() as connection:
            return (await connection.execute(wanted)).first() is not None

    async def land(self, part: Part, etag: str) -> bool:
        async with self._database.writing() as connection:
            if await _room(connection, part.upload) is None:
                return False
            landed = await connection.execute(update(parts).where(_attempt(part)).values(etag=etag))
            if landed.rowcount and part.number == WHOLE:
                await connection.execute(update(rows).where(rows.c.id == part.upload).values(size=part.size))
            return bool(landed.rowcount)

    async def drop(self, part: Part) -> None:
        async with self._database.writing() as connection:
            await connection.execute(delete(parts).where(_attempt(part)))

    async def list_parts(self, upload_id: str) -> Sequence[Part]:
        wanted = select(parts).where(parts.c.upload == upload_id, parts.c.etag.is_not(None)).order_by(parts.c.number)
        async with self._database.reading() as connection:
            return [Part(**row._mapping) for row in await connection.execute(wanted)]

    async def finish(self, upload_id: str, size: int) -> bool:
        unfinished = and_(rows.c.id == upload_id, rows.c.size.is_(None))
        async with self._database.writing() as connection:
            return bool((await connection.execute(update(rows).where(unfinished).values(size=size))).rowcount)


async def _room(connection: AsyncConnection, upload_id: str) -> int | None:
    """The most bytes of a file that is not over; locks it, so that its parts are counted one after the other."""
    unfinished = select(rows.c.max_bytes).where(rows.c.id == upload_id, rows.c.size.is_(None)).with_for_update()
    most: int | None = (await connection.execute(unfinished)).scalar()
    return most


def _attempt(part: Part) -> ColumnElement[bool]:
    return and_(parts.c.upload == part.upload, parts.c.number == part.number, parts.c.attempt == part.attempt)

"""Files on their way to fal, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Update,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import upload_parts as parts
from proxy.stores.sql.schema import uploads as rows
from proxy.stores.uploads import WHOLE, Part, Upload

#: Of the file of a part. Built once: an expression that is negated refers to itself, so each would be a cycle.
_IS_NOT_OVER = ~exists().where(rows.c.id == parts.c.upload, rows.c.size.is_not(None)).correlate(parts)


class SqlUploads:
    """`UploadStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, upload: Upload) -> None:
        await self._change(insert(rows).values(asdict(upload) | {"tags": list(upload.tags) or None}))

    async def get(self, upload_id: str) -> Upload | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(rows).where(rows.c.id == upload_id))).one_or_none()
            return Upload(**{**row._mapping, "tags": tuple(row.tags or ())}) if row else None

    async def begin(self, part: Part) -> bool | None:
        return await self._database.write(partial(_begin, part=part))

    async def is_current(self, part: Part) -> bool:
        wanted = select(parts.c.number).join(rows).where(_attempt(part), rows.c.size.is_(None))
        async with self._database.reading() as connection:
            return (await connection.execute(wanted)).first() is not None

    async def land(self, part: Part, etag: str) -> bool:
        return await self._database.write(partial(_land, part=part, etag=etag))

    async def drop(self, part: Part) -> None:
        await self._change(delete(parts).where(_attempt(part), _IS_NOT_OVER))

    async def list_parts(self, upload_id: str) -> Sequence[Part]:
        wanted = select(parts).where(parts.c.upload == upload_id, parts.c.etag.is_not(None)).order_by(parts.c.number)
        async with self._database.reading() as connection:
            return [Part(**row._mapping) for row in await connection.execute(wanted)]

    async def finish(self, upload_id: str, size: int) -> bool:
        unfinished = and_(rows.c.id == upload_id, rows.c.size.is_(None))
        return bool(await self._change(update(rows).where(unfinished).values(size=size)))

    async def _change(self, statement: Insert | Update | Delete) -> int:
        return await self._database.write(lambda connection: connection.execute(statement).rowcount)


def _begin(connection: Connection, *, part: Part) -> bool | None:
    most = _room(connection, part.upload)
    if most is None:
        return None
    others = select(func.sum(parts.c.size)).where(parts.c.upload == part.upload, parts.c.number != part.number)
    if (connection.execute(others).scalar() or 0) + part.size > most:
        return False
    same = and_(parts.c.upload == part.upload, parts.c.number == part.number)
    connection.execute(delete(parts).where(same))
    connection.execute(insert(parts).values(asdict(part)))
    return True


def _land(connection: Connection, *, part: Part, etag: str) -> bool:
    if _room(connection, part.upload) is None:
        return False
    landed = connection.execute(update(parts).where(_attempt(part)).values(etag=etag))
    if landed.rowcount and part.number == WHOLE:
        connection.execute(update(rows).where(rows.c.id == part.upload).values(size=part.size))
    return bool(landed.rowcount)


def _room(connection: Connection, upload_id: str) -> int | None:
    """Lock an upload that is not over, so that its parts are counted one by one; return its most bytes."""
    unfinished = select(rows.c.max_bytes).where(rows.c.id == upload_id, rows.c.size.is_(None)).with_for_update()
    most: int | None = connection.execute(unfinished).scalar()
    return most


def _attempt(part: Part) -> ColumnElement[bool]:
    return and_(parts.c.upload == part.upload, parts.c.number == part.number, parts.c.attempt == part.attempt)

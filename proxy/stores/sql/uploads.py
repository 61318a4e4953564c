"""Files on their way to fal, in SQL."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.stores.base import Upload
from proxy.stores.sql import schema
from proxy.stores.sql.engine import reading, writing

_KEPT_SECONDS = 86_400


class SqlUploads:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, upload: Upload) -> None:
        rows = schema.uploads
        async with writing(self._engine) as connection:
            await connection.execute(delete(rows).where(rows.c.expires_at < upload.expires_at - _KEPT_SECONDS))
            await connection.execute(insert(rows).values(asdict(upload)))

    async def get(self, upload_id: str) -> Upload | None:
        async with reading(self._engine) as connection:
            rows = await connection.execute(select(schema.uploads).where(schema.uploads.c.id == upload_id))
            row = rows.one_or_none()
            return Upload(**row._mapping) if row else None

    async def finish(self, upload_id: str, size: int) -> None:
        rows = schema.uploads
        async with writing(self._engine) as connection:
            await connection.execute(update(rows).where(rows.c.id == upload_id).values(size=size))

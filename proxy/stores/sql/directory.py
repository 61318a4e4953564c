"""Tenants, plans, tenant keys and revocations in SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import Table, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.stores.directory import DirectoryRows, Revocation, Revocations, TenantKey
from proxy.stores.sql import schema
from proxy.stores.sql.database import Database

_ONLY_ROW = 1
_next_version = (
    update(schema.directory_version)
    .where(schema.directory_version.c.id == _ONLY_ROW)
    .values(version=schema.directory_version.c.version + 1)
)


class SqlDirectory:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def version(self) -> int:
        async with self._database.reading() as connection:
            return await _version(connection)

    async def load(self, known: int = 0) -> DirectoryRows:
        async with self._database.reading() as connection:
            revoked = await _revocations_after(connection, known)
            return DirectoryRows(
                version=revoked.version,
                plans={row.name: row.document for row in await connection.execute(select(schema.plans))},
                tenants=[row.document for row in await connection.execute(select(schema.tenants))],
                keys=[TenantKey(**row._mapping) for row in await connection.execute(select(schema.tenant_keys))],
                revocations=revoked.revocations,
                newest=revoked.newest,
                are_all=revoked.are_all,
            )

    async def apply(self, plans: Mapping[str, Mapping[str, Any]], tenants: Sequence[Mapping[str, Any]]) -> bool:
        async with _change(self._database) as connection:
            changed = await _put(connection, schema.plans, "name", plans)
            changed |= await _put(connection, schema.tenants, "id", {tenant["id"]: tenant for tenant in tenants})
            if changed:
                await _bump(connection)
            return changed

    async def add_key(self, key: TenantKey) -> None:
        async with _change(self._database) as connection:
            await connection.execute(insert(schema.tenant_keys).values(asdict(key)))
            await _bump(connection)

    async def revoke_key(self, key_id: str) -> bool:
        async with _change(self._database) as connection:
            done = await connection.execute(delete(schema.tenant_keys).where(schema.tenant_keys.c.id == key_id))
            await _bump(connection)
            return bool(done.rowcount)

    async def touch_key(self, key_id: str, used_at: float) -> None:
        # Not a change of the directory: no rights depend on it.
        keys = schema.tenant_keys
        async with self._database.writing() as connection:
            await connection.execute(update(keys).where(keys.c.id == key_id).values(last_used_at=used_at))

    async def revoke(self, revocation: Revocation) -> None:
        rows, values = schema.revocations, asdict(revocation)
        async with _change(self._database) as connection:
            if connection.dialect.name == "sqlite":
                # Left to itself it would give the number of the last row to the next one, if that row is deleted.
                values["id"] = ((await connection.execute(select(func.max(rows.c.id)))).scalar() or 0) + 1
            if revocation.session_id is not None:
                same = and_(rows.c.tenant == revocation.tenant, rows.c.session_id == revocation.session_id)
                await connection.execute(delete(rows).where(same))
            await connection.execute(insert(rows).values(values))
            await _bump(connection)

    async def load_revocations(self, known: int) -> Revocations:
        async with self._database.reading() as connection:
            return await _revocations_after(connection, known)


@asynccontextmanager
async def _change(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction in which nothing else changes the directory: replicas that start together apply the same file."""
    row = schema.directory_version
    async with database.writing() as connection:
        await connection.execute(select(row.c.version).where(row.c.id == _ONLY_ROW).with_for_update())
        yield connection


async def _version(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(schema.directory_version.c.version))).scalar_one())


async def _revocations_after(connection: AsyncConnection, known: int) -> Revocations:
    """Read the revocations behind a number; all, if no number reaches that far, as in another database."""
    version, rows = await _version(connection), schema.revocations
    newest = (await connection.execute(select(func.max(rows.c.id)))).scalar() or 0
    are_all = not 0 < known <= newest
    found = await connection.execute(select(rows).where(rows.c.id > (0 if are_all else known)))
    return Revocations(version, [_revocation(row) for row in found], newest, are_all)


async def _bump(connection: AsyncConnection) -> None:
    await connection.execute(_next_version)


async def _put(connection: AsyncConnection, table: Table, key: str, documents: Mapping[str, Mapping[str, Any]]) -> bool:
    """Insert what is new and update what differs; True if anything did."""
    column = table.c[key]
    old = {row[0]: row.document for row in await connection.execute(select(column, table.c.document))}
    for name, document in documents.items():
        if name not in old:
            await connection.execute(insert(table).values({key: name, "document": document}))
        elif old[name] != document:
            await connection.execute(update(table).where(column == name).values(document=document))
    return any(old.get(name) != document for name, document in documents.items())


def _revocation(row: Any) -> Revocation:
    return Revocation(row.tenant, row.session_id, row.subject, row.issued_before, row.expires_at)

"""Tenants, plans, tenant keys and revocations in SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, not_, or_, select, update

from proxy.errors import NotFound
from proxy.stores.audit import Author, Change
from proxy.stores.directory import NEVER, NO_ENDPOINTS, DirectoryRows, OverrideRow, Revocation, Revocations, TenantKey
from proxy.stores.removal import FormerTenant
from proxy.stores.sql import schema
from proxy.stores.sql.audit import erase_subject, record
from proxy.stores.sql.database import Database
from proxy.stores.sql.documents import find_changes, write_change
from proxy.stores.sql.engine import AnyConnection

_ONLY_ROW = 1
#: What an override says.
_VALUES = ("plan", "limits", "until")
#: Tells every process that the directory has changed.
next_version = (
    update(schema.directory_version)
    .where(schema.directory_version.c.id == _ONLY_ROW)
    .values(version=schema.directory_version.c.version + 1)
)
#: Found tenant by tenant: one may have a million grants.
_granted = select(schema.tenants.c.id).where(exists().where(schema.grants.c.tenant == schema.tenants.c.id))

_former = select(*(schema.former_tenants.c[name] for name in FormerTenant._fields))


class SqlDirectory:
    """`DirectoryStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def version(self) -> int:
        async with self._database.reading() as connection:
            return await _version(connection)

    async def load(self, known: int = 0) -> DirectoryRows:
        async with self._database.reading() as connection:
            revoked = await _revocations_after(connection, known)
            tenants = (await connection.execute(select(schema.tenants))).all()
            return DirectoryRows(
                version=revoked.version,
                plans={row.name: row.document for row in await connection.execute(select(schema.plans))},
                tenants=[row.document for row in tenants],
                endpoints={row.id: row.document for row in await connection.execute(select(schema.endpoints))},
                keys=[TenantKey(**row._mapping) for row in await connection.execute(select(schema.tenant_keys))],
                suspended={row.id: row.suspended_at for row in tenants if row.suspended_at is not None},
                former=[FormerTenant._make(row) for row in await connection.execute(_former)],
                revocations=revoked.revocations,
                newest=revoked.newest,
                are_all=revoked.are_all,
                granted=frozenset(await connection.scalars(_granted)),
                overrides=[OverrideRow(**row._mapping) for row in await connection.execute(select(schema.overrides))],
            )

    async def apply(
        self,
        plans: Mapping[str, Mapping[str, Any]],
        tenants: Sequence[Mapping[str, Any]],
        endpoints: Mapping[str, Mapping[str, Any]] = NO_ENDPOINTS,
        *,
        by: Author,
    ) -> bool:
        async with change_directory(self._database) as connection:
            changes = await find_changes(connection, plans, tenants, endpoints)
            for change in changes:
                await write_change(connection, change)
            if changes:
                await bump_version(connection)
                await connection.run_sync(record, by, *changes)
            return bool(changes)

    async def preview(
        self,
        plans: Mapping[str, Mapping[str, Any]],
        tenants: Sequence[Mapping[str, Any]],
        endpoints: Mapping[str, Mapping[str, Any]] = NO_ENDPOINTS,
    ) -> Sequence[Change]:
        async with self._database.reading() as connection:
            return await find_changes(connection, plans, tenants, endpoints)

    async def set_suspended(self, tenant: str, since: float | None, *, by: Author) -> bool:
        row = schema.tenants.c
        differs = row.suspended_at.is_(None) if since is not None else row.suspended_at.is_not(None)
        async with change_directory(self._database) as connection:
            statement = update(schema.tenants).where(row.id == tenant, differs).values(suspended_at=since)
            if not (await connection.execute(statement)).rowcount:
                return False
            await bump_version(connection)
            action = "tenant.resume" if since is None else "tenant.suspend"
            await connection.run_sync(record, by, Change(action, tenant, tenant))
            return True

    async def delete_tenant(self, former: FormerTenant, *, by: Author) -> bool:
        row = schema.tenants.c
        async with change_directory(self._database) as connection:
            found = await connection.execute(select(row.document).where(row.id == former.id))
            if (document := found.scalar_one_or_none()) is None:
                return False
            await connection.execute(delete(schema.tenant_keys).where(schema.tenant_keys.c.tenant == former.id))
            await connection.execute(delete(schema.tenants).where(row.id == former.id))
            await connection.execute(insert(schema.former_tenants).values(former._asdict()))
            # The version grows once more than for the revocation, so that processes read the tenants too.
            await bump_version(connection)
            await _add_revocation(connection, Revocation(former.id, None, None, former.deleted_at, NEVER))
            change = Change("tenant.delete", former.id, former.id, before=document, after={"records": former.records})
            await connection.run_sync(record, by, change)
            return True

    async def add_key(self, key: TenantKey, *, by: Author) -> None:
        async with change_directory(self._database) as connection:
            await check_not_deleted(connection, key.tenant)
            await connection.execute(insert(schema.tenant_keys).values(asdict(key)))
            await bump_version(connection)
            change = Change("key.create", key.tenant, key.id, after={"name": key.name})
            await connection.run_sync(record, by, change)

    async def revoke_key(self, key_id: str, *, by: Author) -> bool:
        is_meant = schema.tenant_keys.c.id == key_id
        async with change_directory(self._database) as connection:
            key = (await connection.execute(select(schema.tenant_keys).where(is_meant))).one_or_none()
            if key is None:
                return False
            await connection.execute(delete(schema.tenant_keys).where(is_meant))
            await bump_version(connection)
            change = Change("key.revoke", key.tenant, key_id, before={"name": key.name})
            await connection.run_sync(record, by, change)
            return True

    async def touch_key(self, key_id: str, used_at: float) -> None:
        # Not a change of the directory: no rights depend on it.
        keys = schema.tenant_keys
        async with self._database.writing() as connection:
            await connection.execute(update(keys).where(keys.c.id == key_id).values(last_used_at=used_at))

    async def revoke(self, revocation: Revocation, *, by: Author | None) -> None:
        async with change_directory(self._database) as connection:
            await _add_revocation(connection, revocation)
            if by is not None:
                target, subject = revocation.session_id or "", revocation.subject or ""
                await connection.run_sync(record, by, Change("session.revoke", revocation.tenant, target, subject))

    async def put_override(self, override: OverrideRow, now: float, most: int, *, by: Author) -> bool:
        rows, is_same = schema.overrides, _is_of(override.tenant, override.subject)
        others = select(func.count()).select_from(rows).where(rows.c.until > now, not_(is_same))
        async with change_directory(self._database) as connection:
            await check_not_deleted(connection, override.tenant)
            if (await connection.execute(others)).scalar_one() >= most:
                return False
            old = (await connection.execute(select(rows).where(is_same))).one_or_none()
            await connection.execute(delete(rows).where(or_(rows.c.until <= now, is_same)))
            await connection.execute(insert(rows).values(asdict(override)))
            await bump_version(connection)
            await connection.run_sync(record, by, _override_change(override.tenant, override.subject, old, override))
            return True

    async def clear_override(self, tenant: str, subject: str, *, by: Author) -> bool:
        rows, is_same = schema.overrides, _is_of(tenant, subject)
        async with change_directory(self._database) as connection:
            old = (await connection.execute(select(rows).where(is_same))).one_or_none()
            if old is None:
                return False
            await connection.execute(delete(rows).where(is_same))
            await bump_version(connection)
            await connection.run_sync(record, by, _override_change(tenant, subject, old, None))
            return True

    async def forget_subject(self, revocation: Revocation, subject: str, *, by: Author) -> None:
        rows, tenant = schema.revocations, revocation.tenant
        async with change_directory(self._database) as connection:
            # First, so that the newest row stays: it covers what those revoke that go.
            await _add_revocation(connection, revocation)
            await connection.execute(delete(rows).where(rows.c.tenant == tenant, rows.c.subject == subject))
            if (await connection.execute(delete(schema.overrides).where(_is_of(tenant, subject)))).rowcount:
                # A change of its own: with no more than revocations, processes would not read the overrides again.
                await bump_version(connection)
            await connection.run_sync(erase_subject, tenant, subject)
            await connection.run_sync(record, by, Change("subject.forget", tenant))

    async def load_revocations(self, known: int) -> Revocations:
        async with self._database.reading() as connection:
            return await _revocations_after(connection, known)


@asynccontextmanager
async def change_directory(database: Database) -> AsyncIterator[AnyConnection]:
    """Open a transaction in which nothing else changes the directory: replicas start together, with one file."""
    row = schema.directory_version
    async with database.writing() as connection:
        await connection.execute(select(row.c.version).where(row.c.id == _ONLY_ROW).with_for_update())
        yield connection


async def check_not_deleted(connection: AnyConnection, tenant: str) -> None:
    """Make sure that a tenant was not deleted since it was looked up: what it is given would be the next one's.

    Raises:
        NotFound: it was.
    """
    former, rows = schema.former_tenants, schema.tenants
    is_gone = and_(
        exists().where(former.c.id == tenant),
        not_(exists().where(rows.c.id == tenant)),
    )
    if (await connection.execute(select(is_gone))).scalar_one():
        raise NotFound("There is no such tenant.")


async def _add_revocation(connection: AnyConnection, revocation: Revocation) -> None:
    rows, values = schema.revocations, asdict(revocation)
    del values["number"]
    if connection.dialect.name == "sqlite":
        # Left to itself it would give the number of the last row to the next one, if that row is deleted.
        values["id"] = ((await connection.execute(select(func.max(rows.c.id)))).scalar() or 0) + 1
    if revocation.session_id is not None:
        same = and_(rows.c.tenant == revocation.tenant, rows.c.session_id == revocation.session_id)
        await connection.execute(delete(rows).where(same))
    await connection.execute(insert(rows).values(values))
    await bump_version(connection)


def _is_of(tenant: str, subject: str) -> ColumnElement[bool]:
    return and_(schema.overrides.c.tenant == tenant, schema.overrides.c.subject == subject)


def _override_change(tenant: str, subject: str, before: Any, after: OverrideRow | None) -> Change:
    """Describe the change of an override for the audit log."""
    old, new = (None if one is None else {name: getattr(one, name) for name in _VALUES} for one in (before, after))
    return Change("override.set" if after else "override.clear", tenant, "", subject, old, new)


async def _version(connection: AnyConnection) -> int:
    return int((await connection.execute(select(schema.directory_version.c.version))).scalar_one())


async def _revocations_after(connection: AnyConnection, known: int) -> Revocations:
    """Read the revocations behind a number; all, if no number reaches that far, as in another database."""
    version, rows = await _version(connection), schema.revocations
    newest = (await connection.execute(select(func.max(rows.c.id)))).scalar() or 0
    are_all = not 0 < known <= newest
    found = await connection.execute(select(rows).where(rows.c.id > (0 if are_all else known)))
    return Revocations(version, [_revocation(row) for row in found], newest, are_all)


async def bump_version(connection: AnyConnection) -> None:
    await connection.execute(next_version)


def _revocation(row: Any) -> Revocation:
    return Revocation(**{"number" if name == "id" else name: value for name, value in row._mapping.items()})

"""Clears what a deleted tenant leaves in SQL, some rows in each transaction: calls of others wait for its end."""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection, Table, bindparam, select, update

from proxy.stores.removal import FormerTenant, Pseudonym
from proxy.stores.sql.database import Database
from proxy.stores.sql.directory import next_version
from proxy.stores.sql.forgetting import delete_rows, forget_some
from proxy.stores.sql.insertions import add_rows
from proxy.stores.sql.schema import former_tenants, grant_days, jobs, metadata, usage_days
from proxy.stores.sql.usage_rollup import is_alone
from proxy.stores.sqlite.file import MANY_ROWS

#: Rows that one transaction clears.
ROWS_AT_ONCE = 200
#: What has a tenant's name for good: the directory, which has forgotten the tenant before, and the audit log.
_KEPT = {"tenants", "tenant_keys", "revocations", "former_tenants", "audit", "audit_subjects"}
#: Jobs first: a call that is settled writes on the accounts of the name that its job has.
_TABLES = [jobs, *(table for table in metadata.sorted_tables if "tenant" in table.c and table is not jobs)]


class SqlRemoval:
    """`RemovalStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def clear_some(self, former: FormerTenant) -> bool:
        has_more = await self._database.write(partial(_clear_some, former=former), MANY_ROWS)
        await self._database.wait_for_checkpoint()
        return has_more

    async def forget_some(self, pseudonym: Pseudonym) -> bool:
        has_more = await self._database.write(partial(forget_some, pseudonym=pseudonym), MANY_ROWS)
        await self._database.wait_for_checkpoint()
        return has_more

    async def wipe(self) -> None:
        await self._database.truncate_log()


def _clear_some(connection: Connection, *, former: FormerTenant) -> bool:
    if not is_alone(connection):
        return True
    for table in _TABLES:
        if table.name not in _KEPT and _clear_rows(connection, table, former):
            return True
    is_meant = former_tenants.c.records == former.records
    connection.execute(update(former_tenants).where(is_meant).values(is_cleared=True))
    connection.execute(next_version)
    return False


def _clear_rows(connection: Connection, table: Table, former: FormerTenant) -> bool:
    """Clear some rows of a table, locked in the order of their keys as all are; return whether there were any."""
    wanted = select(table).where(table.c.tenant == former.id).order_by(*table.primary_key).limit(ROWS_AT_ONCE)
    rows = [row._asdict() for row in connection.execute(wanted.with_for_update())]
    if not rows:
        return False
    if table is jobs:
        moved = [{"of_id": row["id"]} for row in rows]
        connection.execute(update(jobs).where(jobs.c.id == bindparam("of_id")).values(tenant=former.records), moved)
        return True
    if table in (usage_days, grant_days):
        # Jobs that moved before may have been counted there already.
        moved = [{**row, "tenant": former.records} for row in rows]
        connection.execute(add_rows(connection.dialect.name, table), moved)
    delete_rows(connection, table, rows)
    return True

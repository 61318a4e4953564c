"""The documents of plans, tenants and endpoints: what others would change, and writing that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert, select, update

from proxy.errors import StoreUnavailable
from proxy.stores.audit import Change
from proxy.stores.sql import schema
from proxy.stores.sql.engine import AnyConnection

#: By kind, the table and the name of its key.
_TABLES = {
    "plan": (schema.plans, "name"),
    "tenant": (schema.tenants, "id"),
    "endpoint": (schema.endpoints, "id"),
}
_Documents = Mapping[str, Mapping[str, Any]]


async def find_changes(
    connection: AnyConnection, plans: _Documents, tenants: Sequence[Mapping[str, Any]], endpoints: _Documents
) -> list[Change]:
    """Compare documents with those that there are: what is new, and what differs.

    Raises:
        StoreUnavailable: a tenant that had the name of one of these is not wholly deleted yet.
    """
    await _check_free(connection, [tenant["id"] for tenant in tenants])
    return [
        *await _compare(connection, "plan", plans),
        *await _compare(connection, "tenant", {tenant["id"]: tenant for tenant in tenants}),
        *await _compare(connection, "endpoint", endpoints),
    ]


async def write_change(connection: AnyConnection, change: Change) -> None:
    """Write the document that a change of `find_changes` ends with."""
    kind, _, verb = change.action.partition(".")
    table, key = _TABLES[kind]
    if verb == "create":
        await connection.execute(insert(table).values({key: change.target, "document": change.after}))
    else:
        await connection.execute(update(table).where(table.c[key] == change.target).values(document=change.after))


async def _compare(connection: AnyConnection, kind: str, documents: _Documents) -> list[Change]:
    table, key = _TABLES[kind]
    old = {row[0]: row.document for row in await connection.execute(select(table.c[key], table.c.document))}
    changes = []
    for name, document in documents.items():
        tenant, before = name if kind == "tenant" else "", old.get(name)
        if before != document:
            action = f"{kind}.create" if before is None else f"{kind}.change"
            changes.append(Change(action, tenant, name, before=before, after=document))
    return changes


async def _check_free(connection: AnyConnection, tenants: Sequence[str]) -> None:
    """Make sure that nothing is left under these names of a tenant that was deleted.

    Raises:
        StoreUnavailable: something is.
    """
    former = schema.former_tenants.c
    left = set(await connection.scalars(select(former.id).where(~former.is_cleared)))
    if found := sorted(left.intersection(tenants)):
        raise StoreUnavailable(
            f"The tenant {found[0]} is still being deleted; try again shortly. If the deletion was interrupted, "
            "repeat it."
        )

"""Forgets subjects in SQL: what must stay gets a pseudonym, and all else goes.

A job and the accounts that it charges change in one transaction. Otherwise its settlement would make an account of the
name again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, delete, null, select, update

from proxy.stores.ledger import OPEN_STATES
from proxy.stores.removal import Pseudonym
from proxy.stores.sql.insertions import add_rows
from proxy.stores.sql.schema import grants, jobs, metadata, quota_usage, upload_parts, uploads, usage_days
from proxy.stores.sql.usage_rollup import is_alone

#: Rows that one transaction changes.
ROWS_AT_ONCE = 200
_RENAMED = {"jobs", "quota_usage", "usage_days", "grants"}
#: Every other table that has names of subjects.
_DELETED = [
    one for one in metadata.sorted_tables if {"tenant", "subject"} <= {*one.c.keys()} and one.name not in _RENAMED
]
_is_open = jobs.c.state.in_(OPEN_STATES)
_rename_job = (
    update(jobs)
    .where(jobs.c.id == bindparam("of_id"))
    # Tags are the tenant's own words, and may name the person.
    .values(subject=bindparam("now_subject"), charges=bindparam("now_charges"), session=None, tags=null())
)


def forget_some(connection: Connection, *, pseudonym: Pseudonym) -> bool:
    """Clear a name from some rows; return whether there were any."""
    if not is_alone(connection):
        return True
    steps: list[Callable[[Connection, Pseudonym], bool]] = [_rename_open_jobs, _rename_jobs, _rename_grants]
    if any(step(connection, pseudonym) for step in steps):
        return True
    if any(_move_rows(connection, table, pseudonym) for table in (quota_usage, usage_days)):
        return True
    return any(_delete_some(connection, table, pseudonym) for table in _DELETED)


def _rename_open_jobs(connection: Connection, pseudonym: Pseudonym) -> bool:
    """Rename all jobs that are still to be settled, which the plan bounds, with the accounts that they charge."""
    wanted = select(jobs.c.id, jobs.c.charges).where(_is_of(jobs, pseudonym), _is_open).order_by(jobs.c.id)
    rows = connection.execute(wanted.with_for_update()).all()
    starts = {charge[3] for row in rows for charge in row.charges if charge[0] == pseudonym.subject}
    _rename(connection, rows, pseudonym)
    accounts = select(quota_usage).where(_is_of(quota_usage, pseudonym), quota_usage.c.window_start.in_(starts))
    _move(connection, quota_usage, connection.execute(_lock_rows(quota_usage, accounts)).all(), pseudonym)
    return bool(rows)


def _rename_jobs(connection: Connection, pseudonym: Pseudonym) -> bool:
    wanted = select(jobs.c.id, jobs.c.charges).where(_is_of(jobs, pseudonym), ~_is_open).limit(ROWS_AT_ONCE)
    rows = connection.execute(_lock_rows(jobs, wanted)).all()
    _rename(connection, rows, pseudonym)
    return bool(rows)


def _rename(connection: Connection, rows: Sequence[Any], pseudonym: Pseudonym) -> None:
    renamed = [
        {
            "of_id": row.id,
            "now_subject": pseudonym.name,
            "now_charges": [
                [pseudonym.name if whose == pseudonym.subject else whose, *more] for whose, *more in row.charges
            ],
        }
        for row in rows
    ]
    if renamed:
        connection.execute(_rename_job, renamed)


def _rename_grants(connection: Connection, pseudonym: Pseudonym) -> bool:
    """Rename grants, and clear what people wrote about them."""
    statement = update(grants).where(_is_of(grants, pseudonym)).values(subject=pseudonym.name, reason="")
    return bool(connection.execute(statement).rowcount)


def _move_rows(connection: Connection, table: Table, pseudonym: Pseudonym) -> bool:
    wanted = select(table).where(_is_of(table, pseudonym)).limit(ROWS_AT_ONCE)
    rows = connection.execute(_lock_rows(table, wanted)).all()
    _move(connection, table, rows, pseudonym)
    return bool(rows)


def _move(connection: Connection, table: Table, rows: Sequence[Any], pseudonym: Pseudonym) -> None:
    """Add the figures of rows to those of the pseudonym, and delete them."""
    if rows:
        found = [row._asdict() for row in rows]
        moved = [{**row, "subject": pseudonym.name} for row in found]
        connection.execute(add_rows(connection.dialect.name, table), moved)
        delete_rows(connection, table, found)


def _delete_some(connection: Connection, table: Table, pseudonym: Pseudonym) -> bool:
    wanted = select(*table.primary_key).where(_is_of(table, pseudonym)).limit(ROWS_AT_ONCE)
    rows = [row._asdict() for row in connection.execute(_lock_rows(table, wanted))]
    delete_rows(connection, table, rows)
    return bool(rows)


def delete_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Delete rows of a table that are locked; an upload with its parts."""
    if not rows:
        return
    keys = [{f"of_{column.name}": row[column.name] for column in table.primary_key} for row in rows]
    if table is uploads:
        connection.execute(delete(upload_parts).where(upload_parts.c.upload == bindparam("of_id")), keys)
    is_meant = and_(*(column == bindparam(f"of_{column.name}") for column in table.primary_key))
    connection.execute(delete(table).where(is_meant), keys)


def _is_of(table: Table, pseudonym: Pseudonym) -> Any:
    return and_(table.c.tenant == pseudonym.tenant, table.c.subject == pseudonym.subject)


def _lock_rows(table: Table, wanted: Any) -> Any:
    """Lock what a selection finds, in the order of the keys, as all transactions do."""
    return wanted.order_by(*table.primary_key).with_for_update()

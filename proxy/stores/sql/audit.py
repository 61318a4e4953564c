"""The audit log in SQL."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
from sqlalchemy import Connection, Select, bindparam, delete, insert, select, update

from proxy.stores.audit import Author, Change, compose_document, compute_hash
from proxy.stores.audit_chain import START, ChainCheck, Entry, Link
from proxy.stores.audit_store import Verification
from proxy.stores.sql.database import Database
from proxy.stores.sql.engine import AnyConnection
from proxy.stores.sql.insertions import insert_missing
from proxy.stores.sql.schema import audit, audit_chain, audit_subjects

#: Entries that one statement of a long reading reads.
PAGE = 500
_IS_ONLY_ROW = audit_chain.c.id == 1
#: Locked until the end of the transaction: entries of all processes are appended one after the other.
_lock_head = select(audit_chain.c.head_number, audit_chain.c.head_hash).where(_IS_ONLY_ROW).with_for_update()
_change_chain = update(audit_chain).where(_IS_ONLY_ROW)
_names = select(audit_subjects.c.reference, audit_subjects.c.subject).where(
    audit_subjects.c.reference.in_(bindparam("references", expanding=True))
)


class SqlAudit:
    """`AuditStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, by: Author, *changes: Change) -> None:
        async with self._database.writing() as connection:
            await connection.run_sync(record, by, *changes)

    async def list_newest(self, most: int, *, before: int | None = None, tenant: str | None = None) -> Sequence[Entry]:
        wanted = select(audit).order_by(audit.c.number.desc()).limit(most)
        if before is not None:
            wanted = wanted.where(audit.c.number < before)
        if tenant is not None:
            wanted = wanted.where(audit.c.tenant == tenant)
        async with self._database.reading() as connection:
            return await _name_subjects(connection, await _read(connection, wanted))

    async def read_all(self, after: int = 0) -> AsyncIterator[Entry]:
        async with self._database.reading() as connection:
            async for page in _read_pages(connection, after):
                for entry in await _name_subjects(connection, page):
                    yield entry

    async def verify(
        self, expected: Link | None = None, report: Callable[[int, int], None] | None = None
    ) -> Verification:
        async with self._database.reading() as connection:
            chain = (await connection.execute(select(audit_chain).where(_IS_ONLY_ROW))).one_or_none()
            if chain is None:
                return Verification(START, 0, ["the row of the table audit_chain is missing"])
            check = ChainCheck(Link(chain.anchor_number, chain.anchor_hash), expected)
            # From below the first number, so that none escapes the check.
            async for page in _read_pages(connection, -(2**63)):
                for entry in page:
                    check.add(entry)
                if report is not None:
                    report(check.entries, chain.head_number - chain.anchor_number)
        head = Link(chain.head_number, chain.head_hash)
        check.finish(head)
        return Verification(head, check.entries, check.problems)


async def _read(connection: AnyConnection, wanted: Select[Any]) -> list[Entry]:
    return [Entry(**row._mapping) for row in await connection.execute(wanted)]


async def _read_pages(connection: AnyConnection, after: int) -> AsyncIterator[list[Entry]]:
    while page := await _read(
        connection, select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(PAGE)
    ):
        yield page
        after = page[-1].number


async def _name_subjects(connection: AnyConnection, entries: Sequence[Entry]) -> list[Entry]:
    """Add the end users whom entries concern, as far as they are not forgotten."""
    references = [orjson.loads(entry.document)["subject_ref"] for entry in entries]
    wanted = {reference for reference in references if reference}
    found = await connection.execute(_names, {"references": list(wanted)}) if wanted else ()
    names = {row.reference: row.subject for row in found}
    return [replace(entry, subject=names.get(reference)) for entry, reference in zip(entries, references, strict=True)]


def record(connection: Connection, by: Author, *changes: Change) -> None:
    """Append changes to the audit log, in the transaction that makes them: neither is there without the other.

    Do this last in a transaction. It locks the end of the chain, which the transactions of others wait for.
    """
    if not changes:
        return
    number, last_hash = connection.execute(_lock_head).one()
    rows = []
    for change in changes:
        number += 1
        subject_ref = _refer_to_subject(connection, change, number)
        document = compose_document(number, by, change, subject_ref)
        last_hash = compute_hash(last_hash, document)
        rows.append({"number": number, "at": by.at, "tenant": change.tenant, "document": document, "hash": last_hash})
    connection.execute(insert(audit), rows)
    connection.execute(_change_chain.values(head_number=number, head_hash=last_hash))


def erase_subject(connection: Connection, tenant: str, subject: str) -> None:
    """Forget which end user a reference in the audit log stands for. The entries stay, and the chain is whole."""
    one = audit_subjects.c
    connection.execute(delete(audit_subjects).where(one.tenant == tenant, one.subject == subject))


def move_anchor(connection: Connection, last: Link) -> None:
    """Let the chain begin behind an entry, when this and those before it are removed as past their time.

    The names of end users whom only removed entries concern go too.
    """
    connection.execute(_change_chain.values(anchor_number=last.number, anchor_hash=last.hash))
    connection.execute(delete(audit_subjects).where(audit_subjects.c.last_number <= last.number))


def _refer_to_subject(connection: Connection, change: Change, number: int) -> str:
    """Return the reference that stands for the end user of a change; '' if it concerns none.

    It is random and no digest of the name: a digest could be found again by trying names.
    """
    if not change.subject:
        return ""
    one = audit_subjects.c
    key = {"tenant": change.tenant, "subject": change.subject}
    new = {**key, "reference": secrets.token_hex(8), "last_number": number}
    is_same = (one.tenant == change.tenant) & (one.subject == change.subject)
    connection.execute(insert_missing(connection.dialect.name, audit_subjects), new)
    connection.execute(update(audit_subjects).where(is_same).values(last_number=number))
    reference: str = connection.execute(select(one.reference).where(is_same)).scalar_one()
    return reference

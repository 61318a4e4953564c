"""The ledger in SQL: reservations, what was used, and whose every job is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Any

from cachetools import LRUCache
from sqlalchemy import ColumnElement, and_, bindparam, select, update

from proxy.stores.ledger import Account, Bucket, Job, OpenJob, Operation, Outcome, UsageRow
from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import jobs
from proxy.stores.sql.transaction import (
    IS_OPEN,
    AccountsMissing,
    account_keys,
    bucket_of,
    commit_operations,
    find_accounts,
    job_of,
)
from proxy.stores.sql.usage import usage_query, usage_rows, usage_values

KNOWN_ACCOUNTS = 20_000
_log = logging.getLogger(__name__)
#: What a statement is asked about at once: some databases take no more than a thousand parameters.
_IDS_AT_ONCE = 500
_is_among = jobs.c.endpoint.in_(bindparam("among", expanding=True))
_queued_among = select(jobs.c.id).where(jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.state == "accepted")


class SqlLedger:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: LRUCache[Bucket, bool] = LRUCache(KNOWN_ACCOUNTS)

    async def commit(self, operations: Sequence[Operation]) -> list[Outcome]:
        try:
            return await self._commit(operations, self._known)
        except AccountsMissing as missing:
            # They were deleted, so what is known of the others may be wrong too. The transaction is done again from its
            # start: accounts that are locked out of their order could deadlock.
            _log.warning("accounts are missing", extra={"log_fields": {"accounts": len(missing.buckets)}})
            self._known.clear()
            return await self._commit(operations, ())

    async def _commit(self, operations: Sequence[Operation], known: Container[Bucket]) -> list[Outcome]:
        batch, outcomes = await self._database.run(partial(commit_operations, operations=operations, known=known))
        self._known.update(dict.fromkeys(batch.accounts, True))
        return outcomes

    async def find(self, request_id: str) -> Job | None:
        return await self._one(jobs.c.request_id == request_id)

    async def get(self, job_id: str) -> Job | None:
        return await self._one(jobs.c.id == job_id)

    async def _one(self, condition: Any) -> Job | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(jobs).where(condition))).one_or_none()
            return job_of(row) if row else None

    async def open_jobs(self) -> Sequence[OpenJob]:
        columns = [jobs.c[name] for name in OpenJob._fields]
        async with self._database.reading() as connection:
            rows = await connection.execute(select(*columns).where(IS_OPEN))
            return [OpenJob._make(row) for row in rows]

    async def queued_among(self, job_ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        async with self._database.reading() as connection:
            for start in range(0, len(job_ids), _IDS_AT_ONCE):
                asked = {"ids": job_ids[start : start + _IDS_AT_ONCE]}
                found.update(await connection.scalars(_queued_among, asked))
        return found

    async def take_due(self, checked_before: float, now: float, most: int) -> Sequence[Job]:
        due = (
            select(jobs)
            .where(IS_OPEN, jobs.c.checked_at < checked_before)
            .order_by(jobs.c.checked_at)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
        async with self._database.writing() as connection:
            found = [job_of(row) for row in await connection.execute(due)]
            if found:
                taken = jobs.c.id.in_([job.id for job in found])
                await connection.execute(update(jobs).where(taken).values(checked_at=now))
            return found

    async def heard_of(self, job_id: str, at: float, expires_at: float) -> None:
        alive = and_(jobs.c.id == job_id, IS_OPEN)
        async with self._database.writing() as connection:
            await connection.execute(update(jobs).where(alive).values(checked_at=at, expires_at=expires_at))

    async def accounts(self, buckets: Sequence[Bucket]) -> Mapping[Bucket, Account]:
        if not buckets:
            return {}
        async with self._database.reading() as connection:
            rows = await connection.execute(find_accounts, {"keys": account_keys(buckets)})
            return {bucket_of(row): Account(row.used, row.reserved) for row in rows}

    async def usage(
        self, tenant: str, subject: str | None, since: float, until: float, group_by: frozenset[str]
    ) -> Sequence[UsageRow]:
        async with self._database.reading() as connection:
            query = usage_query(connection.dialect.name, group_by, of_subject=subject is not None)
            rows = (await connection.execute(query, usage_values(tenant, subject, since, until))).all()
        # A tenant may have many thousand subjects.
        return await asyncio.to_thread(usage_rows, rows)

    async def jobs_of(self, tenant: str, subject: str | None, most: int) -> Sequence[Job]:
        wanted = [jobs.c.tenant == tenant]
        if subject is not None:
            wanted.append(jobs.c.subject == subject)
        return await self._newest(wanted, most)

    async def queued_jobs_of(
        self, tenant: str, subject: str, most: int, endpoints: Sequence[str] | None = None
    ) -> Sequence[Job]:
        wanted = [jobs.c.tenant == tenant, jobs.c.subject == subject, jobs.c.request_id.is_not(None)]
        if endpoints is not None:
            wanted.append(_is_among)
        return await self._newest(wanted, most, endpoints)

    async def _newest(
        self, wanted: Sequence[ColumnElement[bool]], most: int, among: Sequence[str] | None = None
    ) -> Sequence[Job]:
        newest = select(jobs).where(*wanted).order_by(jobs.c.submitted_at.desc()).limit(most)
        async with self._database.reading() as connection:
            return [job_of(row) for row in await connection.execute(newest, {} if among is None else {"among": among})]

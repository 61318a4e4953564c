"""The ledger in SQL: reservations, what was used, and whose every job is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Mapping, Sequence
from functools import cache, partial
from typing import Any

from cachetools import FIFOCache
from sqlalchemy import Connection, Row, Select, Table, bindparam, func, select, update

from proxy.errors import StoreUnavailable
from proxy.stores.ledger import (
    OPEN_STATES,
    UPLOAD,
    Account,
    Bucket,
    Job,
    JobFilter,
    LedgerListener,
    OpenJob,
    Operation,
    Outcome,
)
from proxy.stores.sql.database import Database
from proxy.stores.sql.keys import is_named, key_values
from proxy.stores.sql.listing import listing_query
from proxy.stores.sql.rows import IS_OPEN, account_of, bucket_of, job_of
from proxy.stores.sql.schema import jobs, quota_usage
from proxy.stores.sql.usage import (
    count_query,
    details_query,
    sums_of_days,
    sums_of_jobs,
    usage_page,
    usage_query,
    usage_rows,
    usage_values,
)
from proxy.stores.transaction import AccountsMissing, commit_operations
from proxy.stores.usage import UsageRow, reads_jobs

KNOWN_ACCOUNTS = 20_000
#: How long a report that reads jobs waits for another one: they go one by one, as each keeps a connection for seconds.
REPORT_WAIT_SECONDS = 10.0
_log = logging.getLogger(__name__)
#: What a statement is asked about at once: some databases take no more than a thousand parameters.
_IDS_AT_ONCE = 500
# An index of states would lead to all open jobs, of which there may be a hundred thousand: the expression hides it.
_ids_given, _state = jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.state + ""
_queued_among = select(jobs.c.id).where(_ids_given, _state == "accepted")
_count_in_flight = (
    select(jobs.c.upstream, func.count().label("number"))
    .where(IS_OPEN, jobs.c.kind != UPLOAD)
    .group_by(jobs.c.upstream)
)
_renew_jobs = (
    update(jobs)
    .where(_ids_given, _state.in_(OPEN_STATES))
    .values(checked_at=bindparam("at"), expires_at=bindparam("until"))
)
_due = (
    select(jobs)
    .where(IS_OPEN, jobs.c.checked_at < bindparam("before"))
    .order_by(jobs.c.checked_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_note_check = update(jobs).where(_ids_given).values(checked_at=bindparam("at"))


class SqlLedger:
    """`Ledger` in SQL."""

    def __init__(self, database: Database, report_wait_seconds: float = REPORT_WAIT_SECONDS) -> None:
        self._database = database
        self._known: FIFOCache[Bucket, bool] = FIFOCache(KNOWN_ACCOUNTS)
        self._listeners: list[LedgerListener] = []
        self._reading_jobs = asyncio.Semaphore(1)
        self._report_wait_seconds = report_wait_seconds

    def listen(self, listener: LedgerListener) -> None:
        self._listeners.append(listener)

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
        for bucket in batch.accounts:
            if bucket not in self._known:
                self._known[bucket] = True
        for listener in self._listeners:
            try:
                listener(batch.jobs.values(), batch.accounts, outcomes)
            except Exception:
                # It is written: calls whose transaction was taken for a failed one would be refused, or booked again.
                _log.exception("a listener of the ledger failed")
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

    async def count_in_flight(self) -> Mapping[str, int]:
        async with self._database.reading() as connection:
            return {row.upstream: row.number for row in await connection.execute(_count_in_flight)}

    async def queued_among(self, job_ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        async with self._database.reading() as connection:
            for start in range(0, len(job_ids), _IDS_AT_ONCE):
                asked = {"ids": job_ids[start : start + _IDS_AT_ONCE]}
                found.update(await connection.scalars(_queued_among, asked))
        return found

    async def take_due(self, checked_before: float, now: float, most: int) -> Sequence[Job]:
        wanted = {"before": checked_before, "most": most}
        return [job_of(row) for row in await self._database.write(partial(_take_due, wanted=wanted, now=now))]

    async def renew_jobs(self, job_ids: Sequence[str], at: float, expires_at: float) -> None:
        values = {"ids": job_ids, "at": at, "until": expires_at}
        await self._database.write(lambda connection: connection.execute(_renew_jobs, values))

    async def accounts(self, buckets: Sequence[Bucket]) -> Mapping[Bucket, Account]:
        if not buckets:
            return {}
        async with self._database.reading() as connection:
            rows = await connection.execute(_accounts_of(len(buckets)), key_values(quota_usage, buckets))
            return {bucket_of(row): account_of(row) for row in rows}

    async def usage(
        self,
        tenant: str | None,
        subject: str | None,
        since: float,
        until: float,
        group_by: frozenset[str],
        *,
        after: Sequence[str] = (),
        most: int | None = None,
    ) -> Sequence[UsageRow]:
        table = sums_of_days(subject, group_by)
        values = usage_values(table, tenant, subject, since, until) | usage_page(group_by, after, most)
        return await self._read_sums(table, group_by, values)

    async def _read_sums(self, table: Table, group_by: frozenset[str], values: dict[str, Any]) -> Sequence[UsageRow]:
        async with self._database.reading() as connection:
            query = usage_query(connection.dialect.name, table, group_by, frozenset(values))
            rows = (await connection.execute(query, values)).all()
        # A tenant may have many thousand subjects.
        return await asyncio.to_thread(usage_rows, rows)

    async def usage_of_jobs(
        self,
        tenant: str,
        subject: str | None,
        since: float,
        until: float,
        group_by: frozenset[str],
        *,
        after: Sequence[str] = (),
        most: int | None = None,
    ) -> Sequence[UsageRow]:
        page = usage_page(group_by, after, most)
        if not reads_jobs(subject, group_by):
            table = sums_of_jobs(group_by)
            return await self._read_sums(table, group_by, usage_values(table, tenant, None, since, until) | page)
        values = _job_values(tenant, subject, since, until) | page
        try:
            async with asyncio.timeout(self._report_wait_seconds):
                await self._reading_jobs.acquire()
        except TimeoutError:
            raise StoreUnavailable("Other reports that read jobs take their time; try again shortly.") from None
        try:
            async with self._database.reading() as connection:
                query = details_query(connection.dialect.name, group_by, frozenset(values))
                rows = (await connection.execute(query, values)).all()
        finally:
            self._reading_jobs.release()
        return await asyncio.to_thread(usage_rows, rows)

    async def has_more_jobs(self, tenant: str, subject: str | None, since: float, until: float, most: int) -> bool:
        values = _job_values(tenant, subject, since, until)
        async with self._database.reading() as connection:
            found = await connection.execute(count_query(frozenset(values)), {**values, "most": most + 1})
            return int(found.scalar_one()) > most

    async def list_jobs(self, wanted: JobFilter, limit: int) -> Sequence[Job]:
        statement, values = listing_query(wanted, limit)
        async with self._database.reading() as connection:
            return [job_of(row) for row in await connection.execute(statement, values)]


def _take_due(connection: Connection, *, wanted: dict[str, Any], now: float) -> Sequence[Row[Any]]:
    rows = connection.execute(_due, wanted).all()
    if rows:
        connection.execute(_note_check, {"ids": [row.id for row in rows], "at": now})
    return rows


def _job_values(tenant: str, subject: str | None, since: float, until: float) -> dict[str, Any]:
    whose = {"of_tenant": tenant} if subject is None else {"of_tenant": tenant, "of_subject": subject}
    return {**whose, "since": since, "until": until}


@cache
def _accounts_of(number: int) -> Select[Any]:
    """Select so many accounts by their keys."""
    return select(quota_usage).where(is_named(quota_usage, number))

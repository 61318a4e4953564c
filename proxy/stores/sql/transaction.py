"""The ledger's transactions on PostgreSQL: their statements are few, and do not grow in number with the batch.

The driver gets the SQL as it stands here: each execution takes SQLAlchemy three times as long as the driver. All that a
batch changes is one statement. It also says how the rows looked that the batch was worked out from, and changes nothing
if one of them is another by now. So rows need not be locked, or even be read, before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.util.concurrency import await_

from proxy.stores.grants import GRANT_PREFIX, GRANT_WINDOWS, MOST_SPENT, Grant, GrantHolder
from proxy.stores.job_rows import JOB_COLUMNS, dump_json, job_of_row, row_of_job
from proxy.stores.ledger import Account, Bucket, Job

#: The columns of `JOB_COLUMNS`, with their JSON as text.
_FIND_JOBS = """
    SELECT id, kind, endpoint, tenant, subject, submitted_at, expires_at, charges::text, request_id, state, checked_at,
           used::text, upstream, session, tags::text
    FROM jobs WHERE id = ANY($1::text[]) ORDER BY id
"""
_FIND_ACCOUNTS = """
    SELECT tenant, subject, unit, "window", window_start, used, reserved
    FROM quota_usage
    JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
        AS named(tenant, subject, unit, "window", window_start) USING (tenant, subject, unit, "window", window_start)
    ORDER BY tenant, subject, unit, "window", window_start
"""
_FIND_GRANTS = f"""
    SELECT found.id, found.tenant, found.subject, found.unit, amount, reason, created_at, expires_at, key_hash
    FROM unnest($1::text[], $2::text[], $3::text[]) AS held(tenant, subject, unit)
    CROSS JOIN LATERAL (
        SELECT * FROM grants
        WHERE tenant = held.tenant AND subject = held.subject AND unit = held.unit
            AND (expires_at IS NULL OR expires_at > $4::float8)
            AND amount > coalesce((
                SELECT used + reserved FROM quota_usage
                WHERE tenant = grants.tenant AND subject = '{GRANT_PREFIX}' || grants.id
            ), 0)
        ORDER BY expires_at NULLS LAST, id LIMIT {MOST_SPENT}
    ) AS found
"""
_CREATE_ACCOUNTS = """
    INSERT INTO quota_usage (tenant, subject, unit, "window", window_start, used, reserved)
    SELECT *, 0, 0 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[]) ON CONFLICT DO NOTHING
"""
_JOB_NAMES = JOB_COLUMNS.split(", ")
_GRANT_WINDOWS = ", ".join(f"'{window}'" for window in sorted(GRANT_WINDOWS))
#: Locks the jobs by their ids, then the accounts in their order, then those of grants. Rows that were found carry the
#: values that they had, and those that change the new ones. Gives whether all of the first were as they had been.
#: A row is a document: the driver takes longer for the values of an array than for all the rest. An array of documents,
#: as PostgreSQL expects a hundred of one that has them all, and would read small tables whole.
_WRITE = f"""
    WITH job AS (
        SELECT job.* FROM unnest($1::text[]) AS one(document) CROSS JOIN json_to_record(document::json) AS job(
            id text, tenant text, subject text, old_request_id text, old_state text, old_checked_at float8,
            old_expires_at float8, request_id text, state text, used json, checked_at float8, expires_at float8
        )
    ), account AS (
        SELECT account.* FROM unnest($2::text[]) AS one(document) CROSS JOIN json_to_record(document::json) AS account(
            tenant text, subject text, unit text, "window" text, window_start bigint, old_used bigint,
            old_reserved bigint, used bigint, reserved bigint
        )
    ), locked_jobs AS (
        SELECT old_state IS NULL OR (
            jobs.state = old_state AND jobs.request_id IS NOT DISTINCT FROM old_request_id
            AND jobs.checked_at = old_checked_at AND jobs.expires_at = old_expires_at
            AND jobs.tenant = job.tenant AND jobs.subject = job.subject
        ) AS is_same, old_state
        FROM jobs JOIN job USING (id) ORDER BY id FOR UPDATE OF jobs
    ), jobs_seen AS (
        SELECT count(old_state) = (SELECT count(old_state) FROM job) AND coalesce(bool_and(is_same), TRUE) AS are_same
        FROM locked_jobs
    ), locked_accounts AS (
        SELECT old_used IS NULL OR (quota_usage.used = old_used AND quota_usage.reserved = old_reserved) AS is_same,
               old_used
        FROM quota_usage JOIN account USING (tenant, subject, unit, "window", window_start) CROSS JOIN jobs_seen
        ORDER BY "window" IN ({_GRANT_WINDOWS}), tenant, subject, unit, "window", window_start
        FOR UPDATE OF quota_usage
    ), accounts_seen AS (
        SELECT count(old_used) = (SELECT count(old_used) FROM account) AND coalesce(bool_and(is_same), TRUE) AS are_same
        FROM locked_accounts
    ), seen AS MATERIALIZED (
        SELECT jobs_seen.are_same AND accounts_seen.are_same AS are_same FROM jobs_seen CROSS JOIN accounts_seen
    ), changed_accounts AS (
        UPDATE quota_usage SET used = account.used, reserved = account.reserved FROM account CROSS JOIN seen
        WHERE seen.are_same AND account.used IS NOT NULL AND quota_usage.tenant = account.tenant
            AND quota_usage.subject = account.subject AND quota_usage.unit = account.unit
            AND quota_usage."window" = account."window" AND quota_usage.window_start = account.window_start
    ), changed_jobs AS (
        UPDATE jobs SET request_id = job.request_id, state = job.state, used = job.used,
            checked_at = job.checked_at, expires_at = job.expires_at FROM job CROSS JOIN seen
        WHERE seen.are_same AND job.state IS NOT NULL AND jobs.id = job.id
    ), added_jobs AS (
        INSERT INTO jobs ({JOB_COLUMNS})
        SELECT id, kind, endpoint, tenant, subject, submitted_at, expires_at, charges::json, request_id, state,
               checked_at, used::json, upstream, session, tags::json
        FROM unnest($3::text[]) AS one(document) CROSS JOIN json_to_record(document::json) AS added(
            id text, kind text, endpoint text, tenant text, subject text, submitted_at float8, expires_at float8,
            charges text, request_id text, state text, checked_at float8, used text, upstream text, session text,
            tags text
        ) CROSS JOIN seen
        WHERE seen.are_same
    )
    SELECT are_same FROM seen
"""


class RowsChanged(Exception):
    """Rows are not as the transaction took them to be; it has changed nothing."""


class LocksNeeded(Exception):
    """What a transaction asks for is given to one that locks rows only."""


@dataclass
class Rows:
    """Jobs and accounts as they are in the database, or are believed to be."""

    jobs: dict[str, Job] = field(default_factory=dict)
    accounts: dict[Bucket, Account] = field(default_factory=dict)


class SqlTransaction:
    """A `LedgerTransaction` that keeps what is to be written until `write`.

    Args:
        driver: asyncpg's connection, in the greenlet of SQLAlchemy's.
        known: rows that need not be read. Without, all are read and locked until the transaction ends, which the
            caller has begun.

    Attributes:
        written: rows as this transaction leaves them.
    """

    def __init__(self, driver: Any, known: Rows | None = None) -> None:
        self._driver = driver
        self._known = known or Rows()
        self._locks = known is None
        self._found = Rows()
        self.written = Rows()
        self._added: list[Job] = []
        self._changed: dict[str, Job] = {}

    def find_jobs(self, ids: Sequence[str]) -> list[Job]:
        known, found = self._known.jobs, self._found.jobs
        if unknown := [one for one in ids if one not in known]:
            rows = self._fetch(self._lock(_FIND_JOBS, "jobs"), unknown)
            found.update((row[0], job_of_row(row)) for row in rows)
        found.update((one, known[one]) for one in ids if one in known)
        return [found[one] for one in ids if one in found]

    def find_accounts(self, buckets: Sequence[Bucket]) -> dict[Bucket, Account]:
        known, found = self._known.accounts, self._found.accounts
        if unknown := [one for one in buckets if one not in known]:
            rows = self._fetch(self._lock(_FIND_ACCOUNTS, "quota_usage"), *_columns(unknown, 5))
            found.update((Bucket(*row[:5]), Account(*row[5:])) for row in map(tuple, rows))
        found.update((one, known[one]) for one in buckets if one in known)
        return {one: found[one] for one in buckets if one in found}

    def find_grants(self, holders: Sequence[GrantHolder], at: float) -> dict[GrantHolder, list[Grant]]:
        self._require_locks()
        found: dict[GrantHolder, list[Grant]] = {}
        for row in self._fetch(_FIND_GRANTS, *_columns(holders, 3), at):
            grant = Grant(*row)
            found.setdefault(GrantHolder(grant.tenant, grant.subject, grant.unit), []).append(grant)
        return found

    def create_accounts(self, buckets: Sequence[Bucket]) -> None:
        self._require_locks()
        self._fetch(_CREATE_ACCOUNTS, *_columns(buckets, 5))

    def update_accounts(self, accounts: Mapping[Bucket, Account]) -> None:
        self.written.accounts.update(accounts)

    def add_jobs(self, jobs: Collection[Job]) -> None:
        self._added.extend(jobs)
        self.written.jobs.update((job.id, job) for job in jobs)

    def update_jobs(self, jobs: Collection[Job]) -> None:
        self._changed.update((job.id, job) for job in jobs)
        self.written.jobs.update((job.id, job) for job in jobs)

    def write(self) -> None:
        """Write everything.

        Raises:
            RowsChanged: a row that was found is not the same any more.
        """
        found, written = self._found, self.written
        if not (found.jobs or found.accounts or written.jobs or written.accounts):
            return
        jobs = [
            _changes_of_job(one, found.jobs.get(one), self._changed.get(one))
            for one in found.jobs.keys() | self._changed.keys()
        ]
        accounts = [
            _changes_of_account(one, found.accounts.get(one), written.accounts.get(one))
            for one in found.accounts.keys() | written.accounts.keys()
        ]
        added = [dict(zip(_JOB_NAMES, row_of_job(job), strict=True)) for job in self._added]
        documents = ([dump_json(one) for one in some] for some in (jobs, accounts, added))
        ((are_same,),) = self._fetch(_WRITE, *documents)
        if not are_same:
            raise RowsChanged

    def _require_locks(self) -> None:
        if not self._locks:
            raise LocksNeeded

    def _lock(self, statement: str, table: str) -> str:
        return f"{statement} FOR UPDATE OF {table}" if self._locks else statement

    def _fetch(self, statement: str, *values: Any) -> Any:
        return await_(self._driver.fetch(statement, *values))


def _columns(rows: Iterable[Sequence[Any]], width: int) -> Sequence[Sequence[Any]]:
    """Turn rows into columns, as arrays of the driver."""
    return list(zip(*rows, strict=True)) or [()] * width


def _changes_of_job(job_id: str, old: Job | None, new: Job | None) -> dict[str, Any]:
    """List the values of a job as it was found, and those that change; what is missing is NULL."""
    document: dict[str, Any] = {"id": job_id}
    if old is not None:
        document |= {
            "tenant": old.tenant,
            "subject": old.subject,
            "old_request_id": old.request_id,
            "old_state": old.state,
            "old_checked_at": old.checked_at,
            "old_expires_at": old.expires_at,
        }
    if new is not None:
        document |= {
            "request_id": new.request_id,
            "state": new.state,
            "used": dict(new.used),
            "checked_at": new.checked_at,
            "expires_at": new.expires_at,
        }
    return document


def _changes_of_account(bucket: Bucket, old: Account | None, new: Account | None) -> dict[str, Any]:
    """List the values of an account as it was found, and as it becomes."""
    document = bucket._asdict()
    if old is not None:
        document |= {"old_used": old.used, "old_reserved": old.reserved}
    if new is not None:
        document |= {"used": new.used, "reserved": new.reserved}
    return document

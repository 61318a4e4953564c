"""The SQL of the ledger's transactions on SQLite.

SQLite is a function call away: to state a statement once a row costs nothing there, and SQLAlchemy's work for each
execution would take ten times as long as SQLite's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from proxy.stores.grants import GRANT_PREFIX, MOST_SPENT, Grant, GrantHolder
from proxy.stores.job_rows import JOB_COLUMNS, dump_json, job_of_row, row_of_job
from proxy.stores.ledger import Account, Bucket, Job

_FIND_JOB = f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?"
_ADD_JOB = f"INSERT INTO jobs ({JOB_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE_JOB = "UPDATE jobs SET request_id = ?, state = ?, used = ?, checked_at = ?, expires_at = ? WHERE id = ?"
_FIND_ACCOUNT = """
    SELECT used, reserved FROM quota_usage
    WHERE tenant = ? AND subject = ? AND unit = ? AND "window" = ? AND window_start = ?
"""
_FIND_GRANTS = f"""
    SELECT id, tenant, subject, unit, amount, reason, created_at, expires_at, key_hash FROM grants
    WHERE tenant = ? AND subject = ? AND unit = ? AND (expires_at IS NULL OR expires_at > ?)
        AND amount > coalesce((
            SELECT used + reserved FROM quota_usage
            WHERE tenant = grants.tenant AND subject = '{GRANT_PREFIX}' || grants.id
        ), 0)
    ORDER BY expires_at NULLS LAST, id LIMIT {MOST_SPENT}
"""
_CREATE_ACCOUNT = """
    INSERT INTO quota_usage (tenant, subject, unit, "window", window_start, used, reserved)
    VALUES (?, ?, ?, ?, ?, 0, 0) ON CONFLICT DO NOTHING
"""
_UPDATE_ACCOUNT = """
    UPDATE quota_usage SET used = ?, reserved = ?
    WHERE tenant = ? AND subject = ? AND unit = ? AND "window" = ? AND window_start = ?
"""


class SqliteTransaction:
    """A `LedgerTransaction` over a connection that has begun one. SQLite's lock is that of the whole file.

    Args:
        known_jobs, known_accounts: rows as the file has them, which are not read again.

    Attributes:
        jobs, accounts: rows as this transaction wrote them.
        is_certain: whether every row that was to be changed was there.
    """

    def __init__(
        self, connection: sqlite3.Connection, known_jobs: Mapping[str, Job], known_accounts: Mapping[Bucket, Account]
    ) -> None:
        self._connection = connection
        self._known_jobs = known_jobs
        self._known_accounts = known_accounts
        self.jobs: dict[str, Job] = {}
        self.accounts: dict[Bucket, Account] = {}
        self.is_certain = True

    def find_jobs(self, ids: Sequence[str]) -> list[Job]:
        return [job for job in map(self._find_job, ids) if job is not None]

    def find_accounts(self, buckets: Sequence[Bucket]) -> dict[Bucket, Account]:
        found = ((bucket, self._find_account(bucket)) for bucket in buckets)
        return {bucket: account for bucket, account in found if account is not None}

    def find_grants(self, holders: Sequence[GrantHolder], at: float) -> dict[GrantHolder, list[Grant]]:
        return {one: [Grant(*row) for row in self._connection.execute(_FIND_GRANTS, (*one, at))] for one in holders}

    def create_accounts(self, buckets: Sequence[Bucket]) -> None:
        self._connection.executemany(_CREATE_ACCOUNT, buckets)

    def update_accounts(self, accounts: Mapping[Bucket, Account]) -> None:
        self._change(_UPDATE_ACCOUNT, [(*account, *bucket) for bucket, account in accounts.items()])
        self.accounts.update(accounts)

    def add_jobs(self, jobs: Collection[Job]) -> None:
        self._change(_ADD_JOB, [row_of_job(job) for job in jobs])
        self.jobs.update((job.id, job) for job in jobs)

    def update_jobs(self, jobs: Collection[Job]) -> None:
        self._change(_UPDATE_JOB, [_life_of(job) for job in jobs])
        self.jobs.update((job.id, job) for job in jobs)

    def _change(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if self._connection.executemany(statement, rows).rowcount != len(rows):
            self.is_certain = False

    def _find_job(self, job_id: str) -> Job | None:
        known = self.jobs.get(job_id) or self._known_jobs.get(job_id)
        if known is None or not self.is_certain:
            row = self._connection.execute(_FIND_JOB, (job_id,)).fetchone()
            return None if row is None else job_of_row(row)
        return known

    def _find_account(self, bucket: Bucket) -> Account | None:
        known = self.accounts.get(bucket) or self._known_accounts.get(bucket)
        if known is None or not self.is_certain:
            row = self._connection.execute(_FIND_ACCOUNT, bucket).fetchone()
            return None if row is None else Account._make(row)
        return known


def _life_of(job: Job) -> tuple[Any, ...]:
    """List the values that change in the life of a job, and its id."""
    return job.request_id, job.state, dump_json(dict(job.used)), job.checked_at, job.expires_at, job.id

"""Rows of jobs, as the ledger's own SQL reads and writes them; their columns are in the order of `JOB_COLUMNS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson

from proxy.stores.ledger import Account, Bucket, Job
from proxy.stores.transaction import pack_charges, unpack_charges

JOB_COLUMNS = (
    "id, kind, endpoint, tenant, subject, submitted_at, expires_at, charges, request_id, state, checked_at, used,"
    " upstream, session, tags"
)


class WrittenRows(Protocol):
    """The rows that a transaction wrote, as it left them."""

    @property
    def jobs(self) -> Mapping[str, Job]: ...

    @property
    def accounts(self) -> Mapping[Bucket, Account]: ...


def job_of_row(row: Sequence[Any]) -> Job:
    """Return the job of a row, whose JSON is text."""
    job_id, kind, endpoint, tenant, subject, submitted_at, expires_at, charges, *life = row
    request_id, state, checked_at, used, upstream, session, tags = life
    return Job(
        job_id,
        kind,
        endpoint,
        tenant,
        subject,
        submitted_at,
        expires_at,
        unpack_charges(tenant, orjson.loads(charges)),
        request_id,
        state,
        checked_at,
        orjson.loads(used),
        upstream,
        session,
        tuple(orjson.loads(tags)) if tags else (),
    )


def row_of_job(job: Job) -> tuple[Any, ...]:
    return (
        job.id,
        job.kind,
        job.endpoint,
        job.tenant,
        job.subject,
        job.submitted_at,
        job.expires_at,
        dump_json(pack_charges(job)),
        job.request_id,
        job.state,
        job.checked_at,
        dump_json(dict(job.used)),
        job.upstream,
        job.session,
        dump_json(job.tags) if job.tags else None,
    )


def dump_json(document: Any) -> str:
    """Write a document for a column or a statement.

    Raises:
        OverflowError: it has a number of more than 64 bits, or half of a character.
    """
    try:
        return orjson.dumps(document).decode()
    except TypeError as problem:
        raise OverflowError(str(problem)) from None


def remember_rows(jobs: dict[str, Job], accounts: dict[Bucket, Account], written: WrittenRows) -> None:
    """Add what a transaction wrote to the rows that are known, but for jobs that are over: hardly any is asked for."""
    accounts.update(written.accounts)
    for job in written.jobs.values():
        if job.is_over:
            jobs.pop(job.id, None)
        else:
            jobs[job.id] = job

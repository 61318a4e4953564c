"""Rows of jobs, as the ledger's own SQL reads and writes them; their columns are in the order of `JOB_COLUMNS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from proxy.stores.ledger import Job
from proxy.stores.transaction import pack_charges, unpack_charges

JOB_COLUMNS = (
    "id, kind, endpoint, tenant, subject, submitted_at, expires_at, charges, request_id, state, checked_at, used,"
    " upstream, session, tags"
)


def job_of_row(row: Sequence[Any]) -> Job:
    """The job of a row, whose JSON is text."""
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

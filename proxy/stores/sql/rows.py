"""Rows of jobs and accounts, as the ledger's values."""

from __future__ import annotations

from typing import Any

from proxy.stores.ledger import OPEN_STATES, Account, Bucket, Job
from proxy.stores.sql.schema import jobs
from proxy.stores.transaction import unpack_charges

#: Built once, as all expressions are that do not change: a new one of this kind leaves cycles of objects behind.
IS_OPEN = jobs.c.state.in_(OPEN_STATES)


def job_of(row: Any) -> Job:
    return Job(**{**row._asdict(), "charges": unpack_charges(row.tenant, row.charges), "tags": tuple(row.tags or ())})


def bucket_of(row: Any) -> Bucket:
    return Bucket(row.tenant, row.subject, row.unit, row.window, row.window_start)


def account_of(row: Any) -> Account:
    return Account(row.used, row.reserved)

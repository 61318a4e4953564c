"""The answer to a status poll: the first time, and for each repetition."""

from __future__ import annotations

from typing import NamedTuple

from proxy.calls.call import Form, Outcome
from proxy.jobs.updates import Update
from proxy.stores.ledger import Job
from proxy.upstream.headers import JSON, REQUEST_ID


class StatusQuery(NamedTuple):
    """A poll: the job it is about, and the form of its answer."""

    job: Job
    logs: bool
    form: Form


def answer_status(query: StatusQuery, update: Update) -> Outcome:
    """Answer a poll from the state of the job that is in memory."""
    headers = {"content-type": JSON, REQUEST_ID: query.job.request_id or ""}
    body = update.encode(0 if query.logs else None, query.form.rewrite)
    return Outcome(200 if update.is_last else query.form.pending_status, headers, body, job=query.job)

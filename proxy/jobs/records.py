"""A job as operators see it, from its entry in the ledger."""

from __future__ import annotations

from typing import Any

from proxy.clock import to_iso
from proxy.limits.usage import to_units
from proxy.stores.ledger import Charge, Job


def describe_job(job: Job) -> dict[str, Any]:
    """Describe a job for one line of a list."""
    names = ("id", "request_id", "kind", "endpoint", "tenant", "subject")
    # Whether its usage is in the sums of days yet is of no interest here.
    state = "settled" if job.is_booked else job.state
    fields = {name: getattr(job, name) for name in names}
    return {**fields, "state": state, "submitted_at": to_iso(job.submitted_at, "microseconds")}


def describe_details(job: Job) -> dict[str, Any]:
    """Describe all that the ledger knows of a job, with its timeline."""
    return {
        **describe_job(job),
        "upstream": job.upstream,
        "session": job.session,
        "tags": list(job.tags),
        "used": {unit: to_units(amount) for unit, amount in job.used.items()},
        "charges": [_describe_charge(charge) for charge in job.charges],
        "timeline": _list_events(job),
    }


def _list_events(job: Job) -> list[dict[str, str]]:
    # `checked_at` of a job that is over is when it was booked.
    last = "settled" if job.is_booked else "released" if job.is_over else "checked"
    events = [("submitted", job.submitted_at), (last, job.checked_at)]
    if not job.is_over:
        events.append(("expires", job.expires_at))
    return [{"event": event, "at": to_iso(at, "microseconds")} for event, at in events]


def _describe_charge(charge: Charge) -> dict[str, Any]:
    bucket = charge.bucket
    return {
        "account": bucket.subject.strip(),
        "unit": bucket.unit,
        "window": bucket.window,
        "window_start": to_iso(bucket.window_start),
        "reserved": to_units(charge.amount),
    }

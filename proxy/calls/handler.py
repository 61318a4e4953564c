"""Chooses the handler that answers a kind of call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from proxy.calls.call import Call, Outcome
from proxy.calls.jobs import JobHandler
from proxy.calls.models import ModelHandler
from proxy.targets import Kind

Handlers = Mapping[Kind, Callable[[Call], Awaitable[Outcome]]]


def new_handlers(models: ModelHandler, jobs: JobHandler) -> Handlers:
    """Give the method that answers each kind of call."""
    return {
        Kind.RUN: models.run,
        Kind.STREAM: models.stream,
        Kind.SUBMIT: models.submit,
        Kind.STATUS: jobs.status,
        Kind.STATUS_STREAM: jobs.status_stream,
        Kind.RESULT: jobs.result,
        Kind.CANCEL: jobs.cancel,
    }

"""Answers from memory, nine in ten: status polls of jobs that are followed, and results that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from proxy.jobs.updates import Rewrite, Update
from proxy.policy.gate import Admission
from proxy.stores.base import Job
from proxy.targets import Kind, Target
from proxy.upstream.headers import JSON

if TYPE_CHECKING:
    from proxy.routes.services import Services

_CONTENT_TYPE = (b"content-type", JSON.encode())


class Asked(NamedTuple):
    """A poll: which job it is about, and the form of its answer."""

    job: Job
    target: Target
    rewrite: Rewrite | None


class Told(Response):
    """The answer to a poll, a document that is encoded already; it costs what its few headers cost."""

    def __init__(self, asked: Asked, update: Update) -> None:
        self.asked = asked
        self.body = update.encoded(0 if asked.target.logs else None, asked.rewrite)
        self.status_code = 200 if update.is_last else 202
        self.background = None
        self.raw_headers = [
            _CONTENT_TYPE,
            (b"x-fal-request-id", asked.target.request_id.encode()),
            (b"content-length", b"%d" % len(self.body)),
        ]


async def from_memory(services: Services, admission: Admission, rewrite: Rewrite | None) -> Response | None:
    """The answer to an admitted poll or fetch, if it is as well known here as at fal."""
    target, job = admission.target, admission.job
    if job is None or target.kind not in (Kind.STATUS, Kind.RESULT):
        return None
    if target.kind is Kind.RESULT:
        result = services.results.known(target.request_id)
        return result.response() if result else None
    update = services.hub.known(job)
    if update is None:
        return None
    if not update.is_last:
        await services.settlement.lives(job)
    return Told(Asked(job, target, rewrite), update)

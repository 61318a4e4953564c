"""fal's queue: the state of a job. Callers who ask at the same moment share one request."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import orjson

from proxy.jobs.settlement import Settlement, parse_document
from proxy.jobs.updates import STATES
from proxy.singleflight import SingleFlight
from proxy.stores.ledger import Job
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.client import Upstream
from proxy.upstream.relay import BufferedResponse


class StatusReport(NamedTuple):
    """fal's answer about the state of a job.

    Attributes:
        document: its JSON object, with the id that callers know; None for an error, or if it is not an object.
    """

    reply: BufferedResponse
    document: dict[str, Any] | None

    @property
    def state(self) -> str | None:
        """Where the job stands; None if fal does not say."""
        state = None if self.document is None else self.document.get("status")
        return state if state in STATES else None


class FalQueue:
    """Asks fal where jobs stand."""

    def __init__(self, upstream: Upstream, settlement: Settlement) -> None:
        self._upstream = upstream
        self._settlement = settlement
        self._headers = headers.to_fal((), streams=False)
        self._flights: SingleFlight[StatusReport] = SingleFlight()

    def status(self, job: Job, *, logs: bool) -> Awaitable[StatusReport]:
        """Ask for the state of a job.

        Raises:
            ProxyError: fal cannot be asked.
        """
        return self._flights.run((job.request_id, logs), partial(self._fetch, job, logs))

    async def _fetch(self, job: Job, logs: bool) -> StatusReport:
        target = Target(Kind.STATUS, app=job.app, request_id=job.request_id or "", logs=logs)
        reply = await self._upstream.fetch(target, self._headers)
        document = parse_document(reply.body) if reply.is_success else None
        if not isinstance(document, dict):
            return StatusReport(reply, None)
        if document.get("status") in STATES:
            await self._settlement.record_status(job, document)
        # The id that its callers know, whatever fal writes: their URLs are made of it.
        given, document["request_id"] = document.get("request_id"), job.request_id
        if given not in (None, job.request_id):
            reply = replace(reply, body=orjson.dumps(document))
        return StatusReport(reply, document)

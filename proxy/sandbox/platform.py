"""api.fal.ai: what the account used, from the sandbox's own record of its jobs, in the form that fal documents.

Of the Platform APIs there are the pages "Usage" and "Analytics" for days in UTC; see proxy/upstream/platform.py.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.sandbox.jobs import Job
from proxy.sandbox.replies import reply
from proxy.sandbox.state import SandboxState
from proxy.sandbox.timing import COMPLETED

#: US dollars a compute second, of every endpoint.
UNIT_PRICE = 0.01
UNIT = "compute second"
#: Days on a page, so that a few already need more than one.
PAGE_DAYS = 2
_METRICS = ("request_count", "success_count", "user_error_count", "error_count")
#: By day and endpoint, what is counted.
_Days = Mapping[tuple[str, str], Mapping[str, float]]


class Platform:
    """The routes of the platform API."""

    def __init__(self, sandbox: SandboxState) -> None:
        self.sandbox = sandbox

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models/usage", self.usage, methods=["GET"]),
            Route("/v1/models/analytics", self.analytics, methods=["GET"]),
        ]

    async def usage(self, request: Request) -> Response:
        wanted, found = set(_list_values(request, "endpoint_id")), await self._count()
        lines = {
            key: _describe_use(key[1], counted["seconds"])
            for key, counted in found.items()
            if counted["seconds"] and (not wanted or key[1] in wanted)
        }
        return _page(request, lines)

    async def analytics(self, request: Request) -> Response:
        wanted, found = set(_list_values(request, "endpoint_id")), await self._count()
        metrics = [name for name in _list_values(request, "expand") if name in _METRICS]
        if not wanted or not metrics:
            return _refuse("validation_error", "endpoint_id and a metric in expand are required", 400)
        lines = {
            (day, endpoint): {"endpoint_id": endpoint, **{name: int(counted[name]) for name in metrics}}
            for (day, endpoint), counted in found.items()
            if endpoint in wanted
        }
        return _page(request, lines)

    async def _count(self) -> _Days:
        """Count what the jobs that are over used, by the day of their submission."""
        found: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for job in self.sandbox.jobs:
            if job.step.state == COMPLETED:
                day = datetime.fromtimestamp(job.created, UTC).date().isoformat()
                found[day, job.endpoint.id].update(await _measure(job))
        return found


async def _measure(job: Job) -> dict[str, float]:
    answer = await job.answer()
    kind = "success_count" if answer.status < 400 else "user_error_count" if answer.status < 500 else "error_count"
    seconds = job.compute_seconds if answer.status < 400 else 0
    return {"request_count": 1, kind: 1, "seconds": seconds}


def _describe_use(endpoint: str, seconds: float) -> dict[str, Any]:
    seconds = round(seconds, 6)
    price = {"unit_price": UNIT_PRICE, "cost": round(seconds * UNIT_PRICE, 9), "currency": "USD"}
    return {"endpoint_id": endpoint, "unit": UNIT, "quantity": seconds, **price}


def _page(request: Request, lines: Mapping[tuple[str, str], dict[str, Any]]) -> Response:
    """Answer with a page of days between `start` and `end`, and the cursor to the next page."""
    query = request.query_params
    try:
        start, end = (datetime.fromisoformat(query[name]).astimezone(UTC) for name in ("start", "end"))
        number = int(base64.b64decode(query.get("cursor", ""), validate=True) or b"1")
    except (KeyError, ValueError):
        return _refuse("validation_error", "Invalid request parameters", 400)
    buckets: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for (day, _), line in sorted(lines.items()):
        if start <= datetime.fromisoformat(f"{day}T00:00:00+00:00") < end:
            buckets[day].append(line)
    series = [{"bucket": f"{day}T00:00:00+00:00", "results": results} for day, results in buckets.items()]
    shown = series[(number - 1) * PAGE_DAYS : number * PAGE_DAYS]
    has_more = len(series) > number * PAGE_DAYS
    cursor = base64.b64encode(str(number + 1).encode()).decode() if has_more else None
    return reply({"time_series": shown, "next_cursor": cursor, "has_more": has_more})


def _list_values(request: Request, name: str) -> list[str]:
    """List the values of a key, which may be there more than once, or have several separated by commas."""
    return [part for value in request.query_params.getlist(name) for part in value.split(",")]


def _refuse(kind: str, message: str, status: int) -> Response:
    return reply({"error": {"type": kind, "message": message}}, status)

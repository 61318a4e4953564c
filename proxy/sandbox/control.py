"""The sandbox's own routes, for tests and developers.

GET    /_sandbox/requests     every request received, oldest first; DELETE empties the list
POST   /_sandbox/faults       set a fault for coming requests (see `faults` and `fault_kinds`); DELETE clears them
POST   /_sandbox/pace         change the pace of coming jobs (see `timing`); DELETE brings the first one back
GET    /_sandbox/jobs         all jobs, oldest first
POST   /_sandbox/jobs/{id}    move a job: `{"state": s}`, where s is
                              hold                      stay where it is
                              IN_QUEUE or IN_PROGRESS   move there and stay
                              go                        go on at its pace
                              finish or COMPLETED       end now with the model's answer
                              fail                      end now with the failure `error_type`
                              lose                      forget it
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.sandbox import faults
from proxy.sandbox.answers import failure
from proxy.sandbox.jobs import Job
from proxy.sandbox.state import SandboxState


class Control:
    """The routes under `/_sandbox`."""

    def __init__(self, sandbox: SandboxState) -> None:
        self.sandbox = sandbox
        self.first_pace = sandbox.timing

    def routes(self) -> list[Route]:
        return [
            Route("/requests", self.requests, methods=["GET", "DELETE"]),
            Route("/faults", self.faults, methods=["POST", "DELETE"]),
            Route("/pace", self.timing, methods=["GET", "POST", "DELETE"]),
            Route("/jobs", self.jobs, methods=["GET"]),
            Route("/jobs/{id}", self.move, methods=["POST"]),
        ]

    async def requests(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.sandbox.request_log.forget()
        return _json(self.sandbox.request_log.as_json())

    async def faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.sandbox.faults.clear()
            return _json({})
        try:
            self.sandbox.faults.add(faults.from_json(await _object(request)))
        except (ValueError, TypeError) as error:
            return _json({"detail": str(error)}, 422)
        return _json({}, 201)

    async def timing(self, request: Request) -> Response:
        try:
            if request.method == "DELETE":
                self.sandbox.timing = self.first_pace
            if request.method == "POST":
                self.sandbox.timing = self.sandbox.timing.override(await _object(request))
        except (ValueError, TypeError) as error:
            return _json({"detail": str(error)}, 422)
        return _json(asdict(self.sandbox.timing))

    async def jobs(self, request: Request) -> Response:
        return _json([job.as_json() for job in self.sandbox.jobs])

    async def move(self, request: Request) -> Response:
        job = self.sandbox.jobs.get(request.path_params["id"])
        if job is None:
            return _json({"detail": "no such job"}, 404)
        try:
            self._move(job, await _object(request))
        except (ValueError, TypeError) as error:
            return _json({"detail": str(error)}, 422)
        return _json(job.as_json())

    def _move(self, job: Job, order: dict[str, Any]) -> None:
        match order.get("state"):
            case "hold":
                job.hold()
            case "IN_QUEUE" | "IN_PROGRESS" as state:
                job.hold(state)
            case "go":
                job.go()
            case "finish" | "COMPLETED":
                job.end()
            case "fail":
                job.end(failure(str(order.get("error_type", "runner_disconnected"))))
            case "lose":
                self.sandbox.jobs.forget(job.id)
            case unknown:
                raise ValueError(f"no such state: {unknown!r}")


async def _object(request: Request) -> dict[str, Any]:
    document = orjson.loads(await request.body() or b"{}")
    if not isinstance(document, dict):
        raise ValueError("a JSON object is wanted")
    return document


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")

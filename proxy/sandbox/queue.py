"""queue.fal.run: submit, status, status stream, result and cancel."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from proxy.catalog import Endpoint
from proxy.sandbox.answers import platform_failure
from proxy.sandbox.jobs import LOG_LINES, Job, Step, queued_steps
from proxy.sandbox.replies import reply, reply_with
from proxy.sandbox.request_log import Exchange
from proxy.sandbox.state import SandboxState
from proxy.sandbox.timing import COMPLETED, IN_QUEUE
from proxy.sandbox.webhooks import Webhooks

_JOB_PATH = re.compile(r"/(?P<app>.+)/requests/(?P<id>[^/]+)(?:/(?P<rest>.+))?")
_EVENT_STREAM = {"cache-control": "no-cache"}
Handler = Callable[[Request, Job], Awaitable[Response]]


class Queue:
    """The routes of the queue; `webhooks` gets the jobs that want one."""

    def __init__(self, sandbox: SandboxState, webhooks: Webhooks) -> None:
        self.sandbox = sandbox
        self.webhooks = webhooks
        self._of_job: dict[tuple[str, str], Handler] = {
            ("GET", "status"): self.status,
            ("GET", "status/stream"): self.status_stream,
            ("GET", ""): self.result,
            ("GET", "response"): self.result,
            ("PUT", "cancel"): self.cancel,
        }

    def routes(self) -> list[Route]:
        return [Route("/{path:path}", self.handle, methods=["GET", "POST", "PUT", "DELETE", "PATCH"])]

    async def handle(self, request: Request) -> Response:
        """Answer a request. One trailing slash is accepted everywhere: old clients send it."""
        path = "/" + request.path_params["path"].removesuffix("/")
        found = _JOB_PATH.fullmatch(path)
        if found is None:
            return await self.submit(request, path[1:])
        handler = self._of_job.get((request.method, found["rest"] or ""))
        if handler is None:
            is_known = found["rest"] in {rest or None for _, rest in self._of_job}
            return reply({"detail": "Method Not Allowed"}, 405) if is_known else reply({"detail": "Not Found"}, 404)
        job = self.sandbox.jobs.get(found["id"])
        if job is None or job.kind != "queue" or job.endpoint.app != found["app"]:
            return reply({"status": "NOT_FOUND"}, 404)
        return await handler(request, job)

    async def submit(self, request: Request, id: str) -> Response:
        exchange: Exchange = request.scope["sandbox"]
        endpoint = self.sandbox.endpoint(id)
        if endpoint is None:
            return reply({"detail": f'Application "{id}" not found'}, 404)
        if request.method != "POST":
            return reply({"detail": "Method Not Allowed"}, 405)
        try:
            orjson.loads(exchange.body)
            if self._is_full(request, endpoint):
                return reply({"detail": "The queue is longer than fal_max_queue_length"}, 429)
            timing = self.sandbox.timing_for(exchange)
            work = self.sandbox.work(endpoint, exchange, timing)
            job = self.sandbox.job("queue", endpoint, exchange, timing, work, queued_steps(timing))
        except ValueError as error:
            return reply_with(platform_failure("bad_request", f"Invalid request: {error}"))
        if webhook := request.query_params.get("fal_webhook"):
            self.sandbox.start(self.webhooks.deliver(job, webhook))
        place: dict[str, Any] = {"logs": None, "metrics": {}, "queue_position": job.first.position}
        return reply({"status": IN_QUEUE, **self._urls(request, job), **place}, request_id=job.id)

    def _is_full(self, request: Request, endpoint: Endpoint) -> bool:
        longest = request.query_params.get("fal_max_queue_length")
        return longest is not None and self.sandbox.jobs.count_waiting(endpoint.app) > int(longest)

    async def status(self, request: Request, job: Job) -> Response:
        step = job.look()
        body = await self._status(request, job, step, _lines(job, 0, step.done))
        return reply(body, 200 if step.state == COMPLETED else 202, request_id=job.id)

    async def status_stream(self, request: Request, job: Job) -> Response:
        headers = _EVENT_STREAM | {"x-fal-request-id": job.id}
        return StreamingResponse(self._events(request, job), 200, headers, "text/event-stream")

    async def result(self, request: Request, job: Job) -> Response:
        if job.step.state != COMPLETED:
            return reply({"detail": "Request is still in progress"}, 400, request_id=job.id)
        return reply_with(await job.answer(), job.id)

    async def cancel(self, request: Request, job: Job) -> Response:
        if not job.cancel():
            return reply({"status": "ALREADY_COMPLETED"}, 400, request_id=job.id)
        return reply({"status": "CANCELLATION_REQUESTED"}, 202, request_id=job.id)

    async def _events(self, request: Request, job: Job) -> AsyncIterator[bytes]:
        """Yield every step from the one that is reached now, with its new log lines; a comment when nothing happens."""
        last_sent: Step | None = None
        async for step in job.watch():
            if step is None:
                yield b": ping\n\n"
            elif last_sent is None or _is_news(request, last_sent, step):
                lines = _lines(job, last_sent.done if last_sent else 0, step.done)
                yield b"data: " + orjson.dumps(await self._status(request, job, step, lines)) + b"\n\n"
                last_sent = step

    async def _status(self, request: Request, job: Job, step: Step, lines: list[dict[str, Any]]) -> dict[str, Any]:
        body = {
            "status": step.state,
            **self._urls(request, job),
            "logs": lines if _wants_logs(request) else None,
            "metrics": {},
        }
        if step.state == IN_QUEUE:
            body["queue_position"] = step.position
        if step.state == COMPLETED:
            answer = await job.answer()
            if answer.error is None:
                body["metrics"] = {"inference_time": job.compute_seconds}
            else:
                body |= {"error": answer.error, "error_type": answer.error_type}
        return body

    def _urls(self, request: Request, job: Job) -> dict[str, Any]:
        url = self.sandbox.url(request, f"/queue/{job.endpoint.app}/requests/{job.id}")
        return {
            "request_id": job.id,
            "response_url": url,
            "status_url": f"{url}/status",
            "cancel_url": f"{url}/cancel",
        }


def _wants_logs(request: Request) -> bool:
    return request.query_params.get("logs", "").lower() in ("1", "true")


def _is_news(request: Request, last_sent: Step, step: Step) -> bool:
    """Return whether a step is news: without logs, one that only brings a log line is not."""
    return _wants_logs(request) or (last_sent.state, last_sent.position) != (step.state, step.position)


def _lines(job: Job, first: int, end: int) -> list[dict[str, Any]]:
    """Write log lines in the shape that every client can decode: Swift and Java look into `labels`."""
    kind = {"level": "INFO", "source": "USER"}
    return [
        {"timestamp": _iso(job.time_of(n + 1)), "message": f"INFO:{LOG_LINES[n]}", **kind, "labels": kind}
        for n in range(first, end)
    ]


def _iso(seconds: float) -> str:
    """Write a moment as fal does: in UTC, without an offset."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()

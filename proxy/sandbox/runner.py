"""fal.run: blocking runs and model streams, and what lies behind them: whatever the method, a runner that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from proxy.catalog import Endpoint, app_of
from proxy.sandbox.answers import platform_failure, refuse
from proxy.sandbox.jobs import Job, direct_steps, streamed_steps
from proxy.sandbox.model import partial_outputs
from proxy.sandbox.replies import reply, reply_with
from proxy.sandbox.request_log import Exchange
from proxy.sandbox.state import SandboxState
from proxy.sandbox.timing import COMPLETED, IN_PROGRESS, Timing

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_NOT_JSON = {"loc": ["body"], "msg": "JSON decode error", "type": "json_invalid"}


class Runner:
    """The routes of direct calls. A direct call is a job too, so that a test can hold it."""

    def __init__(self, sandbox: SandboxState) -> None:
        self.sandbox = sandbox

    def routes(self) -> list[Route]:
        return [Route("/{path:path}", self.handle, methods=_METHODS)]

    async def handle(self, request: Request) -> Response:
        """Answer a request. One trailing slash is accepted: clients end the URL of an endpoint with it."""
        path = request.path_params["path"].removesuffix("/")
        app = app_of(path)
        endpoint = self.sandbox.endpoint(app)
        if endpoint is None:
            return reply({"detail": f'Application "{app}" not found'}, 404)
        below = path.removeprefix(app)
        if below == "/health":
            return reply({"status": "ok", "method": request.method, "endpoint": endpoint.id})
        if below not in ("", "/stream"):
            return reply({"detail": f"Path {below} not found"}, 404, {"x-fal-billable-units": "0"})
        if request.method != "POST":
            return reply({"detail": "Method Not Allowed"}, 405, {"x-fal-billable-units": "0"})
        return await self._call(request, endpoint, streams=below == "/stream")

    async def _call(self, request: Request, endpoint: Endpoint, *, streams: bool) -> Response:
        exchange: Exchange = request.scope["sandbox"]
        try:
            orjson.loads(exchange.body)
        except orjson.JSONDecodeError:
            return reply_with(refuse([_NOT_JSON]))
        try:
            timing = self.sandbox.timing_for(exchange)
            return await (self._stream if streams else self._run)(exchange, endpoint, timing)
        except ValueError as error:
            return reply({"detail": f"sandbox: {error}"}, 400)

    async def _run(self, exchange: Exchange, endpoint: Endpoint, timing: Timing) -> Response:
        """Answer when the model is done, or end the job as fal does when the caller leaves first."""
        work = self.sandbox.work(endpoint, exchange, timing)
        job = self.sandbox.job("run", endpoint, exchange, timing, work, direct_steps(timing))
        left, answer = self.sandbox.start(exchange.wait_for_end()), self.sandbox.start(job.wait_for_answer())
        await asyncio.wait((left, answer), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            job.end(platform_failure("client_disconnected"))
        left.cancel()
        return reply_with(await answer, job.id)

    async def _stream(self, exchange: Exchange, endpoint: Endpoint, timing: Timing) -> Response:
        """Answer with frames, or with plain JSON when the model refuses its input or does not start."""
        work = self.sandbox.work(endpoint, exchange, timing)
        answer = await work
        parts = partial_outputs(answer.body) if answer.status == 200 else []
        job = self.sandbox.job("stream", endpoint, exchange, timing, work, streamed_steps(timing, len(parts)))
        await job.reaches(IN_PROGRESS)
        if job.step.state == COMPLETED and (answer := await job.answer()).status != 200:
            return reply_with(answer, job.id)
        headers = {"cache-control": "no-cache", "x-fal-request-id": job.id}
        return StreamingResponse(_frames(job, parts), 200, headers, "text/event-stream")


async def _frames(job: Job, parts: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Yield frames, each with the whole text so far. The line ends are those that fal's stream helper writes."""
    async for step in job.watch(from_start=True):
        if step is None:
            yield b": ping\r\n\r\n"
        elif step.state == COMPLETED and (await job.answer()).status != 200:
            return
        elif step.done:
            yield b"event: event\r\ndata: " + orjson.dumps(parts[step.done - 1]) + b"\r\n\r\n"

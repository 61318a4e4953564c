"""What the parts of one sandbox share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from proxy.catalog import Endpoint, built_in
from proxy.sandbox import model
from proxy.sandbox.answers import Answer
from proxy.sandbox.faults import Faults
from proxy.sandbox.files import Files
from proxy.sandbox.jobs import Job, Jobs, Step
from proxy.sandbox.pictures import loader
from proxy.sandbox.request_log import Exchange, RequestLog
from proxy.sandbox.signing import Signer
from proxy.sandbox.timing import Timing

T = TypeVar("T")


@dataclass
class SandboxState:
    """One sandbox: the key it wants, the pace of coming jobs, and all that it remembers.

    `base_url` is what the URLs in its answers start with; without one, they start with what the caller called it.
    """

    key: str
    timing: Timing
    base_url: str | None = None
    request_log: RequestLog = field(default_factory=RequestLog)
    faults: Faults = field(default_factory=Faults)
    jobs: Jobs = field(default_factory=Jobs)
    files: Files = field(default_factory=Files)
    signer: Signer = field(default_factory=Signer)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.load = loader(self.files)

    def url(self, request: Request, path: str) -> str:
        base = self.base_url or f"{request.url.scheme}://{request.url.netloc}"
        return base.rstrip("/") + path

    def endpoint(self, id: str) -> Endpoint | None:
        return built_in().get(id)

    def timing_for(self, exchange: Exchange) -> Timing:
        """Return the pace that a request's prompt asks for.

        Raises:
            ValueError: there is no such pace.
        """
        return self.timing.override(exchange.directives.timing)

    def work(self, endpoint: Endpoint, exchange: Exchange, timing: Timing) -> asyncio.Task[Answer]:
        """Start the model on a request's input."""
        return self.start(model.answer(endpoint, exchange.json, self.load, timing, exchange.fail))

    def job(
        self,
        kind: str,
        endpoint: Endpoint,
        exchange: Exchange,
        timing: Timing,
        work: asyncio.Task[Answer],
        steps: list[Step],
    ) -> Job:
        """Make a job for a request, with the start deadline and the faults that the request asks for.

        Raises:
            ValueError: the deadline is no number.
        """
        within = dict(exchange.headers).get("x-fal-request-timeout")
        deadline = None if within is None else float(within)
        return self.jobs.add(
            Job(kind, endpoint, steps, work, timing=timing, start_within=deadline, faults=exchange.later)
        )

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run in the background; the loop itself keeps only weak references to tasks."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.files.close()

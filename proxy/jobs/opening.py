"""Opening fal's status streams, not faster than fal can bear.

When fal restarts, the streams of all jobs break at once. So a stream that is opened again waits for its turn, and there
are `TURNS_PER_SECOND`. Tenants take turns, so that one with many jobs does not delay the others. After a `retry-after`
of fal's there are no turns until that time. While fal refuses streams, first ones wait for a turn as well.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Protocol

from proxy.errors import ProxyError
from proxy.stores.ledger import Job
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.client import Answer, Upstream
from proxy.upstream.engine import text_of
from proxy.upstream.event_reader import StreamBroken
from proxy.upstream.refusals import retry_after_of
from proxy.upstream.relay import is_event_stream

#: Turns a second, of one process.
TURNS_PER_SECOND = 50.0
#: How long fal's `retry-after` may hold up all streams, and up to which part of it is added, so that processes do not
#: come back together.
MOST_WAIT_SECONDS = 60
JITTER = 0.25


class Open(Protocol):
    """Opens the status stream of a job, as `StreamOpener.open`."""

    async def __call__(self, job: Job, *, is_again: bool) -> Answer: ...


class JobUnknown(StreamBroken):
    """fal does not know the job, or does not know it any more."""


class Turns:
    """Lets waiting tasks go on one by one, `per_second` at most."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._next_at = 0.0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, tenant: str) -> None:
        """Wait for the next turn of a tenant."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._schedule()
        await turn

    def postpone(self, seconds: float) -> None:
        """Give no turn for so many seconds."""
        self._next_at = max(self._next_at, asyncio.get_running_loop().time() + seconds)

    def _schedule(self) -> None:
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._next_at, self._give)

    def _give(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting and now >= self._next_at:
            tenant = next(iter(self._waiting))
            waiting = self._waiting.pop(tenant)
            turn = waiting.popleft()
            if waiting:
                # Behind the other tenants.
                self._waiting[tenant] = waiting
            if not turn.done():
                turn.set_result(None)
                self._next_at = now + self._interval
        self._schedule()


class StreamOpener:
    """Opens status streams.

    Attributes:
        is_refused: whether fal refused the last stream, so that others wait for a turn.
    """

    def __init__(self, upstream: Upstream, turns_per_second: float = TURNS_PER_SECOND) -> None:
        self._upstream = upstream
        self._headers = headers.to_fal((), streams=True)
        self._turns = Turns(turns_per_second)
        self.is_refused = False

    async def open(self, job: Job, *, is_again: bool) -> Answer:
        """Open the status stream of a job, with its logs; callers who want none of them do not get them.

        Args:
            is_again: whether the job had a stream before, or an attempt at one.

        Raises:
            JobUnknown: fal does not know the job.
            ProxyError, StreamBroken: it cannot be opened for now.
        """
        if is_again or self.is_refused:
            await self._turns.wait(job.tenant)
        target = Target(Kind.STATUS_STREAM, app=job.app, request_id=job.request_id or "", logs=True)
        try:
            response = await self._upstream.call(target, self._headers)
        except ProxyError as problem:
            self._note_refusal(problem.retry_after)
            raise
        if is_event_stream(response):
            self.is_refused = False
            return response
        await response.aclose()
        if response.status_code == 404:
            raise JobUnknown("fal does not know the job")
        self._note_refusal(retry_after_of(text_of(response.headers)))
        raise StreamBroken(f"fal answered with status {response.status_code} instead of a stream")

    def _note_refusal(self, retry_after: float | None) -> None:
        self.is_refused = True
        if retry_after:
            self._turns.postpone(min(retry_after, MOST_WAIT_SECONDS) * random.uniform(1, 1 + JITTER))

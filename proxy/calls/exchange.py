"""What the handlers of calls share: one exchange with fal, and work that is not to be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from proxy.calls.call import Outcome
from proxy.jobs.settlement import UsageReport, parse_document
from proxy.targets import Target
from proxy.upstream.client import Upstream
from proxy.upstream.relay import BufferedResponse, buffer_response

UNITS = "x-fal-billable-units"
#: How long work that is not to be left half done may go on when the process ends.
LAST_SECONDS = 0.2


async def fetch(
    upstream: Upstream,
    target: Target,
    headers: dict[str, str],
    body: object = None,
    caller: tuple[str, str] | None = None,
) -> BufferedResponse:
    """Make a call to fal and read the whole answer."""
    response = await upstream.call(target, headers, body, caller)
    return await buffer_response(response, repeatable=target.kind.repeatable)


def usage_report(reply: BufferedResponse) -> UsageReport:
    """What an answer of fal's says about the use of its machines."""
    return UsageReport(
        reply.status, reply.headers.get(UNITS), parse_document(reply.body) if reply.status < 400 else None
    )


async def finish(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Return the outcome of work that is not to be left half done.

    It ends with the process all the same: when that cancels, the work may go on for a moment, and is then cancelled.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        _, unfinished = await asyncio.wait({task}, timeout=LAST_SECONDS)
        if unfinished:
            task.cancel()
            await asyncio.wait({task})
        return task.result()

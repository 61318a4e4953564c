"""What the handlers of calls share: what an answer says of its cost, and work that is not to be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from proxy.calls.call import Outcome
from proxy.jobs.settlement import UsageReport, parse_document
from proxy.upstream.relay import BufferedResponse

UNITS = "x-fal-billable-units"
#: How long work that is not to be left half done may go on when the process ends.
LAST_SECONDS = 0.2


def usage_report(reply: BufferedResponse) -> UsageReport:
    """Return what an answer of fal's says about the use of its machines."""
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

"""Following one job's status stream to its end, over as many upstream streams as it takes.

fal's clients take the end of a status stream for the end of the job, so an upstream stream that breaks or falls silent
is opened again, and what was already told is not told twice. Polls are cumulative, streams incremental: a stream opened
anew begins with all logs so far.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson

from proxy.errors import ProxyError
from proxy.upstream.client import Answer
from proxy.upstream.relay import StreamBroken, events_of

#: Pauses between attempts to open a broken stream again; when they are used up, the caller's stream is cut.
PAUSES_SECONDS = (0.1, 0.3, 1.0, 2.0, 5.0, 5.0, 5.0)
_STATES = frozenset({"IN_QUEUE", "IN_PROGRESS", "COMPLETED"})
_log = logging.getLogger(__name__)

Open = Callable[[], Awaitable[Answer]]
Saw = Callable[[bytes], Awaitable[None]]
Rewrite = Callable[[bytes], bytes]


async def follow(
    first: Answer, reopen: Open, saw: Saw, rewrite: Rewrite | None = None
) -> AsyncGenerator[bytes, None]:
    """The job's updates as JSON documents; the last one is COMPLETED. `saw` is told each before it is passed on.

    Raises:
        StreamBroken: fal does not come back, or does not know the job any more.
    """
    trail = LogTrail()
    response: Answer | None = first
    pauses = iter(PAUSES_SECONDS)
    while True:
        if response is not None:
            async with aclosing(_updates(response)) as updates:
                async for update in updates:
                    pauses = iter(PAUSES_SECONDS)
                    fresh = trail.fresh(update)
                    await saw(fresh)
                    yield rewrite(fresh) if rewrite else fresh
                    if update["status"] == "COMPLETED":
                        return
        pause = next(pauses, None)
        if pause is None:
            raise StreamBroken("fal's status stream does not come back")
        await asyncio.sleep(pause)
        response = await _opened(reopen)


async def _updates(response: Answer) -> AsyncGenerator[dict[str, Any], None]:
    """The updates of one upstream stream, as far as it goes."""
    try:
        async with aclosing(events_of(response)) as events:
            async for data in events:
                if (update := _understood(orjson.loads(data))) is not None:
                    yield update
    except StreamBroken as broken:
        _log.info("a status stream broke and is opened again: %s", broken)


def _understood(update: Any) -> dict[str, Any] | None:
    """An update, if it tells a state that there is."""
    known = isinstance(update, dict) and isinstance(update.get("status"), str) and update["status"] in _STATES
    return update if known else None


async def _opened(reopen: Open) -> Answer | None:
    try:
        response = await reopen()
    except ProxyError as problem:
        _log.info("a status stream could not be opened again: %s", problem.code)
        return None
    if response.status_code == 404:
        await response.aclose()
        raise StreamBroken("fal does not know the job any more")
    if not response.is_success:
        await response.aclose()
        return None
    return response


class LogTrail:
    """The log lines that were already told, so that a stream opened anew repeats none."""

    def __init__(self) -> None:
        self._told: set[bytes] = set()

    def fresh(self, update: dict[str, Any]) -> bytes:
        """The update as JSON, with only those logs that are new."""
        logs = update.get("logs")
        if not isinstance(logs, list):
            return orjson.dumps(update)
        lines = {orjson.dumps(line, option=orjson.OPT_SORT_KEYS): line for line in logs}
        new = [line for key, line in lines.items() if key not in self._told]
        self._told.update(lines)
        return orjson.dumps({**update, "logs": new})

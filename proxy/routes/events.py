"""A job's updates as server-sent events, in fal's own form."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from proxy.errors import BadUpstream, NotFound
from proxy.jobs.updates import Rewrite, Update
from proxy.jobs.watch import JobUnknown, Watch
from proxy.upstream import sse
from proxy.upstream.relay import PING_SECONDS, StreamBroken

#: How often fal's stream may fail before its first word; polls ask fal itself after the first time.
ATTEMPTS = 3


async def begun(watch: Watch) -> Update:
    """The latest update of a job, waiting for the first.

    Raises:
        NotFound: fal does not know the job any more.
        BadUpstream: fal's stream cannot be opened.
    """
    try:
        return await watch.begun(ATTEMPTS)
    except JobUnknown:
        raise NotFound from None
    except StreamBroken:
        raise BadUpstream("fal's status stream cannot be opened; try again shortly.", scope="upstream") from None


async def status_events(watch: Watch, *, logs: bool, rewrite: Rewrite | None) -> AsyncGenerator[bytes, None]:
    """What fal's own status stream would tell from now on; the last event is COMPLETED.

    Raises:
        StreamBroken: fal's stream does not come back.
    """
    told: Update | None = None
    async with aclosing(watch.updates(None, PING_SECONDS)) as updates:
        async for news in updates:
            if news is None:
                yield sse.PING
                continue
            update, first_line = news
            # Without logs, an update that only brings a line is none.
            if logs or told is None or told.document != update.document:
                yield sse.encode(update.encoded(first_line if logs else None, rewrite))
            told = update

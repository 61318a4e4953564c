"""The native event stream of a job: from its place in the queue to what came of it, and resumable anywhere in between.

    event: status    id: a mark of the job's life        data: the job, with the log lines that are new
    event: result    id: END                             data: the body of the result
    event: error     id: END                             data: the body that the result's route answers instead

A mark says the same in every process, so a stream can be resumed at another one, or after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson

from proxy.drain import Drain
from proxy.errors import BadRequest, BadUpstream, ProxyError, Unavailable, UpstreamTimeout
from proxy.jobs.opening import JobUnknown
from proxy.jobs.settlement import parsed
from proxy.jobs.updates import Update
from proxy.jobs.watch import PAUSES_SECONDS, Watch
from proxy.routes.events import refusal_of
from proxy.upstream import sse
from proxy.upstream.relay import PING_SECONDS, StreamBroken, Whole

#: The mark of the last event.
END = "END"
#: When a client whose stream ends comes back: at once, and after trouble with fal.
RETRY_SECONDS, TROUBLE_SECONDS = 1.0, 5.0
_MARK = re.compile(r"(?:IN_QUEUE|IN_PROGRESS|COMPLETED)\.[0-9]{0,9}\.[0-9]{1,9}|END")
_log = logging.getLogger(__name__)

Fetch = Callable[[], Awaitable[Whole]]


def parse_mark(text: str | None) -> str | None:
    """The mark that a stream is to be resumed after; None for its beginning, `END` if there is nothing more.

    Raises:
        BadRequest: it is none of ours.
    """
    if not text:
        return None
    if not _MARK.fullmatch(text):
        raise BadRequest("Last-Event-ID must be the id of an event of this job's stream; leave it out to begin anew.")
    return text


def as_job(endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
    """fal's word about a job as the native API tells it: the same facts, under our own names and without fal's URLs."""
    facts = {name: value for name, value in document.items() if name != "request_id" and not name.endswith("_url")}
    return {"id": document.get("request_id"), "endpoint": endpoint, **facts}


async def journal(
    watch: Watch, fetch: Fetch, drain: Drain, after: str | None, request_id: str
) -> AsyncGenerator[bytes, None]:
    """The events of a job after a mark. It ends with the last one, or with when to come back.

    Args:
        fetch: gives the job's result.
        after: the mark of an update; None for the latest.
        request_id: of the request that is answered, for errors of the proxy's own.
    """
    yield sse.retry(RETRY_SECONDS)
    if watch.latest is None:
        yield sse.PING
    try:
        async with aclosing(watch.updates(after, PING_SECONDS)) as updates:
            async for news in updates:
                if news is not None:
                    update, first_line = news
                    yield sse.encode(update.encoded(first_line, as_job), name="status", id_=update.mark)
                elif drain.started.is_set():
                    yield sse.retry(RETRY_SECONDS)
                    return
                else:
                    yield sse.PING
    except JobUnknown:
        # What fal says of it now is its result.
        pass
    except (StreamBroken, ProxyError) as failure:
        _log.info("job event stream ended early", extra={"facts": {"reason": str(failure)}})
        yield sse.retry(TROUBLE_SECONDS)
        if watch.latest is None:
            # It would have been the answer, had the head not gone out. Without an id: the stream can be resumed.
            yield _error(refusal_of(failure).body() | {"request_id": request_id}, id_="")
        return
    yield await _last_event(fetch, request_id) or sse.retry(TROUBLE_SECONDS)


async def preceded(first: Update, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """A job's events after the one that submitting it gave."""
    async with aclosing(events):
        yield sse.encode(first.encoded(None), name="status", id_=first.mark)
        async for event in events:
            yield event


async def _last_event(fetch: Fetch, request_id: str) -> bytes | None:
    """What came of the job; None if fal does not tell for now."""
    for pause in (*PAUSES_SECONDS[:3], None):
        try:
            result = await fetch()
        except (BadUpstream, UpstreamTimeout, Unavailable) as problem:
            _log.info("a job's result is fetched again: %s", problem.code)
            if pause is None:
                return None
            await asyncio.sleep(pause)
        except ProxyError as problem:
            return _error(problem.body() | {"request_id": request_id})
        else:
            return _told(result, request_id)
    return None


def _told(result: Whole, request_id: str) -> bytes:
    if parsed(result.body) is None:
        problem = BadUpstream(f"fal's answer (status {result.status}) is no JSON.", scope="upstream")
        return _error(problem.body() | {"request_id": request_id})
    return sse.encode(result.body, name="result" if 200 <= result.status < 300 else "error", id_=END)


def _error(body: dict[str, Any], *, id_: str = END) -> bytes:
    return sse.encode(orjson.dumps(body), name="error", id_=id_)

"""The event streams of a job, in fal's own form and in the native one.

The native stream reaches from the job's place in the queue to its result, and is resumable anywhere in between:

    event: status    id: a mark of the job's life        data: the job, with the log lines that are new
    event: result    id: END                             data: the body of the result
    event: error     id: END                             data: the body that the result's route answers instead

The last event of a session with quotas of its own also says what is left of them, in `quotas`.

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
from proxy.errors import BadRequest, BadUpstream, NotFound, ProxyError, Unavailable, UpstreamTimeout
from proxy.jobs.opening import JobUnknown
from proxy.jobs.settlement import parse_document
from proxy.jobs.updates import Rewrite, Update
from proxy.jobs.watch import ATTEMPTS, BACKOFF_SECONDS, Watch
from proxy.limits.session_quotas import SessionQuotas
from proxy.upstream import sse
from proxy.upstream.event_reader import StreamBroken
from proxy.upstream.relay import HEAD_SECONDS, PING_SECONDS, BufferedResponse

#: The id of the last event.
END = "END"
#: When a client whose stream ends comes back: at once, and after trouble with fal.
RETRY_SECONDS, TROUBLE_SECONDS = 1.0, 5.0
_EVENT_ID = re.compile(r"(?:IN_QUEUE|IN_PROGRESS|COMPLETED)\.[0-9]{0,9}\.[0-9]{1,9}|END")
_log = logging.getLogger(__name__)

Fetch = Callable[[], Awaitable[BufferedResponse]]


def parse_event_id(text: str | None) -> str | None:
    """Read the id of the event after which a stream is resumed; None for its beginning, `END` if nothing follows.

    Raises:
        BadRequest: it is not the id of an event.
    """
    if not text:
        return None
    if not _EVENT_ID.fullmatch(text):
        raise BadRequest("Last-Event-ID must be the id of an event of this job's stream; leave it out to start over.")
    return text


async def wait_for_first_update(watch: Watch) -> None:
    """Wait for the first update of a job, but no longer than a caller may wait for the head of its stream.

    Raises:
        NotFound: fal does not know the job any more.
        BadUpstream: fal's stream cannot be opened.
    """
    try:
        await watch.first_update(ATTEMPTS, HEAD_SECONDS)
    except StreamBroken as broken:
        raise stream_error(broken) from None


def stream_error(failure: StreamBroken | ProxyError) -> ProxyError:
    """Return the error for a caller whose job's stream fails before the first update."""
    if isinstance(failure, ProxyError):
        return failure
    if isinstance(failure, JobUnknown):
        return NotFound()
    return BadUpstream("fal's status stream cannot be opened; try again shortly.", scope="upstream")


async def status_events(watch: Watch, *, logs: bool, rewrite: Rewrite | None) -> AsyncGenerator[bytes, None]:
    """Yield the events of fal's own status stream from now on; the last one is COMPLETED.

    Raises:
        NotFound, BadUpstream: as `wait_for_first_update`.
        StreamBroken: fal's stream does not come back.
    """
    last_sent: Update | None = None
    if watch.latest is None:
        yield sse.PING
    try:
        async with aclosing(watch.updates(None, PING_SECONDS)) as updates:
            async for news in updates:
                if news is None:
                    yield sse.PING
                    continue
                update, first_line = news
                # An update that only brings a log line is no news without logs.
                if logs or last_sent is None or last_sent.document != update.document:
                    yield sse.encode(update.encode(first_line if logs else None, rewrite))
                last_sent = update
    except StreamBroken as broken:
        if last_sent is None:
            raise stream_error(broken) from None
        raise


async def job_events(
    watch: Watch,
    rewrite: Rewrite,
    fetch: Fetch,
    drain: Drain,
    after: str | None,
    request_id: str,
    quotas: SessionQuotas | None = None,
    first: bytes = b"",
) -> AsyncGenerator[bytes, None]:
    """Yield the native events of a job after a mark, up to the last one, or to the time to come back.

    Args:
        rewrite: the form of the job in a status event.
        fetch: gives the job's result.
        after: the id of an event; None for the latest.
        request_id: of the request that is answered, for errors of the proxy's own.
        quotas: those of the caller's session, if it has some.
        first: an event that comes before the others.
    """
    yield first + sse.retry(RETRY_SECONDS) + (sse.PING if watch.latest is None else b"")
    first = b""
    try:
        async with aclosing(watch.updates(after, PING_SECONDS)) as updates:
            async for news in updates:
                if news is not None:
                    update, first_line = news
                    yield sse.encode(update.encode(first_line, rewrite), name="status", id_=update.mark)
                elif drain.started.is_set():
                    yield sse.retry(RETRY_SECONDS)
                    return
                else:
                    yield sse.PING
    except JobUnknown:
        pass  # What fal says of it now is its result.
    except (StreamBroken, ProxyError) as failure:
        _log.info("job event stream ended early", extra={"log_fields": {"reason": str(failure)}})
        yield sse.retry(TROUBLE_SECONDS)
        if watch.latest is None:
            # The head is sent, so the error is an event; it has no id, as the stream can be resumed.
            yield _error_event(stream_error(failure).body() | {"request_id": request_id}, id_="")
        return
    yield await _last_event(fetch, request_id, quotas) or sse.retry(TROUBLE_SECONDS)


async def _last_event(fetch: Fetch, request_id: str, quotas: SessionQuotas | None) -> bytes | None:
    """Return the event with the result of the job; None if fal does not give it now."""
    for pause in (*BACKOFF_SECONDS[:3], None):
        try:
            result = await fetch()
        except (BadUpstream, UpstreamTimeout, Unavailable) as problem:
            _log.info("result not fetched", extra={"log_fields": {"problem": problem.code}})
            if pause is None:
                return None
            await asyncio.sleep(pause)
        except ProxyError as problem:
            more = {} if quotas is None else await quotas.document()
            return _error_event(problem.body() | {"request_id": request_id} | more)
        else:
            # The quotas are read after the result, when the call has been charged.
            return _result_event(result, request_id, {} if quotas is None else await quotas.document())
    return None


def _result_event(result: BufferedResponse, request_id: str, more: dict[str, Any]) -> bytes:
    if (document := parse_document(result.body)) is None:
        problem = BadUpstream(f"fal's answer (status {result.status}) is not JSON.", scope="upstream")
        return _error_event(problem.body() | {"request_id": request_id} | more)
    body = orjson.dumps(document | more) if more and isinstance(document, dict) else result.body
    return sse.encode(body, name="result" if 200 <= result.status < 300 else "error", id_=END)


def _error_event(body: dict[str, Any], *, id_: str = END) -> bytes:
    return sse.encode(orjson.dumps(body), name="error", id_=id_)

"""Calls to fal. Only this module makes them with the key, and it builds each URL from the target alone.

It turns fal's failures into errors of the proxy. A call that fal may have run or billed never gets a status that makes
a known client send it again.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Hashable
from dataclasses import replace
from functools import lru_cache
from time import perf_counter
from typing import Protocol, TypeVar

import httpx
import orjson

from proxy.errors import BadRequest, BadUpstream, ProxyError
from proxy.settings import FalSettings, Secret
from proxy.targets import Kind, Target
from proxy.upstream import refusals
from proxy.upstream.breaker import evidence_of_error, evidence_of_status
from proxy.upstream.engine import (
    Engine,
    Host,
    HttpxEngine,
    Reply,
    Request,
    StreamedReply,
    decode,
    from_httpx,
    read_reply,
    text_of,
)
from proxy.upstream.failures import failure_of
from proxy.upstream.guard import Guard
from proxy.upstream.headers import JSON
from proxy.upstream.relay import BufferedResponse, buffer_reply
from proxy.upstream.timeouts import Timeouts

#: fal's answer, as the rest of the program knows it.
Answer = StreamedReply
#: Called after each exchange with the kind of call, the status (None without an answer) and the seconds it took.
Observe = Callable[[str, int | None, float], None]
_JOB_PATHS = {
    Kind.STATUS: "/status",
    Kind.STATUS_STREAM: "/status/stream",
    Kind.RESULT: "",
    Kind.CANCEL: "/cancel",
}
_UPLOAD_PATHS = {Kind.UPLOAD_INITIATE: "initiate", Kind.UPLOAD_INITIATE_PARTS: "initiate-multipart"}


class _Answer(Protocol):
    """What both forms of an answer have."""

    @property
    def status_code(self) -> int: ...


A = TypeVar("A", bound=_Answer)
_Send = Callable[[Request, Target, Hashable], Awaitable[A]]


class Upstream:
    """Calls fal, unless the guard knows that fal fails.

    Args:
        timeouts: how long fal may be silent in each phase; the defaults if None.
        guard: shared with what reports fal's health; one of its own if None.
        observe: called after each exchange.
    """

    def __init__(
        self,
        fal: FalSettings,
        transport: Engine | httpx.AsyncBaseTransport,
        timeouts: Timeouts | None = None,
        guard: Guard | None = None,
        observe: Observe = lambda _operation, _status, _seconds: None,
    ) -> None:
        self.guard = guard or Guard()
        self._observe = observe
        self._fal = fal
        self._engine = transport if isinstance(transport, Engine) else HttpxEngine(transport)
        self._timeouts = timeouts or Timeouts()
        self.stream_head_seconds = self._timeouts.stream_head

    def replace_key(self, key: Secret) -> None:
        """Make all further calls with another key; those under way go on with theirs."""
        self._fal = replace(self._fal, key=key)
        self.guard.forget_account()

    async def fetch(
        self, target: Target, headers: dict[str, str], body: object = None, caller: Hashable = None
    ) -> BufferedResponse:
        """Make one call and read its answer to the end.

        Args:
            caller: who makes the call, so that the failures of one caller's input do not count as fal's.

        Raises:
            BadUpstream, UpstreamTimeout, UpstreamAmbiguous: also where the answer breaks off, or is too large.
            ProxyError: else as `call`.
        """
        reply = await self._send_guarded(self._fetch, target, headers, body, caller)
        kind = target.kind
        # Of a submit that fal refused there is no job.
        is_repeatable = kind.repeatable or (kind is Kind.SUBMIT and reply.status_code >= 300)
        return await buffer_reply(reply, repeatable=is_repeatable)

    async def call(
        self, target: Target, headers: dict[str, str], body: object = None, caller: Hashable = None
    ) -> Answer:
        """Make one call; the answer's body is still to be read, and the answer to be closed.

        Args:
            caller: as for `fetch`.

        Raises:
            BadRequest: the body cannot be sent.
            UpstreamUnavailable: nothing was sent; also while fal fails.
            UpstreamAmbiguous: it may have been run, and the answer is lost.
            BadUpstream, UpstreamTimeout: it failed, and repeating it is safe.
            UpstreamRejectedKey, UpstreamAccountLocked, UpstreamBusy, UpstreamRefusedEndpoint: fal refused it, and ran
                nothing.
        """
        return await self._send_guarded(self._send, target, headers, body, caller)

    async def _send_guarded(
        self, send: _Send[A], target: Target, headers: dict[str, str], body: object, caller: Hashable
    ) -> A:
        """Send a request unless fal is known to fail, and let the guard learn from the result."""
        request = self._request(target, headers, body)
        guard = self.guard
        slow_start = guard.slow_start(target)
        if slow_start is None:
            return await send(request, target, caller)
        is_probe = (slow_start.is_full or bool(guard.breakers)) and await guard.admit(target, caller)
        slow_start.leave()
        took = False
        try:
            answer = await send(request, target, caller)
            took = answer.status_code < 500
        finally:
            slow_start.end(took=took)
        if took and guard.breakers:
            guard.succeed(target, is_probe=is_probe)
        return answer

    async def _fetch(self, request: Request, target: Target, caller: Hashable) -> Reply:
        started = perf_counter()
        try:
            reply = await self._engine.fetch(request)
        except httpx.HTTPError as error:
            self._observe(target.kind.value, None, perf_counter() - started)
            raise self._note_failure(error, target, caller) from None
        self._observe(target.kind.value, reply.status_code, perf_counter() - started)
        if reply.status_code >= 300:
            self._examine(await decode(reply), target, caller)
        return reply

    async def _send(self, request: Request, target: Target, caller: Hashable) -> Answer:
        started = perf_counter()
        try:
            answer = await self._engine.open(request)
        except httpx.HTTPError as error:
            self._observe(target.kind.value, None, perf_counter() - started)
            # `from None`: the cause carries the request, and with it the key.
            raise self._note_failure(error, target, caller) from None
        status, headers = answer.status_code, answer.headers
        self._observe(target.kind.value, status, perf_counter() - started)
        if status < 300:
            return answer
        if not refusals.may_refuse(status, target.kind):
            reply = Reply(status, headers, b"")
        else:
            reply = await read_reply(answer, refusals.MOST_BYTES)
            # What was read of it is still to be passed on.
            read = from_httpx(httpx.Response(status, stream=httpx.ByteStream(reply.body)))
            answer = StreamedReply(status, headers, read.body)
        try:
            self._examine(await decode(reply), target, caller)
        except BaseException:
            await answer.aclose()
            raise
        return answer

    def _note_failure(self, error: httpx.HTTPError, target: Target, caller: Hashable) -> ProxyError:
        self.guard.fail(evidence_of_error(error, target.kind), target, caller)
        return failure_of(error, repeatable=target.kind.repeatable)

    def _examine(self, reply: Reply, target: Target, caller: Hashable) -> None:
        """Raise the error for a reply without success, which is decoded, unless it passes on in fal's own words.

        Raises:
            ProxyError: as `call`.
        """
        status, kind = reply.status_code, target.kind
        headers = text_of(reply.headers)
        if refusals.may_refuse(status, kind):
            is_whole = reply.error is None and len(reply.body) <= refusals.MOST_BYTES
            if reason := refusals.reason_of(status, reply.body if is_whole else b""):
                self.guard.note(reason)
                raise refusals.error_of(reason, headers, self.guard.locked_seconds())
            if not is_whole:
                raise refusals.not_fals(status, headers, repeatable=kind.repeatable)
        if status >= 500:
            self.guard.note(refusals.Reason.SERVER_ERROR)
            self.guard.fail(evidence_of_status(status, headers, kind), target, caller)
        if not refusals.passes_on(status, headers):
            raise refusals.not_fals(status, headers, repeatable=kind.repeatable)

    def _request(self, target: Target, headers: dict[str, str], body: object) -> Request:
        """Build the request for a target."""
        method = "PUT" if target.kind is Kind.CANCEL else "GET" if target.kind.names_job else "POST"
        base, path = self._address_of(target)
        host = host_of(base)
        sent = {"host": host.netloc, **headers, "authorization": f"Key {self._fal.key.reveal()}"}
        content = b""
        if method == "POST":
            content = _encode(body)
            sent["content-type"] = JSON
        if method != "GET":
            sent["content-length"] = str(len(content))
        return Request(method, host, host.prefix + path, sent, content, self._timeouts.for_kind(target.kind))

    async def to_files(
        self, method: str, url: str, headers: dict[str, str], content: bytes | AsyncIterable[bytes]
    ) -> Answer:
        """Call a signed URL that fal gave; the key is not needed there, and not sent. The answer is a success.

        Raises:
            UpstreamUnavailable, BadUpstream, UpstreamTimeout: as `call`; a file can be sent again.
        """
        timeouts = self._timeouts.for_kind(Kind.UPLOAD_INITIATE) | {"read": self._timeouts.file}
        request = httpx.Request(method, url, headers=headers, content=content, extensions={"timeout": timeouts})
        started = perf_counter()
        try:
            answer = await self._engine.send(request)
        except httpx.HTTPError as error:
            self._observe("file", None, perf_counter() - started)
            raise failure_of(error, repeatable=True) from None
        self._observe("file", answer.status_code, perf_counter() - started)
        if not answer.is_success:
            await answer.aclose()
            # Its body is not passed on, as file stores quote the signature that they refuse.
            status = answer.status_code
            raise BadUpstream(f"fal's file store rejected the file (status {status}).", scope="upstream")
        return answer

    def _address_of(self, target: Target) -> tuple[str, str]:
        """Return the base URL of one of fal's hosts, and the path and query below it."""
        if target.kind in _UPLOAD_PATHS:
            return self._fal.rest_url, f"/storage/upload/{_UPLOAD_PATHS[target.kind]}?storage_type=fal-cdn-v3"
        if target.kind.names_job:
            logs = f"?logs={int(target.logs)}" if target.kind in (Kind.STATUS, Kind.STATUS_STREAM) else ""
            path = f"/{target.app}/requests/{target.request_id}{_JOB_PATHS[target.kind]}"
            return self._fal.queue_url, path + logs
        if target.kind is Kind.SUBMIT:
            return self._fal.queue_url, f"/{target.endpoint}"
        return self._fal.run_url, f"/{target.endpoint}{'/stream' if target.kind is Kind.STREAM else ''}"

    async def close(self) -> None:
        await self._engine.aclose()


def _encode(body: object) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        # It writes no more than 254 levels, but reads 1024.
        raise BadRequest("The input is nested too deeply.") from None


@lru_cache(maxsize=16)
def host_of(base: str) -> Host:
    """Return the host of a base URL, remembered, as parsing a URL costs more than sending a request to it."""
    url = httpx.URL(base)
    origin = (url.scheme, url.raw_host.decode("ascii"), url.port)
    return Host(url, origin, url.netloc.decode("ascii"), url.raw_path.rstrip(b"/").decode("ascii"))

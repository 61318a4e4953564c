"""The only one that spends the key: from a target to a call at fal, built from the target alone.

fal's failures become ours here, by one rule: a call that may have been run or billed is never answered with a code
that makes the known clients send it again.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache

import httpx
import orjson

from proxy.errors import (
    BadRequest,
    BadUpstream,
    ProxyError,
    UpstreamAmbiguous,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.settings import FalSettings, Secret
from proxy.targets import Kind, Target
from proxy.upstream import refusals
from proxy.upstream.breaker import evidence_of_error, evidence_of_status
from proxy.upstream.guard import Guard
from proxy.upstream.headers import JSON, REQUEST_ID

#: fal's answer, as the rest of the program knows it.
Answer = httpx.Response
#: Raised by the transport before the first byte of a request has left.
_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_JOB_PATHS = {
    Kind.STATUS: "/status",
    Kind.STATUS_STREAM: "/status/stream",
    Kind.RESULT: "",
    Kind.CANCEL: "/cancel",
}
_UPLOAD_PATHS = {Kind.UPLOAD_INITIATE: "initiate", Kind.UPLOAD_INITIATE_PARTS: "initiate-multipart"}


@dataclass(frozen=True)
class Timeouts:
    """Seconds for each phase of a call. From `read` on: the longest silence, never a total: no live stream is cut."""

    connect: float = 5.0
    pool: float = 5.0
    write: float = 30.0
    read: float = 30.0
    result: float = 60.0
    #: A store may look at a large file for a while before it says that it has it.
    file: float = 120.0
    #: A run is silent until the model is done.
    run: float = 600.0
    stream: float = 120.0
    #: fal pings every 15 seconds.
    status_stream: float = 20.0

    def for_kind(self, kind: Kind) -> dict[str, float]:
        read: float = getattr(self, kind.value, self.read)
        return {"connect": self.connect, "pool": self.pool, "write": self.write, "read": read}


class Upstream:
    def __init__(
        self,
        fal: FalSettings,
        transport: httpx.AsyncBaseTransport,
        timeouts: Timeouts | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.guard = guard or Guard()
        self._fal = fal
        self._transport = transport
        self._timeouts = timeouts or Timeouts()

    def replace_key(self, key: Secret) -> None:
        """Make all further calls with another key; those under way go on with theirs."""
        self._fal = replace(self._fal, key=key)
        self.guard.forget_account()

    async def call(
        self, target: Target, headers: dict[str, str], body: object = None, caller: Hashable = None
    ) -> httpx.Response:
        """Make one call; the answer's body is still to be read, and the answer to be closed.

        Args:
            caller: for whom; the trouble of one caller's input is not taken for fal's.

        Raises:
            BadRequest: the body cannot be sent.
            UpstreamUnavailable: nothing was sent; also while fal fails.
            UpstreamAmbiguous: it may have been run, and the answer is lost.
            BadUpstream, UpstreamTimeout: it failed, and repeating it is safe.
            UpstreamRejectedKey, UpstreamAccountLocked, UpstreamBusy, UpstreamRefusedEndpoint: fal refused it, and ran
                nothing.
        """
        request = self._request(target, headers, body)
        guard = self.guard
        slow_start = guard.slow_start(target)
        if slow_start is None:
            return await self._send(request, target, caller)
        is_probe = (slow_start.is_full or bool(guard.breakers)) and await guard.admit(target, caller)
        slow_start.leave()
        took = False
        try:
            response = await self._send(request, target, caller)
            took = response.status_code < 500
        finally:
            slow_start.end(took=took)
        if took and guard.breakers:
            guard.succeed(target, is_probe=is_probe)
        return response

    async def _send(self, request: httpx.Request, target: Target, caller: Hashable) -> httpx.Response:
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.HTTPError as error:
            self.guard.fail(evidence_of_error(error, target.kind), target, caller)
            # `from None`: the cause carries the request, and with it the key.
            raise failure_of(error, repeatable=target.kind.repeatable) from None
        return response if response.status_code < 300 else await self._examined(response, target, caller)

    async def _examined(self, response: httpx.Response, target: Target, caller: Hashable) -> httpx.Response:
        """An answer that is no success, if it is one of fal's that passes on.

        Raises: as `call`.
        """
        status, kind = response.status_code, target.kind
        # Of a job, fal says with a 404 that it does not know that one.
        if status in refusals.STATUSES and not (status == 404 and kind.names_job):
            response, is_whole = await _in_memory(response)
            if reason := refusals.reason_of(status, response.content):
                self.guard.note(reason)
                raise refusals.error_of(reason, response.headers, self.guard.locked_seconds())
            if not is_whole:
                raise _not_fals(response, repeatable=kind.repeatable)
        if status >= 500:
            self.guard.note(refusals.Reason.SERVER_ERROR)
            self.guard.fail(evidence_of_status(status, response.headers, kind), target, caller)
        if not _passes_on(response):
            await response.aclose()
            raise _not_fals(response, repeatable=kind.repeatable)
        return response

    def _request(self, target: Target, headers: dict[str, str], body: object) -> httpx.Request:
        """The request as it leaves.

        With a `stream` of its own, httpx looks for nothing to add to it; with a `target`, it has no path to examine
        (https://www.python-httpx.org/advanced/extensions/#target).
        """
        method = "PUT" if target.kind is Kind.CANCEL else "GET" if target.kind.names_job else "POST"
        base, path = self._address_of(target)
        url, host, prefix = _parsed(base)
        sent = {"host": host, **headers, "authorization": f"Key {self._fal.key.reveal()}"}
        content = b""
        if method == "POST":
            content = _encoded(body)
            sent["content-type"] = JSON
        if method != "GET":
            sent["content-length"] = str(len(content))
        return httpx.Request(
            method,
            url,
            headers=sent,
            stream=httpx.ByteStream(content),
            extensions={"timeout": self._timeouts.for_kind(target.kind), "target": prefix + path.encode("ascii")},
        )

    async def to_files(
        self, method: str, url: str, headers: dict[str, str], content: bytes | AsyncIterable[bytes]
    ) -> httpx.Response:
        """Call a signed URL that fal gave; the key is not needed there, and not sent. The answer is a success.

        Raises:
            UpstreamUnavailable, BadUpstream, UpstreamTimeout: as `call`; a file can be sent again.
        """
        timeouts = self._timeouts.for_kind(Kind.UPLOAD_INITIATE) | {"read": self._timeouts.file}
        request = httpx.Request(method, url, headers=headers, content=content, extensions={"timeout": timeouts})
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.HTTPError as error:
            raise failure_of(error, repeatable=True) from None
        if not response.is_success:
            await response.aclose()
            # Not passed on: file stores like to quote the signature that they refuse.
            status = response.status_code
            raise BadUpstream(f"fal's file store rejected the file (status {status}).", scope="upstream")
        return response

    def _address_of(self, target: Target) -> tuple[str, str]:
        """The URL of one of fal's hosts, and the path and query below it."""
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
        await self._transport.aclose()


def _encoded(body: object) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        # It writes no more than 254 levels, but reads 1024.
        raise BadRequest("The input is nested too deeply.") from None


@lru_cache(maxsize=16)
def _parsed(base: str) -> tuple[httpx.URL, str, bytes]:
    """The URL of a host, its host and its path without a slash at the end. To parse one costs more than to send it."""
    url = httpx.URL(base)
    return url, url.netloc.decode("ascii"), url.raw_path.rstrip(b"/")


def failure_of(error: httpx.HTTPError, *, repeatable: bool) -> ProxyError:
    """What a broken exchange with fal means to the caller."""
    if isinstance(error, _NOTHING_SENT):
        return UpstreamUnavailable("fal cannot be reached; nothing was sent to it.", scope="upstream")
    if not repeatable:
        return UpstreamAmbiguous(
            "fal's answer was lost; fal may have accepted the request. Check before you repeat it."
        )
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout("fal did not answer in time; try again.", scope="upstream")
    return BadUpstream("The connection to fal broke; try again.", scope="upstream")


async def _in_memory(response: httpx.Response) -> tuple[httpx.Response, bool]:
    """The same answer with its body read, and whether that was all: one that is long, or breaks, is cut off there."""
    body, is_whole = bytearray(), True
    try:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > refusals.MOST_BYTES:
                is_whole = False
                break
        kept = httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(bytes(body)))
        await kept.aread()
    except httpx.HTTPError:
        return httpx.Response(response.status_code, content=b""), False
    finally:
        await response.aclose()
    return kept, is_whole


def _passes_on(response: httpx.Response) -> bool:
    """Whether an answer is a failure in fal's own words, not a redirect, nor one of a machine in front of it."""
    speaks_json = response.headers.get("content-type", "").startswith(JSON)
    return response.status_code >= 400 and (speaks_json or REQUEST_ID in response.headers)


def _not_fals(response: httpx.Response, *, repeatable: bool) -> ProxyError:
    if repeatable:
        message = f"fal answered with something that is not its own (status {response.status_code})."
        return BadUpstream(message, retry_after=refusals.retry_after_of(response.headers), scope="upstream")
    return UpstreamAmbiguous("The answer is not fal's; fal may have accepted the request. Check before you repeat it.")

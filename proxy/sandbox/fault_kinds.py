"""What a fault does to one answer on the wire. Each kind wraps an ASGI application in one that misbehaves.

The first parameter in each line is the main one; `n` events are body messages that are not comments.

    delay       seconds=1            wait, then answer as usual; a caller who hangs up meanwhile gets no job
    status      status=500 body text content_type headers    answer this instead; body has fal's own words by default
    refuse      reason=wrong_key     one of the refusals in `refusals`, in fal's own words
    nginx       status=502           the HTML of a gateway in front of fal
    redirect    to=… status=302
    huge        bytes=…              200 and a JSON body of that size
    headers     name: value …        the usual answer with these headers set
    fail        error_type=…         the model's run ends in this failure of `answers`
    drop        when=before          hang up: before the answer | lost: after the work was done, nothing sent |
                                     during: after half the body | after: the whole body, but no end
    drop_at     bytes=…              hang up at this byte of the body, live
    cut         bytes=…              hang up when so much of the request's body has arrived
    hang                             read the request, never answer
    stall_at    bytes=…              fall silent at this byte of the body, live
    stall       n=0                  headers and n events, then silence
    split       gap_seconds=0.01     cut inside every multi-byte sequence
    chunk       size=1 gap_seconds=0 pieces of that many bytes
    garbage     n=1 text=…           an event that is no JSON, after n events
    duplicate                        every event twice
    reorder                          every two events swapped
    gzip                             a gzip body, asked for or not
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.sandbox.answers import failure, platform_failure
from proxy.sandbox.asgi import LiveBody, Write, body_message, drain, is_comment, read_response, write_spaced
from proxy.sandbox.refusals import refusal
from proxy.sandbox.replies import reply, reply_with
from proxy.sandbox.request_log import Exchange

Params = Mapping[str, Any]
FaultKind = Callable[[ASGIApp, Exchange, Params], ASGIApp]

_MULTIBYTE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")
_REFUSALS = {401: "wrong_key", 402: "payment_required", 403: "balance_used_up"}
_ERROR_TYPES = {429: "concurrent_requests_limit", 500: "internal_error", 502: "runner_incomplete_response",
                503: "runner_connection_error", 504: "startup_timeout"}  # fmt: skip


def delay(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
        # The body of an upload has not been read yet, so its end is not waited for.
        end = asyncio.Event().wait() if exchange.host == "cdn" else exchange.wait_for_end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(end, float(params.get("delay", 1)))
        if exchange.ended is None:
            await app(scope, receive, send)

    return answer_late


def status(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    return _run_instead(_response(int(params.get("status") or 500), params))


def refuse(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    named = {name: str(value) for name, value in (params.get("headers") or {}).items()}
    return _run_instead(reply_with(refusal(str(params.get("refuse") or params.get("reason") or "wrong_key"), named)))


def nginx(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    code = int(params.get("nginx") or params.get("status") or 502)
    title = {502: "502 Bad Gateway", 503: "503 Service Temporarily Unavailable"}.get(code, f"{code} Gateway Time-out")
    page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    page += "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    return _run_instead(HTMLResponse(page, code, {"server": "nginx"}))


def redirect(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    to = str(params.get("redirect") or "https://elsewhere.example/")
    return _run_instead(RedirectResponse(to, int(params.get("status", 302))))


def huge(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    size, block = int(params.get("huge") or 100 * 2**20), 2**16
    head, tail = b'{"output":"', b'"}'

    async def body() -> Any:
        yield head
        left = max(0, size - len(head) - len(tail))
        while left:
            yield b"x" * min(block, left)
            left -= min(block, left)
        yield tail

    return _run_instead(StreamingResponse(body(), media_type="application/json"))


def headers(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    named = params.get("headers") or {}

    async def answer_with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def dress(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update({name: str(value) for name, value in named.items()})
            await send(message)

        await app(scope, receive, dress)

    return answer_with_headers


def fail(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    exchange.fail = str(params.get("fail") or params.get("error_type") or "internal_server_error")
    failure(exchange.fail)
    return app


def drop(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    when = str(params.get("drop") or params.get("when") or "before")
    if when not in ("before", "lost", "during", "after"):
        raise ValueError(f"drop is before, lost, during or after, not {when!r}")

    async def hang_up(scope: Scope, receive: Receive, send: Send) -> None:
        if when == "before":
            await drain(receive)
            return await exchange.hang_up()
        start, body = await read_response(app, scope, receive)
        if when != "lost":
            if when == "after":
                del MutableHeaders(scope=start)["content-length"]
            await send(start)
            await send(body_message(body if when == "after" else body[: len(body) // 2]))
        return await exchange.hang_up()

    return hang_up


def drop_at(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    return _cut_at(app, int(params.get("drop_at") or params.get("bytes") or 0), exchange.hang_up)


def stall_at(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    return _cut_at(app, int(params.get("stall_at") or params.get("bytes") or 0), exchange.wait_for_end)


def _cut_at(app: ASGIApp, left: int, end: Callable[[], Awaitable[None]]) -> ASGIApp:
    async def cut(data: bytes, write: Write) -> None:
        nonlocal left
        part, left = data[:left], left - len(data)
        await write(part)
        if left <= 0:
            await end()

    return LiveBody(app, cut, keeps_length=True)


def cut(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    left = int(params.get("cut") or params.get("bytes") or 1)

    async def cut_off(scope: Scope, receive: Receive, send: Send) -> None:
        async def until_cut() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left <= 0:
                await exchange.hang_up()
                return {"type": "http.disconnect"}
            return message

        await app(scope, until_cut, send)

    return cut_off


def hang(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    async def answer_nothing(scope: Scope, receive: Receive, send: Send) -> None:
        await drain(receive)
        await exchange.wait_for_end()

    return answer_nothing


def stall(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    left = int(params.get("stall") or params.get("n") or 0)

    async def falter(data: bytes, write: Write) -> None:
        nonlocal left
        if left == 0:
            await exchange.wait_for_end()
        left -= not is_comment(data)
        await write(data)

    return LiveBody(app, falter, keeps_length=True)


def split(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    gap = float(params.get("split") or params.get("gap_seconds") or 0.01)

    async def tear(data: bytes, write: Write) -> None:
        cuts = [found.start() + 1 for found in _MULTIBYTE.finditer(data)]
        pieces = (data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))
        await write_spaced(pieces, gap, write)

    return LiveBody(app, tear, keeps_length=True)


def chunk(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    size = max(1, int(params.get("chunk") or params.get("size") or 1))
    gap = float(params.get("gap_seconds", 0))

    async def mince(data: bytes, write: Write) -> None:
        await write_spaced((data[i : i + size] for i in range(0, len(data), size)), gap, write)

    return LiveBody(app, mince, keeps_length=True)


def garbage(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    left = int(params.get("garbage") or params.get("n") or 1)
    text = str(params.get("text", "data: {this is no JSON\n\n")).encode()

    async def litter(data: bytes, write: Write) -> None:
        nonlocal left
        await write(data)
        left -= not is_comment(data)
        if left == 0:
            left = -1
            await write(text)

    return LiveBody(app, litter)


def duplicate(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    async def write_twice(data: bytes, write: Write) -> None:
        await write(data)
        await write(data)

    return LiveBody(app, write_twice)


def reorder(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    held: list[bytes] = []

    async def swap(data: bytes, write: Write) -> None:
        if data and not held:
            return held.append(data)
        await write(data)
        if held:
            await write(held.pop())
        return None

    return LiveBody(app, swap)


def gzip(app: ASGIApp, exchange: Exchange, params: Params) -> ASGIApp:
    packer = zlib.compressobj(wbits=31)

    async def pack(data: bytes, write: Write) -> None:
        # The empty end of the body closes the archive; before it every message is flushed, so that a stream flows.
        await write(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH if data else zlib.Z_FINISH))

    return LiveBody(app, pack, sets={"content-encoding": "gzip"})


FAULT_KINDS: Mapping[str, FaultKind] = {
    damage.__name__: damage
    for damage in (
        delay, status, refuse, nginx, redirect, huge, headers, fail, drop, drop_at, stall_at, cut, hang, stall, split,
        chunk, garbage, duplicate, reorder, gzip,
    )
}  # fmt: skip


def _response(code: int, params: Params) -> Response:
    extra = {name: str(value) for name, value in (params.get("headers") or {}).items()}
    if "text" in params:
        return Response(str(params["text"]), code, extra, media_type=str(params.get("content_type", "text/plain")))
    if "body" in params:
        return reply(params["body"], code, extra)
    if code in _ERROR_TYPES:
        answer = platform_failure(_ERROR_TYPES[code])
        return reply(answer.body, code, {**answer.headers, **extra})
    if code in _REFUSALS:
        return reply_with(refusal(_REFUSALS[code], extra))
    return reply({"detail": f"The sandbox was asked for a {code}"}, code, extra)


def _run_instead(response: Response) -> ASGIApp:
    async def answer_instead(scope: Scope, receive: Receive, send: Send) -> None:
        await drain(receive)
        await response(scope, receive, send)

    return answer_instead

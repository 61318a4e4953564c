"""Routes that take files. One that refuses a file lets the caller finish first, within bounds.

Most clients read an answer only when they have sent everything, and an answer that a connection is closed behind is
often lost with it: pages then see "network error" and not the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive

from proxy.errors import ProxyError
from proxy.http.reply import Reply
from proxy.log_context import bind
from proxy.routes.rendering import bind_call
from proxy.stores.uploads import Upload
from proxy.tenants.caller import Caller
from proxy.uploads.destinations import DestinationRefused
from proxy.upstream.relay import BufferedResponse

#: How much of a refused file is read and thrown away, how long, and how long a silence in it may be.
MOST_BYTES = 32 * 1024 * 1024
MOST_SECONDS, SILENCE_SECONDS = 5.0, 1.0
Endpoint = Callable[[Request], Awaitable[Response]]


def file_route(path: str, endpoint: Endpoint, method: str) -> Route:
    """Make a route whose refusals arrive; what is left of a body then is never taken for the next request."""

    async def answer(request: Request) -> Response:
        body = _Body(request.receive)
        try:
            return await endpoint(Request(request.scope, body.receive))
        except DestinationRefused as refusal:
            return reply_of(refusal.reply)
        except ProxyError as refusal:
            # A client that waits for 100 Continue has sent nothing yet.
            if "expect" in request.headers or not await body.is_drained():
                refusal.headers["connection"] = "close"
            raise

    return Route(path, answer, methods=[method])


def reply_of(answer: BufferedResponse) -> Reply:
    """Make the response that passes an answer of fal's on."""
    return Reply(answer.status, answer.headers, answer.body)


def note_caller(request: Request, caller: Caller) -> None:
    """Name the sender of a file in the log line of this request."""
    bind_call(request, caller)
    bind(request.scope, kind="upload")


def note_owner(request: Request, upload: Upload) -> None:
    """Name the owner of an upload slot in the log line of this request."""
    bind(request.scope, tenant=upload.tenant, subject=upload.subject, kind="upload")
    if upload.tags:
        bind(request.scope, tags=list(upload.tags))


class _Body:
    """What comes from a caller, with the knowledge of whether that was all."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._has_ended = self._has_ended or not message.get("more_body", False)
        return message

    async def is_drained(self) -> bool:
        """Read the rest, as far as the bounds allow; return whether that was all."""
        left = MOST_BYTES
        try:
            async with asyncio.timeout(MOST_SECONDS):
                while not self._has_ended and left > 0:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return False
        return self._has_ended

"""Getting between an application and the server: its answer piece by piece as it flows, or whole and unsent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Write = Callable[[bytes], Awaitable[None]]


class LiveBody:
    """The application with `each` between it and the wire: called with every piece of the body, with b"" at its end.

    Args:
        keeps_length: whether the answer still states the length that the body had without `each`.
        sets: headers of the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        each: Callable[[bytes, Write], Awaitable[None]],
        *,
        keeps_length: bool = False,
        sets: Mapping[str, str] | None = None,
    ) -> None:
        self._app = app
        self._each = each
        self._keeps_length = keeps_length
        self._sets = sets or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, partial(self._pass_on, send))

    async def _pass_on(self, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._change_head(message)
            return await send(message)
        write = partial(_write_piece, send)
        if message.get("body"):
            await self._each(message["body"], write)
        if not message.get("more_body"):
            await self._each(b"", write)
            await send({"type": "http.response.body", "body": b""})
        return None

    def _change_head(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        if not self._keeps_length:
            del headers["content-length"]
        headers.update(self._sets)


async def _write_piece(send: Send, data: bytes) -> None:
    if data:
        await send(body_message(data))


async def read_response(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    """Read the whole answer of an application, and send nothing of it."""
    messages: list[Message] = []

    async def take(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, take)
    return messages[0], b"".join(message.get("body", b"") for message in messages[1:])


async def drain(receive: Receive) -> None:
    """Read the body to its end: a caller that still sends would see a reset, not what the fault is about."""
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def write_spaced(pieces: Iterable[bytes], gap_seconds: float, write: Write) -> None:
    for piece in pieces:
        await write(piece)
        await asyncio.sleep(gap_seconds)


def body_message(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def is_comment(data: bytes) -> bool:
    return data.startswith(b":")

"""Getting between an application and the server: its answer piece by piece as it flows, or whole and unsent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Write = Callable[[bytes], Awaitable[None]]


def live(
    app: ASGIApp,
    each: Callable[[bytes, Write], Awaitable[None]],
    *,
    keeps_length: bool = False,
    sets: Mapping[str, str] | None = None,
) -> ASGIApp:
    """The application with `each` between it and the wire: called with every piece of the body, with b"" at its end."""

    async def flowing(scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes) -> None:
            if data:
                await send(body_message(data))

        async def change(message: Message) -> None:
            if message["type"] == "http.response.start":
                changed = MutableHeaders(scope=message)
                if not keeps_length:
                    del changed["content-length"]
                changed.update(sets or {})
                return await send(message)
            if message.get("body"):
                await each(message["body"], write)
            if not message.get("more_body"):
                await each(b"", write)
                await send({"type": "http.response.body", "body": b""})
            return None

        await app(scope, receive, change)

    return flowing


async def read_response(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    """The whole answer of an application, nothing of it sent."""
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

"""A function from request to answer as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Answering:
    """What Starlette makes of such a function, without the two layers that look for exception handlers.

    The ways that most calls take begin here; `proxy.middleware.Errors` answers for what they raise.
    """

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

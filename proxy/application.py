"""The ASGI application of a listener: Starlette as this program uses it, and the choice between two of them."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.listeners import LISTENER, OPERATIONS


class Application(Starlette):
    """Starlette without its own two layers of error handling: `Errors` answers for whatever is raised.

    Args:
        operations: what answers the listener for operators, if there is one.
    """

    def __init__(self, *, operations: ASGIApp | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.operations = operations
        # The fal clients follow redirects with all their headers, so none is ever sent.
        self.router.redirect_slashes = False

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self.router
        for cls, args, kwargs in reversed(self.user_middleware):
            app = cls(app, *args, **kwargs)
        return app if self.operations is None else ByListener(app, self.operations)


class ByListener:
    """Gives each request to the application of the listener over which it came."""

    def __init__(self, public: ASGIApp, operations: ASGIApp) -> None:
        self._public = public
        self._operations = operations

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._operations if scope.get("state", {}).get(LISTENER) == OPERATIONS else self._public
        return app(scope, receive, send)

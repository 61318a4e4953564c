"""The way into each route of `/v1/admin`: the token, the flood guard, the role."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.auth.admin_tokens import AdminTokens, Role, TokenHolder
from proxy.clock import Clock
from proxy.errors import NotAllowed, ProxyError
from proxy.http.bodies import FORM_BYTES, Form, read_form
from proxy.limits.rates import ADMIN_LIMIT, VISITOR
from proxy.routes.authors import author_of
from proxy.stores.audit import Author, Change
from proxy.stores.audit_store import AuditStore

Handler = Callable[[Request], Awaitable[Response]]
#: In the state of a request: who holds the token that it came with, or the error for it.
_HOLDER = "admin_token_holder"
_log = logging.getLogger("proxy.audit")


class AdminDoor:
    """Lets requests with an admin token of a sufficient role through to the routes of the admin API."""

    def __init__(self, tokens: AdminTokens, flood_guard: Limiter, clock: Clock, audit: AuditStore) -> None:
        self._tokens = tokens
        self._audit = audit
        self._flood_guard = flood_guard
        self._clock = clock

    def route(self, method: str, path: str, handler: Handler, least: Role) -> Route:
        """Make a route below `/v1/admin`: the token, the flood guard, the role, then a line for the log.

        The flood guard counts a right token for itself. All wrong ones of an address have one count, which does not
        keep out who holds a right one at the same address.

        Args:
            least: the role that a token needs at least.
        """

        async def admin(request: Request) -> Response:
            holder = _holder_of(request)
            check_role(holder, least)
            answer = await handler(request)
            if method != "GET":
                fields = {"by": holder.name, "route": request.scope["route"].path, "method": method}
                _log.info("admin", extra={"log_fields": {**fields, "status": answer.status_code}})
            return answer

        # slowapi knows functions by their names: under one name, a request would be counted once for every route.
        admin.__name__ = f"admin_{handler.__name__}"
        guarded: Handler = self._flood_guard.shared_limit(ADMIN_LIMIT, scope="admin")(admin)

        async def respond(request: Request) -> Response:
            await self._find_holder(request)
            return await guarded(request)

        return Route(f"/v1/admin{path}", respond, methods=[method])

    async def _find_holder(self, request: Request) -> None:
        state = request.scope["state"]
        try:
            holder = await self._tokens.authenticate(request.headers.getlist("authorization"))
            state[_HOLDER], state[VISITOR] = holder, f"admin:{holder.name}"
        except ProxyError as error:
            # Raised behind the flood guard, so that guesses have an end.
            state[_HOLDER] = error

    async def read_form(self, request: Request, form: type[Form], most: int = FORM_BYTES) -> Form:
        """Read the body of a request that was let through here as a form.

        Raises:
            BadRequest, UnsupportedMediaType, BodyTooLarge: as `http.bodies.read_form`.
            Unauthenticated, StoreUnavailable: the token ended while the body came, which can take minutes.
        """
        found = await read_form(request, form, most)
        await self._tokens.authenticate(request.headers.getlist("authorization"))
        return found

    def author_of(self, request: Request) -> Author:
        """Return the author of what a request that was let through here changes."""
        return author_of(request, _holder_of(request).name, self._clock.now())

    async def record(self, request: Request, change: Change) -> None:
        """Record a change of what the database does not hold. Await it before the change takes effect."""
        await self._audit.record(self.author_of(request), change)


def _holder_of(request: Request) -> TokenHolder:
    found: TokenHolder | ProxyError = request.scope["state"][_HOLDER]
    if isinstance(found, ProxyError):
        raise found
    return found


def check_role(holder: TokenHolder, least: Role) -> None:
    """Make sure that a token may do what needs a role.

    Raises:
        NotAllowed: it may not.
    """
    if holder.role < least:
        raise NotAllowed(f"This needs an admin token with the role {least}; this one has the role {holder.role}.")

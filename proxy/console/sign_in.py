"""Signing in to the console with an admin token, and out."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.console.cookies import FORM, SESSION, ConsoleCookies
from proxy.console.door import CSRF_FIELD, PATH, ConsoleDoor, Visit
from proxy.console.forms import read_fields
from proxy.console.pages import Pages
from proxy.console.sessions import FORM_SECONDS, ConsoleSessions
from proxy.errors import NotAllowed, Unauthenticated
from proxy.limits.rates import RateLimiter
from proxy.routes.queries import known_query
from proxy.stores.audit import Change
from proxy.stores.audit_store import AuditStore

#: A page of the console to return to, and nothing else: no other host, no query.
_PAGE = re.compile(r"/console(?:/[A-Za-z0-9_-]+){0,5}")
#: A token is shorter.
_MOST_BYTES = 8192


class SignIn:
    """Give a session for a token, and end it.

    Args:
        provider: the host of the OpenID Connect provider, if there is one.
    """

    def __init__(
        self,
        door: ConsoleDoor,
        sessions: ConsoleSessions,
        cookies: ConsoleCookies,
        pages: Pages,
        limiter: RateLimiter,
        audit: AuditStore,
        provider: str = "",
    ) -> None:
        self._door = door
        self._sessions = sessions
        self._cookies = cookies
        self._pages = pages
        self._limiter = limiter
        self._audit = audit
        self._provider = provider

    def routes(self) -> list[Route]:
        return [
            self._door.guard("GET", "/sign-in", self.show_form),
            self._door.guard("POST", "/sign-in", self.sign_in),
            self._door.action("/sign-out", self.sign_out, Role.VIEWER),
        ]

    async def show_form(self, request: Request) -> Response:
        query = known_query(request, "next")
        return self._show_form(request, query.get("next", ""))

    async def sign_in(self, request: Request) -> Response:
        fields = await read_fields(request, _MOST_BYTES)
        text = self._cookies.read(request, FORM)
        if text is None:
            raise NotAllowed("The form has expired, or this browser keeps no cookies; load the page again.")
        self._sessions.check_csrf(self._sessions.read(text), fields.get(CSRF_FIELD, ""))
        try:
            session, holder = await self._sessions.sign_in(fields.get("token", "").strip())
        except Unauthenticated as error:
            # Only wrong tokens: those of others at the address do not keep out who has a right one.
            await self._limiter.hit_sign_in(request.scope)
            answer = self._show_form(request, fields.get("next", ""), error.message, error.status)
            answer.headers["x-fal-error-type"] = error.code
            return answer
        author = self._door.author_of(request, holder)
        await self._audit.record(author, Change("console.sign_in", after={"role": str(holder.role)}))
        answer = RedirectResponse(to_page(fields.get("next", "")), 303)
        self._cookies.delete(request, answer, FORM)
        self._door.set_session(request, answer, session)
        return answer

    async def sign_out(self, visit: Visit) -> Response:
        await self._sessions.sign_out(visit.session)
        await self._audit.record(visit.author, Change("console.sign_out"))
        answer = RedirectResponse(f"{PATH}/sign-in", 303)
        self._cookies.delete(visit.request, answer, SESSION)
        return answer

    def _show_form(self, request: Request, page: str, problem: str = "", status: int = 200) -> Response:
        form = self._sessions.begin_form()
        context = {"csrf": self._sessions.csrf_token(form), "next": to_page(page), "problem": problem}
        context["provider"] = self._provider
        answer = self._pages.respond("sign_in.html", context, status)
        self._cookies.set(request, answer, FORM, self._sessions.sign(form), FORM_SECONDS)
        return answer


def to_page(given: str) -> str:
    """Return the page to show after a sign-in: the given one if it is the console's, or the first."""
    is_page = _PAGE.fullmatch(given) is not None and not given.startswith((f"{PATH}/sign-", f"{PATH}/oidc"))
    return given if is_page else PATH

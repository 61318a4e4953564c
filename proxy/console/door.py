"""The way into the console: checks the flood guard, the source of a request, its session, its role and its form."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import quote

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role, TokenHolder
from proxy.auth.recognition import Recognizer
from proxy.clock import Clock
from proxy.console.cookies import SESSION, ConsoleCookies
from proxy.console.forms import check_source, is_link, read_fields
from proxy.console.pages import Pages
from proxy.console.questions import Question
from proxy.console.sessions import ConsoleSession, ConsoleSessions
from proxy.errors import ProxyError, Unauthenticated
from proxy.http.bodies import FORM_BYTES
from proxy.limits.rates import ADMIN_LIMIT, VISITOR, RateLimitExceeded, to_rate_limited
from proxy.log_context import bind
from proxy.routes.admin_door import check_role
from proxy.routes.authors import author_of
from proxy.routes.queries import known_query
from proxy.stores.audit import Author
from proxy.telemetry.metrics import Metrics

PATH = "/console"
#: The field of a form with what only pages of the session know.
CSRF_FIELD = "csrf"
_log = logging.getLogger("proxy.audit")


@dataclass(frozen=True)
class Visit:
    """A request that was let through.

    Attributes:
        fields: those of the form that was sent, or that a page which asks will have; without the one against forgery.
        csrf: what each form of the answer carries.
    """

    request: Request
    session: ConsoleSession
    holder: TokenHolder
    author: Author
    csrf: str
    pages: Pages = field(repr=False)
    fields: dict[str, str] = field(default_factory=dict, repr=False)

    def respond(self, template: str, status: int = 200, **context: object) -> Response:
        """Answer with a page."""
        shared = {"holder": self.holder, "csrf": self.csrf, "path": self.request.url.path}
        return self.pages.respond(template, {**shared, **context}, status)


Handler = Callable[[Visit], Awaitable[Response]]
Inquiry = Callable[[Visit], Awaitable[Question]]
Work = Callable[[Request], Awaitable[Response]]


class ConsoleDoor:
    """Lets requests with a session of a sufficient role through to the pages of the console."""

    def __init__(
        self,
        sessions: ConsoleSessions,
        cookies: ConsoleCookies,
        pages: Pages,
        flood_guard: Limiter,
        recognizer: Recognizer,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._sessions = sessions
        self._cookies = cookies
        self._pages = pages
        self._flood_guard = flood_guard
        self._recognizer = recognizer
        self._clock = clock
        self._metrics = metrics

    def page(self, path: str, handler: Handler, least: Role = Role.VIEWER) -> Route:
        """Make the route of a page, which changes nothing."""
        return self._route("GET", path, handler, least)

    def action(self, path: str, handler: Handler, least: Role, most_bytes: int = FORM_BYTES) -> Route:
        """Make the route of a change, to which a form is sent."""
        return self._route("POST", path, handler, least, most_bytes)

    def confirmed_action(self, path: str, ask: Inquiry, handler: Handler, least: Role, about: str = "") -> list[Route]:
        """Make the route of a change, and that of the page which asks first and has the form, on the same path.

        A page asks, not a script: a click comes before a script has loaded, and where none runs.

        Args:
            ask: finds what the action is about, as the handler does, and puts the question. It changes nothing.
            about: the name of a field of the form, which the query of the page gives. `ask` checks its value.
        """
        return [self.page(path, partial(_show_question, ask, about), least), self.action(path, handler, least)]

    def _route(self, method: str, path: str, handler: Handler, least: Role, most_bytes: int = 0) -> Route:
        async def admit(request: Request) -> Response:
            visit = await self._admit(request, least, most_bytes)
            answer = await handler(visit)
            if method == "POST":
                fields = {"by": visit.author.name, "route": PATH + path, "method": method}
                _log.info("admin", extra={"log_fields": {**fields, "status": answer.status_code}})
            if (renewed := self._sessions.renew(visit.session)) is not None:
                self.set_session(request, answer, renewed)
            return answer

        return self.guard(method, path, admit)

    def guard(self, method: str, path: str, work: Work) -> Route:
        """Make a route below `/console` with the flood guard. It takes only requests of the console and links to it."""

        async def console(request: Request) -> Response:
            check_source(request)
            return await work(request)

        # slowapi knows functions by their names: under one name, a request would be counted once for every route.
        console.__name__ = f"console_{method}_{path}"
        guarded: Work = self._flood_guard.shared_limit(ADMIN_LIMIT, scope="console")(console)

        async def respond(request: Request) -> Response:
            request.scope["state"][VISITOR] = await self._recognizer.recognize(request.scope)
            try:
                return await guarded(request)
            except RateLimitExceeded as problem:
                return self._show_error(request, to_rate_limited(problem))
            except ProxyError as error:
                return self._show_error(request, error)

        return Route(PATH + path, respond, methods=[method])

    def set_session(self, request: Request, answer: Response, session: ConsoleSession) -> None:
        """Set the cookie of a session."""
        seconds = session.expires_at - self._clock.now()
        self._cookies.set(request, answer, SESSION, self._sessions.sign(session), seconds)

    def author_of(self, request: Request, holder: TokenHolder) -> Author:
        """Name the holder of a token as the author of a change, for the audit log."""
        return author_of(request, f"console:{holder.name}", self._clock.now())

    async def _admit(self, request: Request, least: Role, most_bytes: int) -> Visit:
        text = self._cookies.read(request, SESSION)
        if text is None:
            raise Unauthenticated("Sign in first.")
        session = self._sessions.read(text)
        holder = await self._sessions.find_holder(session)
        bind(request.scope, by=f"console:{holder.name}")
        check_role(holder, least)
        fields = {}
        if request.method == "POST":
            fields = await read_fields(request, most_bytes)
            # The form may have taken minutes to come.
            holder = await self._sessions.find_holder(session)
            self._sessions.check_csrf(session, fields.pop(CSRF_FIELD, ""))
        csrf = self._sessions.csrf_token(session)
        return Visit(request, session, holder, self.author_of(request, holder), csrf, self._pages, fields)

    def _show_error(self, request: Request, error: ProxyError) -> Response:
        self._metrics.refusals.labels(error.code).inc()
        bind(request.scope, error_type=error.code)
        if isinstance(error, Unauthenticated) and request.method != "POST":
            return self._ask_to_sign_in(request)
        context = {"error": error, "request_id": request.scope["state"]["request_id"]}
        answer = self._pages.respond("error.html", context, error.status)
        answer.headers.update({**error.headers, "x-fal-error-type": error.code})
        if error.retry_after is not None:
            answer.headers["retry-after"] = str(error.retry_after)
        return answer

    def _ask_to_sign_in(self, request: Request) -> Response:
        is_foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if is_foreign and is_link(request):
            # From a link of another site, the browser sends no cookie; to the same page from here, it does.
            return self._pages.respond("again.html", {})
        return RedirectResponse(f"{PATH}/sign-in?next={quote(request.url.path, safe='/')}", 303)


async def _show_question(ask: Inquiry, about: str, visit: Visit) -> Response:
    query = known_query(visit.request, *([about] if about else ()))
    fields = {about: query.get(about, "")} if about else {}
    question = await ask(replace(visit, fields=fields))
    action = quote(visit.request.scope["path"], safe="/")
    return visit.respond("confirm.html", question=question, fields=fields, action=action, back=PATH + question.back)

"""Signing in to the console at an OpenID Connect provider."""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.openid import Attempt, OpenIdProvider, Person, read_error
from proxy.auth.sessions import OIDC_SALT, Sessions
from proxy.clock import Clock
from proxy.console.cookies import OIDC, ConsoleCookies
from proxy.console.door import ConsoleDoor
from proxy.console.sessions import ConsoleSessions
from proxy.console.sign_in import to_page
from proxy.errors import BadRequest, InvalidToken, NotAllowed, Unauthenticated
from proxy.limits.rates import RateLimiter
from proxy.routes.queries import known_query
from proxy.settings import RoleRule
from proxy.stores.audit import Change
from proxy.stores.audit_store import AuditStore
from proxy.stores.counters import Counters, Window

#: From the button to the way back.
ATTEMPT_SECONDS = 600
_MOST_CHARACTERS = 2048
_log = logging.getLogger(__name__)


class OidcSignIn:
    """Send the browser to the provider, and give a session to who comes back with a role."""

    def __init__(
        self,
        provider: OpenIdProvider,
        door: ConsoleDoor,
        own_sessions: ConsoleSessions,
        cookies: ConsoleCookies,
        sessions: Sessions,
        limiter: RateLimiter,
        counters: Counters,
        audit: AuditStore,
        clock: Clock,
    ) -> None:
        self._provider = provider
        self._door = door
        self._own_sessions = own_sessions
        self._cookies = cookies
        self._sessions = sessions
        self._limiter = limiter
        self._counters = counters
        self._audit = audit
        self._clock = clock

    def routes(self) -> list[Route]:
        return [
            self._door.guard("GET", "/oidc", self.begin),
            self._door.guard("GET", "/oidc/callback", self.complete),
        ]

    async def begin(self, request: Request) -> Response:
        """Send the browser to the provider, with a cookie that only this sign-in has."""
        page = to_page(known_query(request, "next").get("next", ""))
        attempt, url = await self._provider.begin()
        ends = self._clock.now() + ATTEMPT_SECONDS
        text = self._sessions.sign_document({**attempt._asdict(), "next": page, "expires_at": ends}, OIDC_SALT)
        answer = RedirectResponse(url, 303)
        self._cookies.set(request, answer, OIDC, text, ATTEMPT_SECONDS, "lax")
        return answer

    async def complete(self, request: Request) -> Response:
        """Sign in who comes back from the provider."""
        query = _read_query(request)
        attempt, page = self._read_attempt(request)
        if not hmac.compare_digest(query.get("state", "").encode(), attempt.state.encode()):
            raise NotAllowed("This answer belongs to another sign-in (state); sign in again.")
        await self._limiter.hit_sign_in(request.scope)
        await self._spend(attempt)
        if "error" in query:
            raise NotAllowed(f"The identity provider has not signed you in ({read_error(query['error'])}).")
        if not query.get("code"):
            raise BadRequest("The identity provider's answer has no code; sign in again.")
        try:
            person = await self._provider.complete(attempt, query["code"], query.get("iss"))
        except InvalidToken as error:
            _log.warning("ID token refused", extra={"log_fields": {"problem": error.message}})
            # Not 401: the page to sign in would hide the reason.
            raise NotAllowed(f"The identity provider's ID token does not count. {error.message}") from None
        return await self._sign_in(request, person, page)

    async def _sign_in(self, request: Request, person: Person, page: str) -> Response:
        name, role = f"oidc:{person.email or person.subject}", _find_role(person, self._provider.roles)
        if role is None:
            _log.warning("sign-in without a role", extra={"log_fields": {"by": name}})
            raise NotAllowed("Your account has no role here; ask the proxy's operator for one.")
        session, holder = self._own_sessions.sign_in_as(name, role)
        author = self._door.author_of(request, holder)
        await self._audit.record(author, Change("console.sign_in", target=person.subject, after={"role": str(role)}))
        answer = RedirectResponse(page, 303)
        self._cookies.delete(request, answer, OIDC)
        self._door.set_session(request, answer, session)
        return answer

    def _read_attempt(self, request: Request) -> tuple[Attempt, str]:
        """Read the sign-in that this browser began, and the page that it wanted.

        Raises:
            NotAllowed: there is none, or it took too long.
        """
        try:
            text = self._cookies.read(request, OIDC)
            document: Any = self._sessions.read_document(text or "", OIDC_SALT)
        except Unauthenticated:
            raise NotAllowed(
                "This browser has begun no sign-in, or keeps no cookies. Open the console at the address that "
                "PROXY_CONSOLE_URL names, or else PROXY_PUBLIC_URL, and sign in there."
            ) from None
        match document:
            case {
                "state": str(state),
                "nonce": str(nonce),
                "verifier": str(verifier),
                "next": str(page),
                "expires_at": int() | float() as expires_at,
            } if expires_at > self._clock.now():
                return Attempt(state, nonce, verifier), page
        raise NotAllowed("The sign-in took too long; sign in again.")

    async def _spend(self, attempt: Attempt) -> None:
        """Let a sign-in come back once, in all processes.

        Raises:
            NotAllowed: it has.
            StoreUnavailable: the counters do not answer.
        """
        digest = hashlib.sha256(attempt.state.encode()).hexdigest()
        hit = await self._counters.hit((Window(f"oidc:{digest}", 1, ATTEMPT_SECONDS),), self._clock.now())
        if hit.refused is not None:
            raise NotAllowed("This sign-in was used before; sign in again.")


def _read_query(request: Request) -> dict[str, str]:
    """Read what the provider sends. Providers add keys of their own, so unknown ones are ignored."""
    pairs = request.query_params.multi_items()
    found = dict(pairs)
    if len(found) != len(pairs) or any(len(value) > _MOST_CHARACTERS for value in found.values()):
        raise BadRequest(f"A key of the query stands twice, or is longer than {_MOST_CHARACTERS} characters.")
    return found


def _find_role(person: Person, rules: tuple[RoleRule, ...]) -> Role | None:
    """Find the highest role that a claim gives; None if none does."""
    # An email gives a role only if the provider has verified it.
    claims = {**person.claims, "email": person.email}
    found = [Role[rule.role.upper()] for rule in rules if rule.value in _list_values(claims.get(rule.claim))]
    return max(found, default=None)


def _list_values(value: object) -> set[str]:
    """List the values of a claim as the settings write them: texts, numbers, true or false."""
    listed = value if isinstance(value, list) else [value]
    return {str(one).lower() if isinstance(one, bool) else str(one) for one in listed if isinstance(one, str | int)}

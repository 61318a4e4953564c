"""Two ASGI layers: one checks the key, the other adds to every answer the headers that a proxy must strip."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.sandbox.replies import reply
from proxy.sandbox.request_log import Exchange

#: What fal, its runners and the machines in front of them may add, and a proxy must not hand on.
UNWANTED_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-allow-credentials": "true",
    "access-control-allow-methods": "*",
    "access-control-allow-headers": "*",
    "access-control-expose-headers": "*",
    "set-cookie": "sandbox=1; Path=/",
    "server": "fal-sandbox",
    "via": "1.1 sandbox-gateway",
    "alt-svc": 'h3=":443"; ma=86400',
    "strict-transport-security": "max-age=31536000",
    "x-fal-served-from": "sandbox-runner-1",
    "x-fal-runner-hints": "sandbox-hint",
    "x-fal-cdn-token": "sandbox-cdn-token-that-must-not-travel",
}
#: What only a proxy that forwards its callers' headers would send to fal.
_FORBIDDEN = ("cookie", "x-fal-target-url")
_OPEN = frozenset({("rest", "/.well-known/jwks.json")})


class UnwantedHeaders:
    """Adds to every answer what a proxy must strip from it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add_unwanted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in UNWANTED_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, add_unwanted if "sandbox" in scope else send)


class KeyCheck:
    """Lets in only `Authorization: Key <key>`; the CDN checks its own signatures and tokens.

    Args:
        admin_key: the only key that opens the platform API, and nothing else.
    """

    def __init__(self, app: ASGIApp, key: str, admin_key: str) -> None:
        self.app = app
        self.credentials = f"Key {key}".encode()
        self.admin_credentials = f"Key {admin_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange | None = scope.get("sandbox")
        if exchange is not None:
            refusal = self._refusal(exchange, Headers(scope=scope))
            if refusal is not None:
                return await refusal(scope, receive, send)
        return await self.app(scope, receive, send)

    def _refusal(self, exchange: Exchange, headers: Headers) -> Response | None:
        if exchange.method == "OPTIONS":
            return Response(status_code=204)
        if exchange.host == "cdn" and exchange.method in ("GET", "HEAD"):
            # A browser that shows the picture sends the cookies of its host, whatever the port.
            return None
        for name in _FORBIDDEN:
            if name in headers:
                return reply({"detail": f"sandbox: the header {name} must never reach fal"}, 400)
        if exchange.host == "cdn" or (exchange.host, exchange.path) in _OPEN:
            return None
        given = headers.getlist("authorization")
        return self._refuse_admin_key(given) if exchange.host == "api" else self._wrong_key(given)

    def _refuse_admin_key(self, given: list[str]) -> Response | None:
        """Refuse, in the platform API's own form of errors, every key but the admin key; None to let it in."""
        if len(given) == 1 and hmac.compare_digest(given[0].encode(), self.admin_credentials):
            return None
        is_known = len(given) == 1 and hmac.compare_digest(given[0].encode(), self.credentials)
        message = "Access denied: an admin key is required" if is_known else "Authentication required"
        return reply({"error": {"type": "authorization_error", "message": message}}, 403 if is_known else 401)

    def _wrong_key(self, given: list[str]) -> Response | None:
        if not given:
            return reply({"detail": "Authorization header is required"}, 401, {"www-authenticate": "Key"})
        if len(given) > 1 or not hmac.compare_digest(given[0].encode(), self.credentials):
            return reply({"detail": "invalid key credentials"}, 401, {"www-authenticate": "Key"})
        return None

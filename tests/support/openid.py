"""An OpenID Connect provider over https: it signs people in, redeems each code once, and checks who asks."""

from __future__ import annotations

import base64
import hashlib
import html
import secrets
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode

import httpx
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from tests.support.clock import MovableClock
from tests.support.issuer import KeyHost, b64, private_key, public_jwk, sign

CLIENT_ID, CLIENT_SECRET = "fal-proxy", "a secret+of the client/with:signs"


@dataclass
class OpenIdHost:
    """A provider that has one client, and one person at its page to sign in.

    Attributes:
        person: the claims of the person who signs in.
        changed: claims and header fields that it gets wrong in the tokens that it signs; None leaves one out.
        refusal: the error with which it sends browsers back.
        codes: what each code that is not redeemed yet was given for.
        redirect_uris: where it may send browsers.
        has_page: whether it shows a page to confirm on, as for people; else it sends browsers back at once.
    """

    host: KeyHost
    trust: ssl.SSLContext
    clock: MovableClock
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "u-1", "groups": ["fal-admins"]})
    changed: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    redirect_uris: set[str] = field(default_factory=set)
    given: list[str] = field(default_factory=list)
    has_page: bool = False

    def __post_init__(self) -> None:
        self.key = private_key("openid")
        self.jwks_uri = self.host.publish("idp/jwks", public_jwk(self.key, kid="one"))
        self.host.answers |= {
            "idp/.well-known/openid-configuration": lambda _: JSONResponse(self.describe()),
            "idp/authorize": self._authorize,
            "idp/token": self._redeem,
        }

    @property
    def issuer(self) -> str:
        return f"{self.host.url}/idp"

    def describe(self) -> dict[str, Any]:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": self.jwks_uri,
            "response_types_supported": ["code"],
            **self.metadata,
        }
        return {name: value for name, value in document.items() if value is not None}

    def visit(self, url: str) -> str:
        """What a browser does at the page to sign in: the address to which it is sent back."""
        with httpx.Client(verify=self.trust, trust_env=False, timeout=60) as browser:
            answer = browser.get(url)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        is_known = query.get("client_id") == CLIENT_ID and query.get("redirect_uri") in self.redirect_uris
        is_complete = query.get("code_challenge_method") == "S256" and len(query.get("code_challenge", "")) == 43
        if not is_known or not is_complete or "openid" not in query.get("scope", "").split():
            return JSONResponse({"error": "invalid_request"}, 400)
        if self.has_page and query.pop("confirmed", None) is None:
            here = html.escape(f"{request.url.path}?{urlencode({**query, 'confirmed': 'yes'})}")
            return HTMLResponse(f'<!doctype html><title>Provider</title><a href="{here}">Continue</a>')
        answer = {"state": query.get("state", ""), "session_state": "of-the-provider"}
        if self.refusal:
            answer |= {"error": self.refusal, "error_description": "<b>no</b>"}
        else:
            answer["code"] = secrets.token_urlsafe(16)
            self.codes[answer["code"]] = query
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(answer)}", 303)

    async def _redeem(self, request: Request) -> Response:
        fields = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        if not _is_client(request, fields, self.describe()):
            return JSONResponse({"error": "invalid_client"}, 401)
        asked = self.codes.pop(fields.get("code", ""), None)
        challenge = b64(hashlib.sha256(fields.get("code_verifier", "").encode()).digest())
        if (
            asked is None
            or fields.get("grant_type") != "authorization_code"
            or fields.get("redirect_uri") != asked["redirect_uri"]
            or challenge != asked["code_challenge"]
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        token = self._sign(asked.get("nonce"))
        self.given.append(token)
        return JSONResponse({"access_token": "opaque", "token_type": "Bearer", "id_token": token})

    def _sign(self, nonce: str | None) -> str:
        now = int(self.clock.now())
        times = {"iat": now, "exp": now + 300}
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "nonce": nonce, **times, **self.person, **self.changed}
        key = None if self.header.get("alg") == "none" else self.key
        header = {"alg": "RS256", "kid": "one", **self.header}
        return sign(header, {name: value for name, value in claims.items() if value is not None}, key)


def _is_client(request: Request, fields: dict[str, str], metadata: dict[str, Any]) -> bool:
    """Whether the client says its secret, in the way that the provider takes it (RFC 6749, section 2.3.1)."""
    if "client_secret_basic" in metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"]):
        given = request.headers.get("authorization", "").removeprefix("Basic ")
        id_, _, secret = base64.b64decode(given).decode().partition(":")
        return (unquote_plus(id_), unquote_plus(secret)) == (CLIENT_ID, CLIENT_SECRET)
    return (fields.get("client_id"), fields.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET)

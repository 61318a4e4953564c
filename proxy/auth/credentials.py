"""Where the credential of a request is."""

from __future__ import annotations

from typing import Literal

from starlette.requests import HTTPConnection

from proxy.auth.cookies import SessionCookie
from proxy.errors import Unauthenticated
from proxy.http.scope import values_of

HEADER = "x-fal-proxy-session"
_SCHEMES = ("bearer", "key")
#: The first half of a key as fal writes it, `id:secret`: some of its tools send no key without one.
_KEY_ID = "session:"

CredentialSource = Literal["authorization", "header", "path", "cookie"]


def find_credential(request: HTTPConnection, cookie: SessionCookie) -> tuple[CredentialSource, str]:
    """Find where the credential is, and its text.

    Raises:
        Unauthenticated: there is none, or the first that is there is malformed.
    """
    authorization = values_of(request.scope, b"authorization")
    if authorization:
        return "authorization", read_bearer(authorization)
    if own := values_of(request.scope, HEADER.encode()):
        return "header", _only(own)
    if path := request.path_params.get("session"):
        return "path", path
    if text := cookie.read(request):
        return "cookie", text
    raise Unauthenticated("No session: send one as 'Authorization: Bearer <session>', or as the session cookie.")


def read_bearer(values: list[str]) -> str:
    """Read the credential of the `Authorization` headers of a request.

    Raises:
        Unauthenticated: there is not exactly one, of a scheme that is known.
    """
    scheme, _, token = _only(values).partition(" ")
    # One space or more separate them (RFC 9110, section 11.4).
    token = token.lstrip(" ")
    # A comma means that two headers were joined: the proxy does not guess which of them counts.
    if scheme.lower() not in _SCHEMES or not token or "," in token or " " in token:
        raise Unauthenticated("Send one Authorization header: 'Bearer <session>' or 'Key <session>'.")
    return token.removeprefix(_KEY_ID) if scheme.lower() == "key" else token


def _only(values: list[str]) -> str:
    if len(values) != 1 or not values[0]:
        raise Unauthenticated("Send the credential exactly once.")
    return values[0]

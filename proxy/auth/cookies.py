"""The session cookie: its name, how an answer sets it, and how a request carries it."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import Response

from proxy.errors import Unauthenticated
from proxy.tenants.caller import GRACE_SECONDS, Session

NAME = "fal_session"
#: Browsers take a cookie of this name only from its own host, over TLS and for all its paths (RFC 6265bis, section
#: 4.1.3.2), so that a page of a sub-domain cannot plant one.
HOST_NAME = f"__Host-{NAME}"
#: The cookie of a session of the console, plain and over TLS.
CONSOLE_NAMES = ("fal_console", "__Host-fal_console")


class SessionCookie:
    """The cookie over TLS, or the plain one that a page on http needs in dev."""

    def __init__(self, *, is_secure: bool) -> None:
        self.name = HOST_NAME if is_secure else NAME
        self._is_secure = is_secure

    def read(self, request: HTTPConnection) -> str | None:
        """Read the session that a request carries in the cookie, exactly as it was set; None if there is no cookie.

        Raises:
            Unauthenticated: there are two. One of them was planted, and nothing says which.
        """
        return read_cookie(request, self.name)

    def set_session(self, answer: Response, token: str, session: Session, now: float) -> None:
        """Set the token of a session. The browser keeps it for the grace period too, and still reads its jobs."""
        max_age = max(1, int(session.expires_at + GRACE_SECONDS - now))
        answer.set_cookie(self.name, token, max_age, path="/", secure=self._is_secure, httponly=True, samesite="lax")

    def delete(self, answer: Response) -> None:
        answer.delete_cookie(self.name, path="/", secure=self._is_secure, httponly=True, samesite="lax")


def read_cookie(request: HTTPConnection, wanted: str) -> str | None:
    """Read a cookie exactly as it was set; None if there is none of this name.

    Raises:
        Unauthenticated: there are two. One of them was planted, and nothing says which.
    """
    pairs = (pair.partition("=") for header in request.headers.getlist("cookie") for pair in header.split(";"))
    found = [value.strip(" \t") for name, _, value in pairs if name.strip(" \t") == wanted]
    if len(found) > 1:
        raise Unauthenticated(
            f"The request carries two cookies named {wanted}; delete this site's cookies and get a new session."
        )
    return found[0] if found else None

"""The cookies of the console: that of a session, of a form to sign in, and of a sign-in at a provider."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from proxy.auth.cookies import CONSOLE_NAMES, read_cookie

SESSION, FORM, OIDC = CONSOLE_NAMES[0], "fal_console_form", "fal_console_oidc"
#: See `proxy.auth.cookies.HOST_NAME`: no page of a sub-domain can plant such a cookie.
_HOST = "__Host-"


class ConsoleCookies:
    """Reads and sets cookies that no script sees, that no other site sends, and that need TLS where there is TLS.

    Args:
        is_https: whether browsers reach the console by https, whatever arrives here.
    """

    def __init__(self, *, is_https: bool) -> None:
        self._is_https = is_https

    def read(self, request: Request, name: str) -> str | None:
        """Read the text of a cookie; None if there is none.

        Raises:
            Unauthenticated: there are two.
        """
        return read_cookie(request, self._full_name(request, name))

    def set(
        self,
        request: Request,
        answer: Response,
        name: str,
        text: str,
        seconds: float,
        same_site: Literal["strict", "lax"] = "strict",
    ) -> None:
        """Set a cookie that the browser keeps for so long.

        With `lax`, it also comes with a link from another site, as that back from a provider is.
        """
        answer.set_cookie(
            self._full_name(request, name),
            text,
            max(1, int(seconds)),
            path="/",
            secure=self._is_secure(request),
            httponly=True,
            samesite=same_site,
        )

    def delete(self, request: Request, answer: Response, name: str) -> None:
        secure, full_name = self._is_secure(request), self._full_name(request, name)
        answer.delete_cookie(full_name, path="/", secure=secure, httponly=True, samesite="strict")

    def _full_name(self, request: Request, name: str) -> str:
        return f"{_HOST}{name}" if self._is_secure(request) else name

    def _is_secure(self, request: Request) -> bool:
        return self._is_https or request.scope["scheme"] == "https"

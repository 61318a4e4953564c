"""The stand-in for Turnstile, hCaptcha and reCAPTCHA: it gives tokens, and tells each once what it is.

POST /_sandbox/siteverify/{kind}       what the services answer, in their protocol
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

#: The only secret that it accepts. It opens nothing else.
SECRET = "sandbox-secret"
KINDS = ("turnstile", "hcaptcha", "recaptcha")
EXPIRY_SECONDS = 300
MOST_TOKENS = 10_000


class Captchas:
    """Remembers the tokens that were given and not used yet."""

    def __init__(self) -> None:
        self._tokens: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/siteverify/{kind}", self.verify, methods=["POST"]),
        ]

    def give(self, wanted: Mapping[str, Any]) -> str:
        """Give a token, as the widget does once it is solved.

        Raises:
            ValueError: the wish is not complete.
        """
        if "hostname" not in wanted:
            raise ValueError("name the hostname of the page")
        if len(self._tokens) >= MOST_TOKENS:
            del self._tokens[next(iter(self._tokens))]
        token = f"sandbox-{secrets.token_urlsafe(24)}"
        known = {name: wanted[name] for name in ("kind", "hostname", "action", "score") if name in wanted}
        self._tokens[token] = {**known, "expires_at": time.monotonic() + EXPIRY_SECONDS}
        return token

    async def verify(self, request: Request) -> Response:
        """Tell what a token is. The second question about one is refused, as the services do."""
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        if form.get("secret") != SECRET:
            return _refusal("invalid-input-secret")
        token = self._tokens.get(form.get("response", ""))
        if token is None or token["kind"] != request.path_params["kind"]:
            return _refusal("invalid-input-response")
        del self._tokens[form["response"]]
        if token["expires_at"] <= time.monotonic():
            return _refusal("timeout-or-duplicate")
        shown = {name: token[name] for name in ("hostname", "action", "score") if name in token}
        return JSONResponse({"success": True, "error-codes": [], **shown})


def _refusal(code: str) -> Response:
    return JSONResponse({"success": False, "error-codes": [code]})

"""The stand-in for Firebase App Check: it signs tokens for any project, and publishes the key.

GET /_sandbox/app-check/jwks           the key, as Firebase publishes its own
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KIND = "app_check"
ALGORITHM = "RS256"
ISSUER = "https://firebaseappcheck.googleapis.com"
#: As long as one for limited use.
EXPIRY_SECONDS = 300


class AppCheck:
    """Signs with a key of its own, made when it is first needed."""

    def routes(self) -> list[Route]:
        return [Route("/app-check/jwks", self.jwks)]

    def give(self, wanted: Mapping[str, Any]) -> str:
        """Give a token, as the SDK gets one for an app.

        Raises:
            ValueError: the wish is not complete.
        """
        project, app = wanted.get("project"), wanted.get("app")
        if not (isinstance(project, str) and isinstance(app, str)):
            raise ValueError("name the number of a project and the id of an app, as texts")
        now = int(time.time())
        claims = {
            "iss": f"{ISSUER}/{project}",
            "aud": [f"projects/{project}"],
            "sub": app,
            "iat": now,
            "exp": now + EXPIRY_SECONDS,
            "jti": secrets.token_urlsafe(16),
            "provider": "debug",
        }
        return jwt.encode({"alg": ALGORITHM, "kid": self._key.kid, "typ": "JWT"}, claims, self._key)

    async def jwks(self, _: Request) -> Response:
        published = {**self._key.as_dict(private=False), "use": "sig", "alg": ALGORITHM}
        return JSONResponse({"keys": [published]})

    @cached_property
    def _key(self) -> RSAKey:
        return RSAKey.generate_key(2048, auto_kid=True)

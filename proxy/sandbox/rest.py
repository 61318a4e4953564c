"""rest.fal.ai: signed uploads, tokens and the public key of the webhooks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.sandbox.answers import refuse
from proxy.sandbox.cdn import decision_of, lives_seconds
from proxy.sandbox.replies import reply, reply_with
from proxy.sandbox.state import SandboxState
from proxy.sandbox.webhooks import Webhooks

TOKEN_SECONDS = 120
CDN_TOKEN_SECONDS = 3600
STORAGE_TYPES = ("fal-cdn-v3", "gcs")


class Rest:
    """The routes of the REST host."""

    def __init__(self, sandbox: SandboxState, webhooks: Webhooks) -> None:
        self.sandbox = sandbox
        self.webhooks = webhooks

    def routes(self) -> list[Route]:
        return [
            Route("/storage/upload/initiate", self.initiate, methods=["POST"]),
            Route("/storage/upload/initiate-multipart", self.initiate, methods=["POST"]),
            Route("/storage/auth/token", self.cdn_token, methods=["POST"]),
            Route("/tokens/", self.token, methods=["POST"]),
            Route("/tokens/realtime", self.realtime_token, methods=["POST"]),
            Route("/.well-known/jwks.json", self.jwks, methods=["GET"]),
        ]

    async def initiate(self, request: Request) -> Response:
        """Begin an upload of either kind: say where the file will be, with a signed URL that takes it."""
        body = request.scope["sandbox"].json
        if missing := _refuse_missing(body, "content_type", "file_name"):
            return missing
        if request.query_params.get("storage_type", STORAGE_TYPES[0]) not in STORAGE_TYPES:
            return reply({"detail": "Unknown storage_type"}, 400)
        path = self.sandbox.files.new_path(
            body["file_name"], body["content_type"], lives_seconds(request), decision_of(request)
        )
        query = self.sandbox.signer.query(path, self.sandbox.timing.upload_seconds)
        url = self.sandbox.url(request, f"/cdn/files{path}")
        return reply({"file_url": url, "upload_url": f"{url}?{query}"})

    async def cdn_token(self, request: Request) -> Response:
        expires = datetime.now(UTC) + timedelta(seconds=CDN_TOKEN_SECONDS)
        return reply(
            {
                "token": self.sandbox.signer.token("cdn", CDN_TOKEN_SECONDS),
                "token_type": "Bearer",
                "base_url": self.sandbox.url(request, "/cdn"),
                "expires_at": expires.isoformat(timespec="seconds"),
            }
        )

    async def token(self, request: Request) -> Response:
        """Answer with a token. The body is a JSON string, not an object."""
        return _refuse_missing(request.scope["sandbox"].json, "allowed_apps") or reply(self._token())

    async def realtime_token(self, request: Request) -> Response:
        return _refuse_missing(request.scope["sandbox"].json, "allowed_apps") or reply({"token": self._token()})

    async def jwks(self, request: Request) -> Response:
        return reply(self.webhooks.jwks())

    def _token(self) -> str:
        return self.sandbox.signer.token("jwt", TOKEN_SECONDS)


def _refuse_missing(body: Any, *names: str) -> Response | None:
    """Refuse a body without these fields, which are strings, but for the list of apps; None if it has them."""
    given = body if isinstance(body, dict) else {}
    missing = [name for name in names if not isinstance(given.get(name), list if name == "allowed_apps" else str)]
    details = [{"loc": ["body", name], "msg": "Field required", "type": "missing"} for name in missing]
    return reply_with(refuse(details)) if details else None

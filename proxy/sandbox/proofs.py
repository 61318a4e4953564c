"""The stand-ins for the services that give guests a proof.

POST /_sandbox/proofs                  a token, in place of the service's widget or SDK:
                                       `{"kind": "turnstile", "hostname": "localhost"}`, with `action` and `score` for
                                       tiers that check them; `{"kind": "app_check", "project": "123", "app": "1:2"}`;
                                       `{"kind": "play_integrity", "package": "com.acme", "nonce": "…"}`, with
                                       `app_verdict` and `device_verdict` if they are others than the usual;
                                       `{"kind": "app_attest", "app": "TEAM.com.acme", "challenge": "…"}`
"""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.sandbox import app_attest, app_check, captchas, play_integrity
from proxy.sandbox.app_attest import AppAttest
from proxy.sandbox.app_check import AppCheck
from proxy.sandbox.captchas import Captchas


class Proofs:
    """Gives proofs of every kind that another service gives."""

    def __init__(self) -> None:
        self._captchas = Captchas()
        self._app_check = AppCheck()
        self._app_attest = AppAttest()
        self._givers = {
            **dict.fromkeys(captchas.KINDS, self._captchas.give),
            app_check.KIND: self._app_check.give,
            play_integrity.KIND: play_integrity.give,
            app_attest.KIND: self._app_attest.give,
        }

    def routes(self) -> list[Route]:
        own = Route("/proofs", self.give, methods=["POST"])
        return [own, *self._captchas.routes(), *self._app_check.routes(), *self._app_attest.routes()]

    async def give(self, request: Request) -> Response:
        wanted = orjson.loads(await request.body() or b"{}")
        kind = wanted.get("kind") if isinstance(wanted, dict) else None
        if not isinstance(kind, str) or kind not in self._givers:
            return JSONResponse({"detail": f"name a kind: {', '.join(self._givers)}"}, 422)
        try:
            return JSONResponse({"token": self._givers[kind](wanted)}, 201)
        except ValueError as problem:
            return JSONResponse({"detail": str(problem)}, 422)

"""Receivers of webhooks, behind a real server: they note what they get, and answer as they are set to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.issuer import issue_certificate
from tests.support.servers import running


def webhook_secret(name: str) -> str:
    """A secret as Standard Webhooks writes it."""
    return "whsec_" + base64.b64encode(name.encode().ljust(24, b"-")).decode()


@dataclass(frozen=True)
class Received:
    """One webhook as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def assert_signed(self, *secrets: str) -> None:
        """Each of these has signed it, in this order; worked out here from the specification."""
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets]
        digests = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys]
        assert self.headers["webhook-signature"] == " ".join(f"v1,{digest}" for digest in digests)


@dataclass
class WebhookHost:
    """A server of receivers, each at a path.

    Attributes:
        received: what came to each path, also what was refused.
        taken: the ids of what each path took, in order.
        status: what a path answers; 204 if it is not named.
        gates: a path's answer waits until its gate is open.
        most_at_once: the most requests that each path had at one moment.
    """

    url: str = ""
    received: dict[str, list[Received]] = field(default_factory=dict)
    taken: dict[str, list[str]] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    most_at_once: dict[str, int] = field(default_factory=dict)
    _now: dict[str, int] = field(default_factory=dict)

    async def answer(self, request: Request) -> Response:
        path, body = request.path_params["path"], await request.body()
        self._now[path] = self._now.get(path, 0) + 1
        self.most_at_once[path] = max(self.most_at_once.get(path, 0), self._now[path])
        self.received.setdefault(path, []).append(Received(dict(request.headers), body))
        # Long enough for another process to send at the same time, if it would.
        await asyncio.sleep(0.01)
        if (gate := self.gates.get(path)) is not None:
            await asyncio.to_thread(gate.wait, 30)
        self._now[path] -= 1
        status = self.status.get(path, 204)
        if status < 300:
            self.taken.setdefault(path, []).append(request.headers["webhook-id"])
        return Response(status_code=status, headers={"location": f"{self.url}/elsewhere"} if status < 400 else {})

    def bodies(self, path: str) -> Sequence[dict[str, Any]]:
        return [one.document for one in self.received.get(path, [])]


@contextlib.contextmanager
def webhook_host(
    folder: Path | None, host: WebhookHost | None = None, port: int | None = None
) -> Iterator[tuple[WebhookHost, ssl.SSLContext | None]]:
    """A server of receivers on this machine, and what a client must trust; on plain http without a folder."""
    certificate, trust = issue_certificate(folder) if folder else (None, None)
    host = host or WebhookHost()
    app = Starlette(routes=[Route("/{path:path}", host.answer, methods=["GET", "POST"])])
    with running(app, port=port, certificate=certificate) as url:
        host.url = url
        yield host, trust

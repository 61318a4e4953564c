"""The host form, for clients in which only a host can be set: `/fal/run/…`, `/fal/queue/…`, `/fal/rest/…`.

Such clients follow the URLs inside the answers, so these are rewritten to this form; otherwise they would take the
session to fal.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from proxy import targets
from proxy.catalog import app_of
from proxy.jobs.updates import Rewrite
from proxy.routes.fal_surface import FalSurface
from proxy.targets import Target

PREFIX = "/fal/"
_URLS = {"response_url": "", "status_url": "/status", "cancel_url": "/cancel"}


def routes(surface: FalSurface) -> list[Route]:
    return [Route(PREFIX + "{path:path}", surface)]


def rewriter(public_url: str) -> Rewrite:
    """Make what puts the proxy's own address into the URLs of a submit, status or status event."""

    def rewrite(endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
        base = f"{public_url}{PREFIX}queue/{app_of(endpoint)}/requests/{document['request_id']}"
        return document | {name: base + tail for name, tail in _URLS.items() if name in document}

    return rewrite


def parse_target(request: Request) -> Target:
    raw_path = request.scope["raw_path"].decode("latin-1").partition("?")[0].removeprefix(PREFIX)
    return targets.parse_path(request.method, raw_path, request.scope["query_string"].decode("latin-1"))

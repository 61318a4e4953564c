"""The host form, for clients in which only a host can be set: `/fal/run/…`, `/fal/queue/…`, `/fal/rest/…`.

Such clients follow the URLs inside the answers, so these are rewritten to this form; otherwise they would take the
session to fal.

The Python client before 0.11 has one setting for both of fal's hosts: it puts `queue.` before the host that calls are
run at. So what it sends to `queue.` and the proxy's own host, below `/fal/run/`, is meant for the queue.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.routing import Route

from proxy import targets
from proxy.catalog import app_of
from proxy.http.scope import header_of
from proxy.jobs.updates import Rewrite
from proxy.routes.fal_surface import FalSurface
from proxy.targets import Host, Target

PREFIX = "/fal/"
_RUN, _QUEUE = f"{Host.RUN.value}/", f"{Host.QUEUE.value}/"
_URLS = {"response_url": "", "status_url": "/status", "cancel_url": "/cancel"}


def routes(surface: FalSurface) -> list[Route]:
    return [Route(PREFIX + "{path:path}", surface)]


def rewriter(public_url: str) -> Rewrite:
    """Make what puts the proxy's own address into the URLs of a submit, status or status event."""

    def rewrite(endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
        base = f"{public_url}{PREFIX}queue/{app_of(endpoint)}/requests/{document['request_id']}"
        return document | {name: base + tail for name, tail in _URLS.items() if name in document}

    return rewrite


class TargetParser:
    """Reads from a request of the host form which fal call is wanted.

    Args:
        public_url: where callers find the proxy.
    """

    def __init__(self, public_url: str) -> None:
        self._queue_host = f"queue.{urlsplit(public_url).hostname}"

    def __call__(self, request: Request) -> Target:
        raw_path = request.scope["raw_path"].decode("latin-1").partition("?")[0].removeprefix(PREFIX)
        if raw_path.startswith(_RUN) and self._is_at_queue_host(request):
            raw_path = _QUEUE + raw_path.removeprefix(_RUN)
        return targets.parse_path(request.method, raw_path, request.scope["query_string"].decode("latin-1"))

    def _is_at_queue_host(self, request: Request) -> bool:
        host = header_of(request.scope, b"host") or ""
        return host.partition(":")[0].lower() == self._queue_host

"""The fal proxy protocol: one address, and the wanted fal URL in `x-fal-target-url`.

Every fal client with a proxy setting speaks it. Clients that can set no header carry the session in the path.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import Route

from proxy import targets
from proxy.http.scope import values_of
from proxy.routes.fal_surface import FalSurface
from proxy.targets import Target

PATH = "/api/fal/proxy"
TARGET_HEADER = "x-fal-target-url"


def routes(surface: FalSurface) -> list[Route]:
    return [Route(path, surface) for path in (PATH, "/s/{session}" + PATH)]


def parse_target(request: Request) -> Target:
    return targets.parse_url(request.method, values_of(request.scope, TARGET_HEADER.encode()))

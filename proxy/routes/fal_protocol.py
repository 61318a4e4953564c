"""The fal proxy protocol: one address, and the wanted fal URL in `x-fal-target-url`.

Every fal client with a proxy setting speaks it. Clients that can set no header carry the session in the path.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy import targets
from proxy.routes.answering import Answering
from proxy.routes.forward import forward
from proxy.routes.services import Services

PATH = "/api/fal/proxy"
TARGET_HEADER = "x-fal-target-url"


def routes(services: Services) -> list[Route]:
    async def proxy(request: Request) -> Response:
        wanted = request.headers.getlist(TARGET_HEADER)
        return await forward(services, request, lambda: targets.parse_url(request.method, wanted))

    # All methods, so that a wrong one gets this surface's own answer.
    return [Route(path, Answering(proxy), methods=_ALL) for path in (PATH, "/s/{session}" + PATH)]


_ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]

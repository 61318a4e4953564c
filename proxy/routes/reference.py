"""`/docs`: `/openapi.json` as a page to read and to try. It loads nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.http.static_page import StaticPage
from proxy.limits.rates import DESCRIPTION_LIMIT

PATH = "/docs"
#: Ours, and what `make bundle` copies from the package swagger-ui-dist.
_FOLDER = Path(__file__).parent / "openapi" / "viewer"
_FILES = {
    "page.js": "page.js",
    "page.css": "page.css",
    "swagger-ui.css": "bundle/swagger-ui.css",
    "swagger-ui-bundle.js": "bundle/swagger-ui-bundle.js",
}
_CACHING = b"public, max-age=3600"
#: The viewer draws its icons from data URLs and sets styles on elements.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(flood_guard: Limiter) -> list[Route]:
    """Make the routes of the page and of the files that it loads."""
    viewer = StaticPage(_FOLDER, _FILES, policy=_POLICY, caching=_CACHING)

    @flood_guard.limit(DESCRIPTION_LIMIT)
    async def reference(request: Request) -> Response:
        return await viewer.get_response("index.html", request.scope)

    @flood_guard.limit(DESCRIPTION_LIMIT)
    async def reference_file(request: Request) -> Response:
        return await viewer.respond_with_file(request)

    return [Route(PATH, reference, methods=["GET"]), Route(PATH + "/{file}", reference_file, methods=["GET"])]

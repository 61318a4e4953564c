"""`/playground`: a page to try calls on. It loads nothing from other hosts, and signs in as any other page does.

`dev` shows it at `/` too, with what makes its sandbox fail.
"""

from __future__ import annotations

import re
from pathlib import Path

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.http.static_page import StaticPage
from proxy.limits.rates import DESCRIPTION_LIMIT

PATH = "/playground"
_FOLDER = Path(__file__).parents[1] / "playground" / "web" / "static"
_BUNDLE = ("bundle/main.js", "bundle/altcha.js", "bundle/altcha.css", "bundle/pbkdf2.js")
#: Not the document itself, which is answered without the parts that are for the sandbox.
_FILES = {name: name for name in ("page.css", "icon.svg", "samples/chelsea.jpg", *_BUNDLE)}
#: A new version of the program is a new page.
_CACHING = b"no-cache"
#: The page also says this itself, but for who may frame it: that counts in a header only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOR_SANDBOX = re.compile(r"\s*<!-- for the sandbox -->.*?<!-- end -->", re.DOTALL)


def routes(flood_guard: Limiter, *, is_dev: bool) -> list[Route]:
    """Make the routes of the page and of the files that it loads."""
    page = StaticPage(_FOLDER, _FILES, policy=_POLICY, caching=_CACHING)
    document = (_FOLDER / "index.html").read_text()
    if not is_dev:
        document = _FOR_SANDBOX.sub("", document)

    @flood_guard.limit(DESCRIPTION_LIMIT)
    async def playground(request: Request) -> Response:
        return page.respond_with_html(request, document)

    @flood_guard.limit(DESCRIPTION_LIMIT)
    async def playground_file(request: Request) -> Response:
        return await page.respond_with_file(request)

    paths = ("/", PATH) if is_dev else (PATH,)
    return [
        *(Route(path, playground, methods=["GET"]) for path in paths),
        Route(PATH + "/{file:path}", playground_file, methods=["GET"]),
    ]

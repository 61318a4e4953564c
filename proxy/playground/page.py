"""The playground page, served in dev mode from whatever no route answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from proxy.http.scope import set_cache_control

_FOLDER = Path(__file__).parent / "web" / "static"
_HEADERS = {
    # The page also says this itself, but for who may frame it: that counts in a header only.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}


class Page(StaticFiles):
    """The page's files; what is not among them is the router's 404."""

    def __init__(self) -> None:
        super().__init__(directory=_FOLDER, html=True)

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        set_cache_control(scope, b"no-cache")
        response.headers.update(_HEADERS)
        return response

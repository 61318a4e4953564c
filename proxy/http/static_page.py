"""Pages that the program brings along, each with the files that it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from proxy.errors import NotFound
from proxy.http.scope import set_cache_control


class StaticPage(StaticFiles):
    """Serves files of a folder, each with the same headers, and nothing beside them.

    Args:
        files: where each file is in the folder, by the name under which the page loads it.
        policy: the Content-Security-Policy.
        caching: the Cache-Control.
    """

    def __init__(self, folder: Path, files: Mapping[str, str], *, policy: str, caching: bytes) -> None:
        super().__init__(directory=folder)
        self._files = files
        self._headers: Mapping[str, str] = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
        self._caching = caching

    async def respond_with_file(self, request: Request) -> Response:
        """Answer with the file that the path names as `file`.

        Raises:
            NotFound: the page loads no such file.
        """
        path = self._files.get(request.path_params["file"])
        if path is None:
            raise NotFound("This page has no such file.")
        return await self.get_response(path, request.scope)

    def respond_with_html(self, request: Request, text: str) -> Response:
        """Answer with a document that is no file."""
        set_cache_control(request.scope, self._caching)
        return HTMLResponse(text, headers=self._headers)

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        set_cache_control(scope, self._caching)
        response.headers.update(self._headers)
        return response

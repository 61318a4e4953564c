"""A response whose parts are known: status, headers and body."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response


class Reply(Response):
    """Starlette's `Response` without the work of finding out a content type, charset and background task."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self.raw_headers.append((b"content-length", b"%d" % len(body)))

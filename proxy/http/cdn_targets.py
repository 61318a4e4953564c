"""Uploads to fal's CDN in the proxy protocol: the same as in the host form, and answered by its routes.

Newer Swift clients send each step of such an upload to their proxy, with the CDN's URL in `x-fal-target-url` and the
token in `x-fal-cdn-authorization`, as `authorization` is taken by the session. The token is the proxy's own and names
its owner, so it stands for the session here.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.http.scope import header_of
from proxy.targets import CDN_HOST, parse_cdn_url
from proxy.upstream.file_urls import FileUrls

#: Where the proxy protocol is spoken, with or without a session before it.
_PROTOCOL_PATH = "/api/fal/proxy"
_TOKEN, _TARGET = b"x-fal-cdn-authorization", b"x-fal-target-url"
_REPLACED = frozenset((b"authorization", b"x-fal-proxy-session", _TOKEN, _TARGET))
#: In the state of a request: it came in the proxy protocol, whose clients know files by fal's own URLs.
IS_CDN_TARGET = "is_cdn_target"


class CdnTargets:
    """ASGI: turns a request of the proxy protocol for fal's CDN into one of the host form."""

    def __init__(self, app: ASGIApp, files: FileUrls, public_url: str) -> None:
        self._app = app
        self._files = files
        self._public_url = public_url

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] != "GET" and scope["path"].endswith(_PROTOCOL_PATH):
            tokens = [value for name, value in scope["headers"] if name == _TOKEN]
            if tokens and (place := parse_cdn_url(header_of(scope, _TARGET) or "")) is not None:
                self._turn(scope, *place, tokens)
        return self._app(scope, receive, send)

    def _turn(self, scope: Scope, host: str, path: str, tokens: list[bytes]) -> None:
        base = self._files.cdn_url if host == CDN_HOST else f"https://{host}"
        path = self._files.to_proxy(f"{base}/{path}").removeprefix(self._public_url)
        headers = [pair for pair in scope["headers"] if pair[0] not in _REPLACED]
        # In place: what is logged of a request is found out further in, and read further out.
        scope["headers"] = [*headers, *((b"authorization", token) for token in tokens)]
        scope["path"], scope["raw_path"], scope["query_string"] = path, path.encode("ascii"), b""
        scope["state"][IS_CDN_TARGET] = True

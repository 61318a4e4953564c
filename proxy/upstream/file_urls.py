"""Where fal keeps files, and the names that some of them have at the proxy.

The Python client uses one URL both to send a large file's parts to and to name the file afterwards. It must lead to the
proxy for the first and to fal for the second, so the proxy shows such a file under a URL of its own, and puts fal's
back in its place wherever an input names it. The two say the same: nothing has to be looked up.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

#: Below it, the host form of fal's CDN.
CDN_PATH = "/fal/cdn"
_FALS_HOST = re.compile(r"(?:[a-z0-9-]+\.)+fal\.media")


class FileUrls:
    """Tells fal's file URLs from others. `cdn_url` is the configured CDN; `https://*.fal.media` always counts too."""

    def __init__(self, cdn_url: str, public_url: str) -> None:
        self.cdn_url = cdn_url
        self._shown_prefix = f"{public_url}{CDN_PATH}/"

    def is_fal_url(self, url: object) -> bool:
        """Return whether a URL that fal gave leads to one of its own stores."""
        if not isinstance(url, str):
            return False
        if url.startswith(f"{self.cdn_url}/"):
            return True
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        return parts.scheme == "https" and parts.netloc == parts.hostname and bool(_FALS_HOST.fullmatch(parts.netloc))

    def to_proxy(self, url: str) -> str:
        """Return the proxy's own URL for one of fal's files."""
        own = url.removeprefix(f"{self.cdn_url}/")
        return self._shown_prefix + (own if own != url else url.removeprefix("https://"))

    def to_fal(self, value: Any, depth: int = 8) -> Any:
        """Replace the proxy's own file URLs in a JSON value by fal's, to this depth; models ask for less."""
        if isinstance(value, str) and value.startswith(self._shown_prefix):
            rest = value.removeprefix(self._shown_prefix)
            return f"https://{rest}" if _FALS_HOST.fullmatch(rest.partition("/")[0]) else f"{self.cdn_url}/{rest}"
        if isinstance(value, dict) and depth:
            return {name: self.to_fal(inner, depth - 1) for name, inner in value.items()}
        if isinstance(value, list) and depth:
            return [self.to_fal(inner, depth - 1) for inner in value]
        return value

"""The routes that take files, for every way that a client knows."""

from __future__ import annotations

from proxy.routes.uploads import native, slots
from proxy.upstream.file_urls import CDN_PATH


def carries_file(path: str) -> bool:
    """Return whether requests to a path bring a file: the bound of other bodies is not theirs."""
    return path.startswith((slots.PREFIX, native.PATH, f"{CDN_PATH}/")) and not path.endswith("/complete")

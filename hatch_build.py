"""What hatch does beside packing: it refuses to pack without what npm makes, and writes what an index shows.

An index shows the README outside the repository, where its relative links lead nowhere. The variable `PROJECT_URL` says
where the repository is, such as `https://git.example.com/acme/fal-proxy`: then they lead there. Without it, they become
text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGE = "proxy/playground/web/static/bundle/main.js"
VIEWER = "proxy/routes/openapi/viewer/bundle/swagger-ui-bundle.js"
CONSOLE = "proxy/console/static/bundle/htmx.min.js"
#: A relative link or picture of Markdown: `!` of a picture, text, path.
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


class BundleHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Check that the bundles are there, before anything is packed.

        Raises:
            RuntimeError: one is missing; the text says what to do.
        """
        if version == "editable":
            # `make run` builds them when it needs them.
            return
        missing = [name for name in (PAGE, VIEWER, CONSOLE) if not (Path(self.root) / name).is_file()]
        if missing:
            raise RuntimeError(
                f"{' and '.join(missing)} is not built, so the package would be without it. "
                "Run `make bundle` first (it needs Node.js with npm)."
            )


class MetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        """Set the text that an index shows, and the addresses beside it.

        Raises:
            ValueError: PROJECT_URL is no address.
        """
        url, tag = read_project_url(), f"v{metadata['version']}"
        text = link_from_outside((Path(self.root) / "README.md").read_text(encoding="utf-8"), url, tag)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = list_addresses(url, tag) if url else {}


def list_addresses(url: str, tag: str) -> dict[str, str]:
    """The addresses of a repository that an index shows, by their well-known labels."""
    return {
        "Homepage": url,
        "Documentation": f"{url}/blob/{tag}/docs/index.md",
        "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{url}/issues",
        "Security": f"{url}/blob/{tag}/SECURITY.md",
    }


def read_project_url() -> str:
    """Read PROJECT_URL, without a slash at its end; empty if it is not set."""
    url = os.environ.get("PROJECT_URL", "").rstrip("/")
    parts = urlsplit(url)
    if url and (
        parts.scheme != "https" or not parts.netloc or parts.query or parts.fragment or re.search(r"[\s()]", url)
    ):
        raise ValueError(
            f"PROJECT_URL is {url!r}. Write the address of the repository, such as https://git.example.com/a/b"
        )
    return url


def link_from_outside(text: str, url: str, tag: str) -> str:
    """Make the relative links of a Markdown text absolute; without `url`, make text of them and drop its pictures."""

    def link(found: re.Match[str]) -> str:
        picture, label, path = found.groups()
        if not url:
            return "" if picture else label
        return f"{picture}[{label}]({url}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return RELATIVE.sub(link, text)

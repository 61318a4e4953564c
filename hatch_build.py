"""Refuses to build a package without what `/playground`, `/docs` and `/console` serve: npm makes it, not hatch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGE = "proxy/playground/web/static/bundle/main.js"
VIEWER = "proxy/routes/openapi/viewer/bundle/swagger-ui-bundle.js"
CONSOLE = "proxy/console/static/bundle/htmx.min.js"


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

"""`fal-proxy serve`, but old rows go after `SOAK_RETENTION_SECONDS` instead of days."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

from proxy.app import create_app
from proxy.redaction import Redactor
from proxy.server.tuning import tune_runtime
from proxy.server.workers import run
from proxy.settings import Settings, read
from proxy.telemetry.logs import configure_logging

PROGRAM = (sys.executable, "-m", "tests.soak.short_retention")


def settings() -> Settings:
    found = read({name: value for name, value in os.environ.items() if name.startswith(("PROXY_", "FAL_"))})
    seconds = float(os.environ["SOAK_RETENTION_SECONDS"])
    return replace(found, stores=replace(found.stores, retention_seconds=seconds))


def application() -> Any:
    found = settings()
    configure_logging(found.log, Redactor(found.secrets))
    app = create_app(found)
    tune_runtime()
    return app


if __name__ == "__main__":
    sys.exit(run("tests.soak.short_retention:application", settings()))

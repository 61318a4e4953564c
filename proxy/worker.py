"""The application of one process that serves, as uvicorn asks for it: without the command line.

A server with several processes builds it in each of them.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from proxy import settings as settings_
from proxy.redaction import Redactor
from proxy.server.garbage import collections_paused
from proxy.server.tuning import tune_runtime
from proxy.settings import Settings, SettingsError
from proxy.telemetry.logs import configure_logging


def application() -> Any:
    """Build the application from the environment, or end the process."""
    try:
        with collections_paused():
            app = _build()
    except SettingsError as error:
        # `serve` looked at it before, so a file has changed since, or can be read by one process only.
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(1)
    tune_runtime()
    return app


def _build() -> Any:
    settings = settings_.read(os.environ)
    redactor = Redactor(settings.secrets)
    configure_logging(settings.log, redactor)

    def read_again() -> Settings:
        found = settings_.read(os.environ)
        redactor.add(found.secrets)
        return found

    # Imported here: it is most of the program, and is imported without garbage collections.
    from proxy.app import create_app

    return create_app(settings, read_settings=read_again)

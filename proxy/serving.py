"""`fal-proxy serve`, without the command line's parser.

A process that serves would keep the parser and all other commands in memory, so a command without options comes here
directly (`proxy/__main__.py`), and one with options through the parser.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from proxy import settings as settings_
from proxy.errors import StoreUnavailable
from proxy.plan_secrets import find_unusable
from proxy.redaction import Redactor
from proxy.server.workers import run
from proxy.settings import Settings, SettingsError, StoreSettings
from proxy.stores.errors import FileUnusable, SchemaMismatch, SchemaTooNew
from proxy.stores.sql import SqlStores
from proxy.telemetry.logs import configure_logging
from proxy.tenants.plan_file import read_file

#: How long a start waits for a database before it goes on without.
CHECK_SECONDS = 2.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def serve() -> int:
    """Check the settings, the plan file and the schema, and serve until a signal; return the exit code."""
    settings, problems = find_problems()
    if problems or settings is None:
        return _refuse(problems)
    for warning in settings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    # Of this process, which supervises the workers if there are several.
    configure_logging(settings.log, Redactor(settings.secrets))
    if problem := _find_folder_problem(settings.stores.state_dir) or _find_database_problem(settings.stores):
        return _refuse([problem])
    return run("proxy.worker:application", settings)


def find_problems(*, warnings_too: bool = False) -> tuple[Settings | None, list[str]]:
    """Read the settings, and give every problem of them and of the plan file."""
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = settings_.read(os.environ)
    except SettingsError as error:
        problems += [*error.problems, *(error.warnings if warnings_too else ())]
    path = os.environ.get("PROXY_CONFIG", "").strip()
    try:
        file, _ = read_file(settings_.existing_file(path) if path else None)
        if settings is not None:
            settings = replace(settings, warnings=(*settings.warnings, *find_unusable(file, settings)))
    except SettingsError as error:
        problems += error.problems
    except ValueError:
        pass  # A file that is not there is among the problems already.
    if settings is not None and warnings_too:
        problems += settings.warnings
    return settings, problems


def _refuse(problems: Iterable[str]) -> int:
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1


def _find_folder_problem(folder: Path | None) -> str | None:
    """Say why charges that wait for the database would be lost: the folder for them takes no files.

    A full disk can have room again, so it is no reason not to start.
    """
    if folder is None:
        return None
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as problem:
        if problem.errno in _FULL:
            return None
        return f"PROXY_STATE_DIR: takes no files ({problem.strerror}); let the user of this process write to it"


def _find_database_problem(stores_settings: StoreSettings) -> str | None:
    """Say why this version cannot use the database, after upgrading its schema if that is set.

    A database that does not answer may come later: then each process looks at its schema itself.
    """

    async def prepare() -> None:
        stores = SqlStores.of(stores_settings, lock_seconds=CHECK_SECONDS)
        try:
            await stores.prepare()
        finally:
            await stores.close()

    try:
        asyncio.run(prepare())
    except (FileUnusable, SchemaTooNew) as problem:
        return f"PROXY_DATABASE_URL: {problem.message}"
    except SchemaMismatch as problem:
        return f"PROXY_DATABASE_URL: {problem.message}, or set PROXY_MIGRATE=on"
    except StoreUnavailable:
        pass
    return None

"""`fal-proxy serve`, and the other commands for one server."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from proxy import settings as settings_
from proxy.app import create_app
from proxy.cli.database import run_on_database
from proxy.cli.output import refuse, refuse_on_error, say
from proxy.redaction import Redactor
from proxy.server.tuning import tune_runtime
from proxy.server.workers import run
from proxy.settings import Settings, SettingsError
from proxy.stores.sql import SqlStores
from proxy.telemetry.logs import configure_logging
from proxy.tenants.directory import Directory
from proxy.tenants.plan_file import read_file


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of PROXY_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, instead of PROXY_PORT.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes, instead of PROXY_WORKERS.")] = None,
) -> None:
    """Run the proxy."""
    for name, value in (("PROXY_HOST", host), ("PROXY_PORT", port), ("PROXY_WORKERS", workers)):
        if value is not None:
            # In the environment, so that worker processes read the same.
            os.environ[name] = str(value)
    settings = _read_settings()
    for warning in settings.warnings:
        say(f"warning: {warning}")
    # Of this process, which supervises the workers if there are several.
    configure_logging(settings.log, Redactor(settings.secrets))
    raise typer.Exit(run("proxy.cli.server:application", settings))


def application() -> Any:
    """Build the application of one worker process from its environment, or end the process."""
    try:
        return _application()
    except SettingsError as error:
        # `serve` looked at it before, so a file has changed since, or can be read by one process only.
        for problem in error.problems:
            say(problem)
        sys.exit(1)


def _application() -> Any:
    settings = settings_.read(os.environ)
    redactor = Redactor(settings.secrets)
    configure_logging(settings.log, redactor)

    def read_again() -> Settings:
        found = settings_.read(os.environ)
        redactor.add(found.secrets)
        return found

    app = create_app(settings, read_settings=read_again)
    tune_runtime()
    return app


def dev(
    guests: Annotated[bool, typer.Option("--guests", help="With FAL_KEY: let the page call freely.")] = False,
    yes_expose: Annotated[bool, typer.Option("--yes-expose", help="With FAL_KEY: let other machines call.")] = False,
) -> None:
    """Run the sandbox, the proxy and the page in one process, with a demo tenant. FAL_KEY uses fal itself."""
    # Imported here: the sandbox and its picture library have no part in production.
    from proxy.playground.dev import run_dev

    refuse_on_error(lambda: run_dev(os.environ, takes_guests=guests, exposes=yes_expose))


def sandbox(port: Annotated[int, typer.Option(min=1, max=65535)] = 8788) -> None:
    """Run the sandbox of fal alone, and print the settings that point a proxy at it."""
    from proxy.playground.dev import run_sandbox

    run_sandbox(port)


def check_config() -> None:
    """Check every setting and the plan file; print every problem, or 'ok'."""
    _read_settings(warnings_too=True)
    print("ok")


def migrate() -> None:
    """Upgrade the database schema to this version."""

    async def run(stores: SqlStores, _directory: Directory) -> str | None:
        return await stores.migrate()

    print(run_on_database(run, prepare=False))


def _read_settings(*, warnings_too: bool = False) -> Settings:
    """Read the settings and check the plan file too; print every problem and exit 1 if there is one."""
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = settings_.read(os.environ)
    except SettingsError as error:
        problems += [*error.problems, *(error.warnings if warnings_too else ())]
    path = os.environ.get("PROXY_CONFIG", "").strip()
    try:
        read_file(settings_.existing_file(path) if path else None)
    except SettingsError as error:
        problems += error.problems
    except ValueError:
        pass  # A file that is not there is among the problems already.
    if settings is not None and warnings_too:
        problems += settings.warnings
    if problems or settings is None:
        refuse(problems)
    return settings

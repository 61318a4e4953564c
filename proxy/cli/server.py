"""`fal-proxy serve`, and the other commands for one server."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Annotated

import typer

from proxy import serving
from proxy.cli.database import run_on_database
from proxy.cli.output import AsJson, refuse, refuse_on_error, to_json
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory


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
    raise typer.Exit(serving.serve())


def dev(
    guests: Annotated[bool, typer.Option("--guests", help="With FAL_KEY: let the page call freely.")] = False,
    proof_of_work: Annotated[bool, typer.Option("--proof-of-work", help="Guests solve a challenge first.")] = False,
    yes_expose: Annotated[bool, typer.Option("--yes-expose", help="With FAL_KEY: let other machines call.")] = False,
) -> None:
    """Run the sandbox, the proxy and the page in one process, with a demo tenant. FAL_KEY uses fal itself."""
    trial = _import_trial()
    flags = {"takes_guests": guests, "proves_work": proof_of_work, "exposes": yes_expose}
    refuse_on_error(lambda: trial.run_dev(os.environ, **flags))


def sandbox(port: Annotated[int, typer.Option(min=1, max=65535)] = 8788) -> None:
    """Run the sandbox of fal alone, and print the settings that point a proxy at it."""
    _import_trial().run_sandbox(port)


def _import_trial() -> ModuleType:
    """Import the commands for trying things out only when they run: the sandbox has no part in production."""
    try:
        from proxy.playground import dev as trial
    except ModuleNotFoundError as problem:
        if problem.name != "PIL":
            raise
        refuse(["the sandbox needs Pillow, which the image leaves out: install fal-proxy with pip to try things out"])
    return trial


def check_config(as_json: AsJson = False) -> None:
    """Check every setting and the plan file; print every problem, or 'ok'."""
    _, problems = serving.find_problems(warnings_too=True)
    if as_json:
        print(to_json({"status": "wrong" if problems else "ok", "problems": problems}))
        raise typer.Exit(1 if problems else 0)
    if problems:
        refuse(problems)
    print("ok")


def migrate(as_json: AsJson = False) -> None:
    """Upgrade the database schema to this version."""

    async def run(stores: SqlStores, _directory: Directory) -> str | None:
        return await stores.migrate()

    revision = run_on_database(run, prepare=False)
    print(to_json({"revision": revision}) if as_json else revision)

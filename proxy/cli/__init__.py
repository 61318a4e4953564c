"""Run and manage fal-proxy. Data goes to stdout, messages to stderr; exit 0, 1 for a refusal, 2 for wrong usage."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy import __version__
from proxy.cli.keys import tenant_keys
from proxy.cli.server import check_config, dev, migrate, sandbox, serve
from proxy.cli.sessions import sessions
from proxy.cli.tenants import tenants
from proxy.cli.usage import usage

main = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"fal-proxy {__version__}")
        raise typer.Exit


@main.callback()
def _read_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


main.command()(serve)
main.command()(dev)
main.command()(sandbox)
main.command("check-config")(check_config)
main.command()(migrate)
main.command()(usage)
main.add_typer(tenants, name="tenants")
main.add_typer(tenant_keys, name="keys")
main.add_typer(sessions, name="sessions")

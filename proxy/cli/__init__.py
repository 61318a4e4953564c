"""Run and manage fal-proxy. Data goes to stdout, messages to stderr; exit 0, 1 for a refusal, 2 for wrong usage."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy import __version__
from proxy.cli.admin_tokens import admin_tokens
from proxy.cli.alerts import alerts
from proxy.cli.audit import audit
from proxy.cli.backup import backup
from proxy.cli.doctor import doctor
from proxy.cli.grants import grants
from proxy.cli.jobs import jobs
from proxy.cli.keys import tenant_keys
from proxy.cli.overrides import overrides
from proxy.cli.reconcile import reconcile
from proxy.cli.server import check_config, dev, migrate, sandbox, serve
from proxy.cli.sessions import sessions
from proxy.cli.statement import statement
from proxy.cli.tenants import tenants
from proxy.cli.upstreams import upstreams
from proxy.cli.usage import usage

main = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


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
main.command()(backup)
main.command()(doctor)
main.command()(usage)
main.command()(statement)
main.command()(reconcile)
main.command()(upstreams)
main.add_typer(tenants, name="tenants")
main.add_typer(tenant_keys, name="keys")
main.add_typer(sessions, name="sessions")
main.add_typer(jobs, name="jobs")
main.add_typer(alerts, name="alerts")
main.add_typer(audit, name="audit")
main.add_typer(grants, name="grants")
main.add_typer(admin_tokens, name="admin-tokens")
main.add_typer(overrides, name="overrides")

"""`fal-proxy alerts`: what was raised."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.cli.database import run_on_database
from proxy.cli.output import AsJson, print_rows, refuse
from proxy.stores.alerts import Alert
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory
from proxy.tenants.strict import is_name

alerts = typer.Typer(no_args_is_help=True, help="Alerts.")
MOST_LISTED = 1000


# A command that is alone in its group would be the group itself.
@alerts.callback()
def _name_group() -> None:
    pass


@alerts.command("list")
def alerts_list(
    tenant: Annotated[str | None, typer.Option(help="Only alerts of this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest alerts."""
    if tenant is not None and not is_name(tenant):
        refuse(["--tenant: that is not the id of a tenant"])

    async def run(stores: SqlStores, _directory: Directory) -> list[Alert]:
        return list(await stores.alerts.list_newest(limit, tenant=tenant))

    rows = [alert.describe() for alert in run_on_database(run)]
    print_rows(rows, as_json, ("at", "kind", "tenant", "details"))

"""`fal-proxy alerts`: the alerts, and whether their receivers took them."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.alerts.listing import AlertFilter, AlertList, DeliveredAlert
from proxy.cli.database import check_tenant, command_author, run_on_database
from proxy.cli.output import AsJson, print_rows, refuse
from proxy.stores.deliveries import STATES, Delivery
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory

alerts = typer.Typer(no_args_is_help=True, help="Alerts and their deliveries.")
MOST_LISTED = 1000


@alerts.command("list")
def alerts_list(
    tenant: Annotated[str | None, typer.Option(help="Only alerts of this tenant.")] = None,
    delivery: Annotated[str | None, typer.Option(help="Only with a delivery that is waiting, sent or dead.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest alerts, and whether their receivers have them."""
    if delivery is not None and delivery not in STATES:
        refuse([f"--delivery: must be one of {', '.join(STATES)}"])

    async def run(stores: SqlStores, directory: Directory) -> list[DeliveredAlert]:
        check_tenant(await directory.snapshot(), tenant)
        return await AlertList(stores.alerts, stores.deliveries).list_newest(limit, AlertFilter(tenant, delivery))

    found = run_on_database(run)
    rows = [one.describe() | ({} if as_json else {"deliveries": _summarize(one.deliveries)}) for one in found]
    print_rows(rows, as_json, ("id", "at", "kind", "tenant", "deliveries", "details"))


@alerts.command("resend")
def alerts_resend(
    alert: Annotated[str, typer.Argument(help="The alert's id.")],
    as_json: AsJson = False,
) -> None:
    """Send an alert again to all of its receivers."""

    async def run(stores: SqlStores, _directory: Directory) -> list[Delivery]:
        return await AlertList(stores.alerts, stores.deliveries).resend(alert, by=command_author())

    print_rows([one.describe() for one in run_on_database(run)], as_json, ("receiver", "state", "attempts"))


def _summarize(deliveries: list[Delivery]) -> str:
    shown = (one.describe() for one in deliveries)
    return ",".join(f"{one['receiver']}:{one['state']}" for one in shown)

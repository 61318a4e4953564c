"""`fal-proxy usage`: what a tenant used."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from proxy.cli.database import find_tenant, run_on_database
from proxy.cli.output import AsJson, print_table, to_json
from proxy.clock import SystemClock
from proxy.limits import usage as reports
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory


def usage(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")],
    first: Annotated[str | None, typer.Option("--from", help="The first day, such as 2026-01-31.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="The last day.")] = None,
    group_by: Annotated[str, typer.Option(help="day, endpoint, subject; comma-separated.")] = "day",
    as_json: AsJson = False,
) -> None:
    """Report what a tenant used."""

    async def run(stores: SqlStores, directory: Directory) -> dict[str, Any]:
        find_tenant(await directory.snapshot(), tenant)
        period = reports.parse_period(first, last, SystemClock().now())
        groups = reports.parse_groups(group_by)
        return await reports.report(stores.ledger, tenant, None, period, groups)

    found = run_on_database(run)
    if as_json:
        print(to_json(found))
        return
    print_table([*found["usage"], found["total"]])

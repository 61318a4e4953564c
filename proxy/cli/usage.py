"""`fal-proxy usage`: what a tenant used."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from proxy.cli.database import find_tenant, run_on_database
from proxy.cli.output import AsJson, print_table, to_json
from proxy.cli.subjects import check_filter
from proxy.clock import SystemClock
from proxy.limits import usage as reports
from proxy.spreadsheets import to_csv
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory


def usage(
    tenant: Annotated[str | None, typer.Option(help="The tenant's id; all tenants without it.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only of this user; '' for the tenant itself.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="The first day, such as 2026-01-31.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="The last day.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help=f"{', '.join(reports.GROUPS)}; comma-separated. By day, or by tenant for all.")
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, without the total.")] = False,
) -> None:
    """Report what a tenant used, or all of them."""
    if as_json and as_csv:
        raise typer.BadParameter("Give --json or --csv, not both.")
    if subject is not None and tenant is None:
        raise typer.BadParameter("Give --tenant too.", param_hint="--subject")
    check_filter(subject)
    query = {"from": first, "to": last, "group_by": group_by}

    async def run(stores: SqlStores, directory: Directory) -> tuple[reports.UsageQuestion, dict[str, Any]]:
        snapshot = await directory.snapshot()
        if tenant is not None and not snapshot.has_records(tenant):
            find_tenant(snapshot, tenant)
        asked = reports.parse_question(tenant, subject, query, SystemClock().now())
        rows = await reports.read_usage(stores.ledger, asked)
        total = await reports.read_total(stores.ledger, asked) if "tag" in asked.groups else rows
        return asked, reports.describe(asked, rows, total)

    asked, found = run_on_database(run)
    if as_json:
        print(to_json(found))
        return
    if as_csv:
        print(to_csv(reports.list_columns(asked.groups), found["usage"]), end="")
        return
    rows = [*found["usage"], found["total"]]
    print_table(rows, list(rows[0]))

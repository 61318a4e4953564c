"""`fal-proxy statement`: what a tenant used in a month."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.cli.database import TenantId, find_tenant, run_on_database
from proxy.cli.output import AsJson, print_table, say, to_json
from proxy.clock import SystemClock
from proxy.limits.statements import COLUMNS, FIGURES, Statement, parse_month, read_statement
from proxy.spreadsheets import to_csv
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory


def statement(
    tenant: TenantId,
    month: Annotated[str, typer.Argument(help="The month, UTC, such as 2026-01.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print a tenant's statement of a month: what it used of each endpoint, and the sum in US dollars."""
    if as_json and as_csv:
        raise typer.BadParameter("Give --json or --csv, not both.")

    async def run(stores: SqlStores, directory: Directory) -> Statement:
        snapshot, now = await directory.snapshot(), SystemClock().now()
        if not snapshot.has_records(tenant):
            find_tenant(snapshot, tenant)
        return await read_statement(stores.ledger, stores.statements, tenant, parse_month(month, now), now)

    found = run_on_database(run)
    if as_json:
        print(to_json(found.describe()))
    elif as_csv:
        print(to_csv(COLUMNS, found.list_rows()), end="")
    else:
        if not found.is_final:
            say("preliminary: the month, or a call of it, is not over")
        rows = [{name: "-" if value is None else value for name, value in row.items()} for row in found.list_rows()]
        print_table(rows, ("endpoint", *FIGURES))

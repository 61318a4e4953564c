"""`fal-proxy reconcile`: the difference between the ledger and fal's own record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from proxy.cli.deployment import Address, ask_deployment
from proxy.cli.output import AsJson, print_table, to_json

_COLUMNS = ("day", "endpoint", "calls", "fal calls", "drift", "usd", "fal usd", "usd drift")


def reconcile(
    first: Annotated[str | None, typer.Option("--from", help="The first day, such as 2026-01-31.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="The last day, at most 92 days in all.")] = None,
    url: Address = None,
    as_json: AsJson = False,
) -> None:
    """Compare what the ledger has with what fal bills, by day and endpoint. Needs PROXY_ADMIN_TOKEN."""
    query = urlencode({name: value for name, value in (("from", first), ("to", last)) if value is not None})
    found = ask_deployment("GET", f"/v1/admin/reconciliation?{query}", url, ("rows", "total"))
    if as_json:
        print(to_json(found))
        return
    print_table([_to_cells(row) for row in (*found["rows"], found["total"])], _COLUMNS)


def _to_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    names = {name: row[name] for name in ("day", "endpoint") if name in row}
    ours, fal, difference = row["ours"], row["fal"], row["difference"]
    figures = (ours["calls"], fal["calls"], difference["calls"], ours["usd"], fal["usd"], difference["usd"])
    return names | dict(zip(_COLUMNS[2:], figures, strict=True))

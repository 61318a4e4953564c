"""`fal-proxy tenants`: tenants and their plans."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer

from proxy import settings
from proxy.cli.database import TenantId, find_tenant, read_snapshot, run_on_database
from proxy.cli.output import AsJson, print_rows, refuse_on_error, to_json
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory
from proxy.tenants.plan_file import json_schema, read_file
from proxy.tenants.plans import Tenant

tenants = typer.Typer(no_args_is_help=True, help="Tenants and their plans.")


@tenants.command("apply")
def tenants_apply(file: Annotated[str, typer.Argument(help="A YAML file of plans and tenants.")]) -> None:
    """Apply a file of plans and tenants."""
    found, _ = refuse_on_error(lambda: read_file(settings.existing_file(file)))

    async def run(_stores: SqlStores, directory: Directory) -> bool:
        return await directory.apply(found)

    print("changed" if run_on_database(run) else "unchanged")


@tenants.command("list")
def tenants_list(as_json: AsJson = False) -> None:
    """List all tenants."""
    snapshot = run_on_database(read_snapshot)
    rows = [_tenant_facts(tenant) for _, tenant in sorted(snapshot.tenants.items())]
    print_rows(rows, as_json, ("id", "plan"))


@tenants.command("show")
def tenants_show(tenant: TenantId, as_json: AsJson = False) -> None:
    """Show one tenant and the limits of its plan."""
    snapshot = run_on_database(read_snapshot)
    found = find_tenant(snapshot, tenant)
    fields = _tenant_facts(found) | {"limits": snapshot.plans[found.plan].model_dump(mode="json")}
    print(to_json(fields) if as_json else orjson.dumps(fields, option=orjson.OPT_INDENT_2).decode())


@tenants.command("schema")
def tenants_schema() -> None:
    """Print the JSON schema of the plan file."""
    print(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2).decode())


def _tenant_facts(tenant: Tenant) -> dict[str, Any]:
    return tenant.model_dump(mode="json")

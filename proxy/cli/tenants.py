"""`fal-proxy tenants`: tenants and their plans."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from proxy import settings
from proxy.auth.forgetting import Forgetting
from proxy.catalog import built_in
from proxy.cli.database import (
    TenantId,
    command_author,
    find_tenant,
    read_snapshot,
    run_on_database,
)
from proxy.cli.output import AsJson, print_done, print_rows, refuse, refuse_on_error, say, to_json
from proxy.cli.subjects import check_user
from proxy.clock import SystemClock, to_iso
from proxy.stores.removal import FormerTenant
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory
from proxy.tenants.plan_diff import describe_dry_run, format_changes
from proxy.tenants.plan_file import describe_file, dump_yaml, json_schema, read_file
from proxy.tenants.removal import TenantRemoval

tenants = typer.Typer(no_args_is_help=True, help="Tenants and their plans.")


@tenants.command("apply")
def tenants_apply(
    file: Annotated[str, typer.Argument(help="A YAML file of plans and tenants.")],
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Apply a file of plans and tenants."""
    path = refuse_on_error(lambda: settings.readable_file(file))
    if is_dry_run:
        _preview(path, as_json)
        return

    async def run(_stores: SqlStores, directory: Directory) -> bool:
        known = await directory.snapshot()
        found, _ = refuse_on_error(lambda: read_file(path, known))
        return await directory.apply(found, by=command_author())

    changed = run_on_database(run)
    print(to_json({"changed": changed}) if as_json else "changed" if changed else "unchanged")


def _preview(path: Path, as_json: bool) -> None:
    """Print what a file would change. The database must be there: a dry run does not make or migrate it."""

    async def run(_stores: SqlStores, directory: Directory) -> dict[str, Any]:
        known = await directory.snapshot()
        found, _ = refuse_on_error(lambda: read_file(path, known))
        if not known.tenants:
            say("the database has no tenants yet: without --dry-run, PROXY_CONFIG is applied first")
        return describe_dry_run(await directory.preview(found))

    answer = run_on_database(run, is_read_only=True)
    print(to_json(answer) if as_json else format_changes(answer["changes"]) or "unchanged")


@tenants.command("export")
def tenants_export(as_json: AsJson = False) -> None:
    """Print the plan file of what the database holds now. Applied, it changes nothing."""
    snapshot = run_on_database(read_snapshot)
    path = os.environ.get("PROXY_CONFIG", "").strip()
    file, _ = refuse_on_error(lambda: read_file(settings.existing_file(path) if path else None, snapshot))
    folder = Path(path).resolve().parent
    schemas = {one.id: folder / one.schema_ for one in file.endpoints if one.schema_ is not None}
    named = set(snapshot.prices).union(*(plan.endpoints for plan in snapshot.plans.values()))
    if unknown := sorted(named - schemas.keys() - set(built_in().ids())):
        refuse([f"PROXY_CONFIG: name the proxy's plan file, which has the schema of {', '.join(unknown)}"])
    document = describe_file(snapshot, schemas)
    print(to_json(document) if as_json else dump_yaml(document).rstrip("\n"))


@tenants.command("list")
def tenants_list(as_json: AsJson = False) -> None:
    """List all tenants."""
    snapshot = run_on_database(read_snapshot)
    rows = [snapshot.describe(tenant) for _, tenant in sorted(snapshot.tenants.items())]
    if not as_json:
        rows = [row | ({"state": "suspended"} if row["suspended_at"] else {}) for row in rows]
    print_rows(rows, as_json, ("id", "plan", "state"))


@tenants.command("show")
def tenants_show(tenant: TenantId, as_json: AsJson = False) -> None:
    """Show one tenant and the limits of its plan."""
    snapshot = run_on_database(read_snapshot)
    found = find_tenant(snapshot, tenant)
    fields = snapshot.describe(found) | {"limits": snapshot.plans[found.plan].model_dump(mode="json")}
    print(to_json(fields, for_people=not as_json))


@tenants.command("suspend")
def tenants_suspend(tenant: TenantId, as_json: AsJson = False) -> None:
    """Refuse all that a tenant and its users ask, on all servers within five seconds, until it is resumed."""
    _change(tenant, lambda directory: directory.suspend(tenant, by=command_author()))
    print_done({"id": tenant}, "suspended", as_json)


@tenants.command("resume")
def tenants_resume(tenant: TenantId, as_json: AsJson = False) -> None:
    """Serve a suspended tenant again, on all servers within five seconds."""
    _change(tenant, lambda directory: directory.resume(tenant, by=command_author()))
    print_done({"id": tenant}, "resumed", as_json)


@tenants.command("delete")
def tenants_delete(tenant: TenantId, as_json: AsJson = False) -> None:
    """Delete a tenant, its keys and sessions, for good; print the name under which its usage is kept."""

    async def run(stores: SqlStores, directory: Directory) -> FormerTenant:
        snapshot, removal = await directory.snapshot(), TenantRemoval(directory, stores.removal, SystemClock())
        if (former := snapshot.find_uncleared(tenant)) is not None:
            await removal.finish(former)
            return former
        return await removal.delete(find_tenant(snapshot, tenant).id, by=command_author())

    former = run_on_database(run)
    fields = {"id": former.id, "records": former.records, "deleted_at": to_iso(former.deleted_at)}
    print(to_json(fields) if as_json else former.records)


@tenants.command("forget")
def tenants_forget(
    tenant: TenantId,
    subject: Annotated[str, typer.Argument(help="The user, as the tenant names them.")],
    as_json: AsJson = False,
) -> None:
    """Forget a user of a tenant: end all sessions, and clear the name from the database, for good."""
    check_user(subject, "SUBJECT")

    async def run(stores: SqlStores, directory: Directory) -> None:
        find_tenant(await directory.snapshot(), tenant)
        await Forgetting(directory, stores, SystemClock()).forget(tenant, subject, by=command_author())

    run_on_database(run)
    print_done({"tenant": tenant}, "forgotten", as_json)


def _change(tenant: str, change: Callable[[Directory], Awaitable[None]]) -> None:
    async def run(_stores: SqlStores, directory: Directory) -> None:
        find_tenant(await directory.snapshot(), tenant)
        await change(directory)

    run_on_database(run)


@tenants.command("schema")
def tenants_schema() -> None:
    """Print the JSON schema of the plan file."""
    print(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2).decode())

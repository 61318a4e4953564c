"""`fal-proxy overrides`: another plan, or other limits, for one user until a moment."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer

from proxy.cli.database import TenantId, command_author, find_tenant, read_snapshot, run_on_database
from proxy.cli.forms import read_options
from proxy.cli.output import AsJson, print_done, print_rows, refuse, to_json
from proxy.cli.subjects import check_user
from proxy.clock import SystemClock
from proxy.routes.overrides import NewOverride, OverrideEditor, describe_override, list_overrides_of
from proxy.stores.sql import SqlStores
from proxy.strict_json import parse_strictly
from proxy.tenants.directory import Directory

overrides = typer.Typer(no_args_is_help=True, help="Another plan or other limits for one user.")
Subject = Annotated[str, typer.Argument(help="The user, as the tenant names them.")]


@overrides.command("set")
def overrides_set(
    tenant: TenantId,
    subject: Subject,
    until: Annotated[str, typer.Option(help="A day, or a moment such as 2026-01-31T08:00:00Z.")],
    plan: Annotated[str | None, typer.Option(help="The name of another plan.")] = None,
    limits: Annotated[str | None, typer.Option(help='Other limits as JSON, such as {"max_tokens": 900}.')] = None,
    as_json: AsJson = False,
) -> None:
    """Give a user another plan, or other limits, on all servers within five seconds."""
    check_user(subject, "SUBJECT")
    fields = {"plan": plan, "limits": None if limits is None else _parse_limits(limits), "until": until}
    form = read_options(NewOverride, fields)

    async def run(stores: SqlStores, directory: Directory) -> dict[str, Any]:
        found = find_tenant(await directory.snapshot(), tenant)
        editor = OverrideEditor(stores.directory, stores.ledger, directory, SystemClock())
        return await editor.put(found, subject, form, by=command_author())

    done = run_on_database(run)
    print(to_json(done) if as_json else "set")


@overrides.command("clear")
def overrides_clear(tenant: TenantId, subject: Subject, as_json: AsJson = False) -> None:
    """End a user's override now."""
    check_user(subject, "SUBJECT")

    async def run(stores: SqlStores, directory: Directory) -> bool:
        find_tenant(await directory.snapshot(), tenant)
        editor = OverrideEditor(stores.directory, stores.ledger, directory, SystemClock())
        return await editor.clear(tenant, subject, by=command_author())

    if not run_on_database(run):
        refuse([f"{subject} has no override"])
    print_done({"tenant": tenant, "subject": subject}, "cleared", as_json)


@overrides.command("list")
def overrides_list(tenant: TenantId, as_json: AsJson = False) -> None:
    """List the overrides of a tenant's users."""
    snapshot = run_on_database(read_snapshot)
    find_tenant(snapshot, tenant)
    rows = [describe_override(*entry) for entry in list_overrides_of(snapshot, tenant)]
    print_rows(rows, as_json, ("subject", "plan", "limits", "until"))


def _parse_limits(text: str) -> Any:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        refuse(["--limits: must be JSON"])
    try:
        return parse_strictly(text)
    except ValueError as problem:
        refuse([f"--limits: {problem}"])

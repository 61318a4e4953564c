"""`fal-proxy keys`: tenant keys."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.auth.names import check_label
from proxy.cli.database import TenantId, command_author, find_tenant, read_snapshot, run_on_database
from proxy.cli.output import AsJson, print_done, print_rows, refuse, refuse_on_error, say, to_json
from proxy.clock import SystemClock, to_iso
from proxy.stores.sql import SqlStores
from proxy.tenants import keys
from proxy.tenants.directory import Directory

tenant_keys = typer.Typer(no_args_is_help=True, help="Tenant keys.")


@tenant_keys.command("create")
def keys_create(
    tenant: TenantId,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a key and print it; it cannot be shown again."""

    if name:
        refuse_on_error(lambda: check_label(name), "--name")

    async def run(_stores: SqlStores, directory: Directory) -> tuple[str, str]:
        find_tenant(await directory.snapshot(), tenant)
        text, record = keys.make(tenant, name, SystemClock().now())
        await directory.add_key(record, by=command_author())
        return text, record.id

    text, key_id = run_on_database(run)
    say(f"key {key_id} of {tenant}: keep it now, it cannot be shown again")
    print(to_json({"id": key_id, "tenant": tenant, "name": name, "key": text}) if as_json else text)


@tenant_keys.command("list")
def keys_list(tenant: TenantId, as_json: AsJson = False) -> None:
    """List a tenant's keys, without their secrets."""
    snapshot = run_on_database(read_snapshot)
    find_tenant(snapshot, tenant)
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "created_at": to_iso(key.created_at),
            "last_used_at": None if key.last_used_at is None else to_iso(key.last_used_at),
        }
        for key in snapshot.keys.values()
        if key.tenant == tenant
    ]
    print_rows(rows, as_json, ("id", "created_at", "last_used_at", "name"))


@tenant_keys.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The id that 'keys list' prints.")], as_json: AsJson = False
) -> None:
    """Revoke a key on all servers, within five seconds."""

    async def run(_stores: SqlStores, directory: Directory) -> bool:
        return keys.is_key_id(key_id) and await directory.revoke_key(key_id, by=command_author())

    if not run_on_database(run):
        refuse([f"there is no key {key_id[:100]}"])
    print_done({"id": key_id}, "revoked", as_json)

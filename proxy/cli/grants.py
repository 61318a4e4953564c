"""`fal-proxy grants`: credits of tenants and their subjects."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from proxy.calls.call import parse_key
from proxy.cli.database import TenantId, command_author, find_tenant, run_on_database
from proxy.cli.forms import read_options
from proxy.cli.output import AsJson, print_rows, to_json
from proxy.cli.subjects import check_filter
from proxy.clock import SystemClock
from proxy.limits.grants import describe_grant
from proxy.routes.grants import Grants, NewGrant
from proxy.stores.grants import GrantFilter
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory

grants = typer.Typer(no_args_is_help=True, help="Credits of tenants and their users.")
#: Grants that one reading finds.
_PAGE = 500
_COLUMNS = ("id", "subject", "unit", "amount", "left", "expires_at", "reason")


@grants.command("add")
def grants_add(
    tenant: TenantId,
    unit: Annotated[str, typer.Option(help="requests, tokens, compute_seconds, usd or upload_bytes.")],
    amount: Annotated[float, typer.Option(help="How much of it.")],
    reason: Annotated[str, typer.Option(help="What it is given for.")],
    subject: Annotated[str | None, typer.Option(help="The user; the tenant itself if not given.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="A day, or a moment such as 2026-01-31T08:00:00Z.")] = None,
    key: Annotated[str | None, typer.Option(help="With the same key, it is given once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give a tenant, or one of its users, a credit, and print its id."""
    fields = {"unit": unit, "amount": amount, "reason": reason, "subject": subject, "expires_at": expires_at}
    form = read_options(NewGrant, fields)

    async def run(stores: SqlStores, directory: Directory) -> dict[str, Any]:
        find_tenant(await directory.snapshot(), tenant)
        checked = None if key is None else parse_key([key])
        given, _ = await Grants(stores.grants, stores.ledger, directory, SystemClock()).give(
            tenant, form, checked, by=command_author()
        )
        return describe_grant(given)

    given = run_on_database(run)
    print(to_json(given) if as_json else given["id"])


@grants.command("list")
def grants_list(
    tenant: TenantId,
    subject: Annotated[str | None, typer.Option(help="Only of this user; '' for the tenant itself.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a tenant's grants, the newest first, with what is left of each."""
    check_filter(subject)
    subjects = None if subject is None else (subject,)

    async def run(stores: SqlStores, directory: Directory) -> list[dict[str, Any]]:
        find_tenant(await directory.snapshot(), tenant)
        rows: list[dict[str, Any]] = []
        after: tuple[float, str] | None = None
        while page := await stores.grants.list_grants(GrantFilter(tenant, subjects, after=after), _PAGE):
            rows += map(describe_grant, page)
            after = page[-1].grant.created_at, page[-1].grant.id
        return rows

    print_rows(run_on_database(run), as_json, _COLUMNS)

"""`fal-proxy admin-tokens`: named tokens of the admin API."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from proxy.auth.admin_tokens import AdminTokens, Role
from proxy.cli.database import command_author, run_on_database
from proxy.cli.output import AsJson, print_done, print_rows, refuse, say, to_json
from proxy.clock import SystemClock, to_iso
from proxy.routes.admin_tokens import describe_token
from proxy.routes.paging import parse_moment
from proxy.stores.admin_tokens import NamedToken
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory
from proxy.tenants.strict import is_name

admin_tokens = typer.Typer(no_args_is_help=True, help="Named tokens of the admin API.")


@admin_tokens.command("create")
def admin_tokens_create(
    name: Annotated[str, typer.Argument(help="A name by which you know it.")],
    role: Annotated[
        Literal["viewer", "operator", "admin"],
        typer.Option(help="What it may do: read; change what is no key and no plan; everything."),
    ],
    expires: Annotated[
        str | None, typer.Option(help="The day or moment of its end, such as 2027-01-31; in 90 days if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token and print it; it cannot be shown again."""
    if not is_name(name):
        refuse(["a name has up to 63 characters of a-z, 0-9, _ and -, and begins with a letter or digit"])

    async def run(stores: SqlStores, _directory: Directory) -> tuple[str, NamedToken]:
        expires_at = None if expires is None else parse_moment("--expires", expires)
        return await _tokens(stores).create(name, Role[role.upper()], expires_at, by=command_author())

    text, token = run_on_database(run)
    say(f"token {name} with the role {role}, until {to_iso(token.expires_at)}: keep it now, it cannot be shown again")
    print(to_json({**describe_token(token), "token": text}) if as_json else text)


@admin_tokens.command("list")
def admin_tokens_list(as_json: AsJson = False) -> None:
    """List the tokens, without their secrets."""

    async def run(stores: SqlStores, _directory: Directory) -> list[NamedToken]:
        return list(await _tokens(stores).list_named())

    rows = [describe_token(token) for token in run_on_database(run)]
    print_rows(rows, as_json, ("name", "role", "created_at", "expires_at"))


@admin_tokens.command("revoke")
def admin_tokens_revoke(
    name: Annotated[str, typer.Argument(help="The name that 'admin-tokens list' prints.")], as_json: AsJson = False
) -> None:
    """Revoke a token on all servers, within five seconds."""

    async def run(stores: SqlStores, _directory: Directory) -> bool:
        return is_name(name) and await _tokens(stores).revoke(name, by=command_author())

    if not run_on_database(run):
        refuse([f"there is no token {name[:100]}"])
    print_done({"name": name}, "revoked", as_json)


def _tokens(stores: SqlStores) -> AdminTokens:
    return AdminTokens(None, stores.admin_tokens, SystemClock())

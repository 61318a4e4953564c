"""`fal-proxy sessions`: sessions of end users."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from proxy import settings
from proxy.auth.names import check_new_subject
from proxy.auth.narrowing import Narrowing, check_prices
from proxy.auth.revocations import revoke_by_name
from proxy.auth.sessions import Sessions, check_subject, describe_mint, is_session_id
from proxy.cli.database import command_author, find_dev, find_tenant, is_set, run_on_database
from proxy.cli.forms import read_options
from proxy.cli.output import AsJson, print_done, refuse, refuse_on_error, say, to_json
from proxy.cli.subjects import check_user
from proxy.clock import SystemClock, to_iso
from proxy.stores.sql import SqlStores
from proxy.tenants.caller import Session
from proxy.tenants.directory import Directory

_SECRETS = "PROXY_SESSION_SECRETS"
#: The options of the fields that are called otherwise.
_OPTIONS = {
    "quotas": "quota",
    "tags": "tag",
    "limits.max_tokens": "max-tokens",
    "limits.max_prompt_chars": "max-prompt-chars",
}

sessions = typer.Typer(no_args_is_help=True, help="Sessions.")


@sessions.command("mint")
def sessions_mint(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")],
    subject: Annotated[str, typer.Option(help="The user, as the tenant names them.")],
    endpoint: Annotated[list[str] | None, typer.Option(help="Allow only this endpoint; can be repeated.")] = None,
    ttl: Annotated[int | None, typer.Option(min=1, help="Lifetime in seconds; at most what the plan allows.")] = None,
    quota: Annotated[
        list[str] | None, typer.Option(help="What it has in all, such as requests=10; can be repeated.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The most tokens of a call.")] = None,
    max_prompt_chars: Annotated[int | None, typer.Option(help="The longest prompt of a call.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word by which you know it; can be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a session token for one user. It can only narrow what the plan allows."""
    refuse_on_error(lambda: check_subject(subject), "--subject")
    narrowing = _read_narrowing(quota or [], max_tokens, max_prompt_chars, tag or [])
    _check_not_signed_by_dev()
    ring = refuse_on_error(lambda: settings.read_session_secrets(os.environ)).secrets

    async def run(stores: SqlStores, directory: Directory) -> tuple[str, Session]:
        snapshot = await directory.snapshot()
        found = find_tenant(snapshot, tenant)
        snapshot.check_active(found.id)
        plan = snapshot.plans[snapshot.plan_of(found, subject)]
        if unknown := sorted(set(endpoint or []) - plan.endpoints):
            refuse([f"--endpoint: the tenant's plan does not allow {', '.join(unknown)}"])
        await check_new_subject(stores.ledger, tenant, subject)
        check_prices(narrowing, endpoint or plan.endpoints, snapshot.prices)
        seconds = min(ttl or plan.session_ttl_seconds, plan.session_ttl_seconds)
        claims = narrowing.claims() | {"newest_revocation": snapshot.newest_revocation}
        token, session = Sessions(ring, SystemClock()).mint(
            tenant, subject, seconds, endpoints=endpoint or None, **claims
        )
        await stores.audit.record(command_author(), describe_mint(session))
        return token, session

    token, session = run_on_database(run)
    say(f"session {session.id} for {subject} of {tenant}, until {to_iso(session.expires_at)}")
    fields = {"id": session.id, "subject": subject, "expires_at": to_iso(session.expires_at), "token": token}
    print(to_json(fields) if as_json else token)


def _check_not_signed_by_dev() -> None:
    """Refuse to mint for a running `dev` that signs with a secret of its own, which no command knows."""
    if not is_set(_SECRETS) and (dev := find_dev()) is not None:
        why = "is not set, and the running 'dev' signs with a secret of its own"
        refuse([f"{_SECRETS}: {why}; mint with its tenant key: POST {dev.url}/v1/sessions; or set it for both"])


def _read_narrowing(
    quotas: list[str], max_tokens: int | None, max_prompt_chars: int | None, tags: list[str]
) -> Narrowing:
    parts = [quota.partition("=") for quota in quotas]
    limits = {"max_tokens": max_tokens, "max_prompt_chars": max_prompt_chars}
    try:
        named = [{"unit": unit, "limit": float(limit)} for unit, _, limit in parts]
    except ValueError:
        refuse(["--quota: give a unit and a number, such as requests=10"])
    return read_options(Narrowing, {"quotas": named, "limits": limits, "tags": tags}, _OPTIONS)


@sessions.command("revoke")
def sessions_revoke(
    session_id: Annotated[str | None, typer.Argument(help="The id that 'sessions mint' prints.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant's id.")] = None,
    subject: Annotated[str | None, typer.Option(help="Revoke all sessions of this user.")] = None,
    as_json: AsJson = False,
) -> None:
    """Revoke one session, or all sessions of one user, on all servers within five seconds."""
    if (session_id is None) == (tenant is None or subject is None):
        say("give either a session id, or --tenant and --subject")
        raise typer.Exit(2)
    if session_id is not None and not is_session_id(session_id):
        refuse(["that is not the id of a session"])
    if subject is not None:
        check_user(subject)

    async def run(_stores: SqlStores, directory: Directory) -> None:
        snapshot = await directory.snapshot()
        now = SystemClock().now()
        for one in [find_tenant(snapshot, tenant)] if tenant else snapshot.tenants.values():
            await directory.revoke(revoke_by_name(one.id, session_id, subject, now), by=command_author())

    run_on_database(run)
    fields = {"session_id": session_id, "tenant": tenant, "subject": subject}
    print_done({name: value for name, value in fields.items() if value is not None}, "revoked", as_json)

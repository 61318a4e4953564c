"""`fal-proxy sessions`: sessions of end users."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from proxy import settings
from proxy.auth.revocations import revoke_by_name
from proxy.auth.sessions import SUBJECT_RULE, Sessions, check_subject, is_session_id, is_subject
from proxy.cli.database import find_tenant, read_snapshot, run_on_database
from proxy.cli.output import AsJson, refuse, refuse_on_error, say, to_iso, to_json
from proxy.clock import SystemClock
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory

sessions = typer.Typer(no_args_is_help=True, help="Sessions.")


@sessions.command("mint")
def sessions_mint(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")],
    subject: Annotated[str, typer.Option(help="The user, as the tenant names them.")],
    endpoint: Annotated[list[str] | None, typer.Option(help="Allow only this endpoint; can be repeated.")] = None,
    ttl: Annotated[int | None, typer.Option(min=1, help="Lifetime in seconds; at most what the plan allows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a session token for one user."""
    try:
        check_subject(subject)
    except ValueError as problem:
        refuse([f"--subject: {problem}"])
    ring = refuse_on_error(lambda: settings.read_session_secrets(os.environ)).secrets
    snapshot = run_on_database(read_snapshot)
    plan = snapshot.plans[find_tenant(snapshot, tenant).plan]
    if unknown := sorted(set(endpoint or []) - plan.endpoints):
        refuse([f"--endpoint: the tenant's plan does not allow {', '.join(unknown)}"])
    seconds = min(ttl or plan.session_ttl_seconds, plan.session_ttl_seconds)
    token, session = Sessions(ring, SystemClock()).mint(tenant, subject, seconds, endpoints=endpoint or None)
    say(f"session {session.id} for {subject} of {tenant}, until {to_iso(session.expires_at)}")
    fields = {"id": session.id, "subject": subject, "expires_at": to_iso(session.expires_at), "token": token}
    print(to_json(fields) if as_json else token)


@sessions.command("revoke")
def sessions_revoke(
    session_id: Annotated[str | None, typer.Argument(help="The id that 'sessions mint' prints.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant's id.")] = None,
    subject: Annotated[str | None, typer.Option(help="Revoke all sessions of this user.")] = None,
) -> None:
    """Revoke one session, or all sessions of one user, on all servers within five seconds."""
    if (session_id is None) == (tenant is None or subject is None):
        say("give either a session id, or --tenant and --subject")
        raise typer.Exit(2)
    if session_id is not None and not is_session_id(session_id):
        refuse(["that is not the id of a session"])
    if subject is not None and not is_subject(subject):
        refuse([f"--subject: {SUBJECT_RULE}"])

    async def run(_stores: SqlStores, directory: Directory) -> None:
        snapshot = await directory.snapshot()
        now = SystemClock().now()
        for one in [find_tenant(snapshot, tenant)] if tenant else snapshot.tenants.values():
            await directory.revoke(revoke_by_name(one.id, session_id, subject, now))

    run_on_database(run)
    print("revoked")

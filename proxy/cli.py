"""The command line. Data goes to stdout, words to stderr; exit 0, 1 for a refusal, 2 for bad usage."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer

from proxy import settings as settings_
from proxy.app import create_app
from proxy.auth.revocations import revoke_by_name
from proxy.auth.sessions import SUBJECT_RULE, Sessions, check_subject, is_session_id, is_subject
from proxy.clock import SystemClock
from proxy.errors import ProxyError
from proxy.limits import usage as usage_
from proxy.redaction import Redactor
from proxy.server.tuning import tune_runtime
from proxy.server.workers import run
from proxy.settings import LogSettings, Settings, SettingsError
from proxy.stores.sql import SqlStores
from proxy.telemetry import configure_logging
from proxy.tenants import keys
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plan_file import json_schema, read_file
from proxy.tenants.plans import Tenant

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TenantId = Annotated[str, typer.Argument(help="The tenant's id.")]

main = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
tenants = typer.Typer(no_args_is_help=True, help="Tenants and their plans.")
tenant_keys = typer.Typer(no_args_is_help=True, help="Tenant keys.")
sessions = typer.Typer(no_args_is_help=True, help="Sessions.")
main.add_typer(tenants, name="tenants")
main.add_typer(tenant_keys, name="keys")
main.add_typer(sessions, name="sessions")


@main.command()
def serve(
    host: Annotated[str | None, typer.Option(help="PROXY_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="PROXY_PORT")] = None,
    workers: Annotated[int | None, typer.Option(help="PROXY_WORKERS")] = None,
) -> None:
    """Run the proxy."""
    for name, value in (("PROXY_HOST", host), ("PROXY_PORT", port), ("PROXY_WORKERS", workers)):
        if value is not None:
            # In the environment, so that worker processes read the same.
            os.environ[name] = str(value)
    settings = _checked()
    for warning in settings.warnings:
        _say(f"warning: {warning}")
    # Of this process, which supervises the workers if there are several.
    configure_logging(settings.log, Redactor(settings.secrets))
    raise typer.Exit(run("proxy.cli:application", settings))


def application() -> Any:
    """The application of one worker process, from its environment. The process ends if that cannot be used."""
    try:
        return _application()
    except SettingsError as error:
        # `serve` looked at it before, so a file has changed since, or can be read by one process only.
        for problem in error.problems:
            _say(problem)
        sys.exit(1)


def _application() -> Any:
    settings = settings_.read(os.environ)
    redactor = Redactor(settings.secrets)
    configure_logging(settings.log, redactor)

    def read_again() -> Settings:
        found = settings_.read(os.environ)
        redactor.add(found.secrets)
        return found

    app = create_app(settings, read_settings=read_again)
    tune_runtime()
    return app


@main.command()
def dev(
    guests: Annotated[bool, typer.Option("--guests", help="With FAL_KEY: let the page call without a login.")] = False,
    yes_expose: Annotated[
        bool, typer.Option("--yes-expose", help="With FAL_KEY: listen where other machines can call.")
    ] = False,
) -> None:
    """Run the sandbox, the proxy and the page in one process, with a demo tenant. With FAL_KEY set: fal itself."""
    # Imported here: the sandbox and its picture library have no part in production.
    from proxy.playground.dev import run_dev

    _refusing(lambda: run_dev(os.environ, takes_guests=guests, exposes=yes_expose))


@main.command()
def sandbox(port: Annotated[int, typer.Option(min=1, max=65535)] = 8788) -> None:
    """Run the stand-in for fal alone, and print the settings that point a proxy at it."""
    from proxy.playground.dev import run_sandbox

    run_sandbox(port)


@main.command("check-config")
def check_config() -> None:
    """Look at every setting and at the plan file; print every problem, or 'ok'."""
    _checked(warnings_too=True)
    print("ok")


@main.command()
def migrate() -> None:
    """Bring the database to this version."""

    async def run(stores: SqlStores, _directory: Directory) -> str | None:
        return await stores.migrate()

    print(_on_database(run, prepare=False))


@main.command()
def usage(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")],
    first: Annotated[str | None, typer.Option("--from", help="The first day, as 2026-01-31.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="The last day.")] = None,
    group_by: Annotated[str, typer.Option(help="day, endpoint, subject; comma-separated.")] = "day",
    as_json: AsJson = False,
) -> None:
    """What a tenant used."""

    async def run(stores: SqlStores, directory: Directory) -> dict[str, Any]:
        _known(await directory.snapshot(), tenant)
        period = usage_.parse_period(first, last, SystemClock().now())
        groups = usage_.parse_groups(group_by)
        return await usage_.report(stores.ledger, tenant, None, period, groups)

    found = _on_database(run)
    if as_json:
        print(_json(found))
        return
    _print_table([*found["usage"], found["total"]])


@tenants.command("apply")
def tenants_apply(file: Annotated[str, typer.Argument(help="A YAML file of plans and tenants.")]) -> None:
    """Make a file of plans and tenants hold."""
    found, _ = _refusing(lambda: read_file(settings_.existing_file(file)))

    async def run(_stores: SqlStores, directory: Directory) -> bool:
        return await directory.apply(found)

    print("changed" if _on_database(run) else "unchanged")


@tenants.command("list")
def tenants_list(as_json: AsJson = False) -> None:
    """The tenants there are."""
    snapshot = _on_database(_snapshot)
    rows = [_tenant_facts(tenant) for _, tenant in sorted(snapshot.tenants.items())]
    _print_rows(rows, as_json, ("id", "plan"))


@tenants.command("show")
def tenants_show(tenant: TenantId, as_json: AsJson = False) -> None:
    """One tenant, with the limits of its plan."""
    snapshot = _on_database(_snapshot)
    found = _known(snapshot, tenant)
    facts = _tenant_facts(found) | {"limits": snapshot.plans[found.plan].model_dump(mode="json")}
    print(_json(facts) if as_json else orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())


@tenants.command("schema")
def tenants_schema() -> None:
    """The JSON schema of the plan file."""
    print(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2).decode())


@tenant_keys.command("create")
def keys_create(
    tenant: TenantId,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a key and print it: it is shown this once."""

    if name and not is_subject(name):
        _refuse([f"--name: {SUBJECT_RULE}"])

    async def run(_stores: SqlStores, directory: Directory) -> tuple[str, str]:
        _known(await directory.snapshot(), tenant)
        text, record = keys.make(tenant, name, SystemClock().now())
        await directory.add_key(record)
        return text, record.id

    text, key_id = _on_database(run)
    _say(f"key {key_id} of {tenant}: keep it now, it cannot be shown again")
    print(_json({"id": key_id, "tenant": tenant, "name": name, "key": text}) if as_json else text)


@tenant_keys.command("list")
def keys_list(tenant: TenantId, as_json: AsJson = False) -> None:
    """A tenant's keys, without their secrets."""
    snapshot = _on_database(_snapshot)
    _known(snapshot, tenant)
    rows = [
        {"id": key.id, "name": key.name, "created_at": _iso(key.created_at), "last_used_at": _iso(key.last_used_at)}
        for key in snapshot.keys.values()
        if key.tenant == tenant
    ]
    _print_rows(rows, as_json, ("id", "created_at", "last_used_at", "name"))


@tenant_keys.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(help="As 'keys list' shows it.")]) -> None:
    """Revoke a key, everywhere within five seconds."""

    async def run(_stores: SqlStores, directory: Directory) -> bool:
        return keys.is_key_id(key_id) and await directory.revoke_key(key_id)

    if not _on_database(run):
        _refuse([f"there is no key {key_id}"])
    print("revoked")


@sessions.command("mint")
def sessions_mint(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")],
    subject: Annotated[str, typer.Option(help="The end user, as the tenant names them.")],
    endpoint: Annotated[list[str] | None, typer.Option(help="Narrow it to this endpoint; can be repeated.")] = None,
    ttl: Annotated[int | None, typer.Option(min=1, help="Seconds; at most what the plan allows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a session token for one end user."""
    try:
        check_subject(subject)
    except ValueError as problem:
        _refuse([f"--subject: {problem}"])
    ring = _refusing(lambda: settings_.read_session_secrets(os.environ)).secrets
    snapshot = _on_database(_snapshot)
    plan = snapshot.plans[_known(snapshot, tenant).plan]
    if unknown := sorted(set(endpoint or []) - plan.endpoints):
        _refuse([f"--endpoint: the tenant's plan does not allow {', '.join(unknown)}"])
    seconds = min(ttl or plan.session_ttl_seconds, plan.session_ttl_seconds)
    token, session = Sessions(ring, SystemClock()).mint(tenant, subject, seconds, endpoints=endpoint or None)
    _say(f"session {session.id} for {subject} of {tenant}, until {_iso(session.expires_at)}")
    facts = {"id": session.id, "subject": subject, "expires_at": _iso(session.expires_at), "token": token}
    print(_json(facts) if as_json else token)


@sessions.command("revoke")
def sessions_revoke(
    session_id: Annotated[str | None, typer.Argument(help="As 'sessions mint' said it.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant's id.")] = None,
    subject: Annotated[str | None, typer.Option(help="All sessions of this end user.")] = None,
) -> None:
    """Revoke one session, or all of one end user, everywhere within five seconds."""
    if (session_id is None) == (tenant is None or subject is None):
        _say("give either a session id, or --tenant and --subject")
        raise typer.Exit(2)
    if session_id is not None and not is_session_id(session_id):
        _refuse(["that is not the id of a session"])
    if subject is not None and not is_subject(subject):
        _refuse([f"--subject: {SUBJECT_RULE}"])

    async def run(_stores: SqlStores, directory: Directory) -> None:
        snapshot = await directory.snapshot()
        now = SystemClock().now()
        for one in [_known(snapshot, tenant)] if tenant else snapshot.tenants.values():
            await directory.revoke(revoke_by_name(one.id, session_id, subject, now))

    _on_database(run)
    print("revoked")


def _checked(*, warnings_too: bool = False) -> Settings:
    """The settings, with the plan file looked at too; or every problem, and exit 1."""
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = settings_.read(os.environ)
    except SettingsError as error:
        problems += [*error.problems, *(error.warnings if warnings_too else ())]
    path = os.environ.get("PROXY_CONFIG", "").strip()
    try:
        read_file(settings_.existing_file(path) if path else None)
    except SettingsError as error:
        problems += error.problems
    except ValueError:
        pass  # A file that is not there is among the problems already.
    if settings is not None and warnings_too:
        problems += settings.warnings
    if problems or settings is None:
        _refuse(problems)
    return settings


def _on_database(run: Callable[[SqlStores, Directory], Awaitable[T]], *, prepare: bool = True) -> T:
    """Do something on the database that the settings name, beside a server that may be running."""
    stores_settings = _refusing(lambda: settings_.read_stores(os.environ))
    configure_logging(LogSettings("text", "warning"), Redactor(settings_.secrets_in(stores_settings)))

    async def work() -> T:
        stores = SqlStores.of(stores_settings)
        try:
            if prepare:
                await stores.prepare()
                await _ensure_tenants(stores)
            return await run(stores, Directory(stores.directory, SystemClock()))
        finally:
            await stores.close()

    try:
        return asyncio.run(work())
    except ProxyError as error:
        _refuse([error.message])


async def _ensure_tenants(stores: SqlStores) -> None:
    """What the server does at its start, so that commands find the same tenants before it ever ran."""
    directory = Directory(stores.directory, SystemClock())
    if (await directory.snapshot()).tenants:
        # Later it would undo what 'tenants apply' did with another file.
        return
    path = os.environ.get("PROXY_CONFIG", "").strip()
    file, _ = _refusing(lambda: read_file(settings_.existing_file(path) if path else None))
    await directory.apply(file)


async def _snapshot(_stores: SqlStores, directory: Directory) -> Snapshot:
    return await directory.snapshot()


def _refusing(read: Callable[[], T]) -> T:
    try:
        return read()
    except SettingsError as error:
        _refuse(error.problems)
    except ValueError as error:
        _refuse([str(error)])


def _known(snapshot: Snapshot, tenant: str) -> Tenant:
    if tenant not in snapshot.tenants:
        _refuse([f"there is no tenant {tenant}; there are: {', '.join(sorted(snapshot.tenants)) or 'none'}"])
    return snapshot.tenants[tenant]


def _tenant_facts(tenant: Tenant) -> dict[str, Any]:
    return tenant.model_dump(mode="json")


def _print_rows(rows: Sequence[dict[str, Any]], as_json: bool, columns: Sequence[str]) -> None:
    if as_json:
        print(_json(rows))
        return
    for row in rows:
        print("\t".join(str(row[column]) for column in columns))


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Columns under their names; the last row is the total, and has none of the columns that rows are grouped by."""
    columns = list(rows[0])
    cells = [columns, *([str(row.get(column, "total")) for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _json(document: object) -> str:
    return orjson.dumps(document).decode()


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def _refuse(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        _say(problem)
    raise typer.Exit(1)

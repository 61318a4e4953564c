"""`fal-proxy audit`: who changed what."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.cli.database import check_tenant, run_on_database
from proxy.cli.output import AsJson, print_rows, refuse, say, shown_progress, to_json
from proxy.stores.audit_chain import Entry, Link
from proxy.stores.audit_store import Verification
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory

audit = typer.Typer(no_args_is_help=True, help="The audit log: who changed what.")
MOST_LISTED = 1000


@audit.command("list")
def audit_list(
    tenant: Annotated[str | None, typer.Option(help="Only changes of this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest entries."""

    async def run(stores: SqlStores, directory: Directory) -> list[Entry]:
        check_tenant(await directory.snapshot(), tenant)
        return list(await stores.audit.list_newest(limit, tenant=tenant))

    rows = [entry.describe() for entry in run_on_database(run)]
    print_rows(rows, as_json, ("number", "at", "by", "action", "tenant", "target"))


@audit.command("export")
def audit_export(
    after: Annotated[int, typer.Option(min=0, max=10**18, help="Only entries with a greater number.")] = 0,
) -> None:
    """Print all entries as JSON lines, oldest first."""

    async def run(stores: SqlStores, _directory: Directory) -> None:
        async for entry in stores.audit.read_all(after):
            print(to_json(entry.describe()))

    run_on_database(run)


@audit.command("verify")
def audit_verify(
    expect: Annotated[str | None, typer.Option(metavar="HEAD", help="What an earlier run printed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no entry is changed, missing or in another place, and print the head of the log.

    Keep the head outside of the database. Only a head that is expected shows that the end was cut off together with the
    head that the database has.
    """
    expected = None
    if expect is not None:
        try:
            expected = Link.parse(expect)
        except ValueError as problem:
            refuse([f"--expect: {problem}"])

    with shown_progress("verify") as report:

        async def run(stores: SqlStores, _directory: Directory) -> Verification:
            return await stores.audit.verify(expected, report)

        found = run_on_database(run)
    if as_json:
        print(to_json({"head": str(found.head), "entries": found.entries, "problems": found.problems}))
    if found.problems:
        refuse(found.problems)
    if not as_json:
        say(f"{found.entries} entries are whole; keep the head elsewhere and expect it next time")
        print(found.head)

"""`fal-proxy jobs`: the calls and jobs in the ledger."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from proxy.cli.database import find_tenant, run_on_database
from proxy.cli.deployment import Address, ask_deployment
from proxy.cli.output import AsJson, print_rows, refuse, to_json
from proxy.cli.subjects import check_filter
from proxy.jobs.records import describe_details, describe_job
from proxy.routes.admin_jobs import STATUSES
from proxy.routes.paging import parse_endpoint, parse_since
from proxy.stores.ledger import Job, JobFilter
from proxy.stores.sql import SqlStores
from proxy.targets import is_request_id
from proxy.tenants.directory import Directory

#: Jobs of one list.
MOST_LISTED = 10_000
jobs = typer.Typer(no_args_is_help=True, help="Calls and jobs.")
JobId = Annotated[str, typer.Argument(help="The id of the job, or of its entry in the ledger.")]


@jobs.command("list")
def jobs_list(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")],
    subject: Annotated[str | None, typer.Option(help="Only of this user; '' for the tenant itself.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only of this endpoint.")] = None,
    status: Annotated[str | None, typer.Option(help="Only jobs that are open, or over.")] = None,
    since: Annotated[str | None, typer.Option(help="Only from this day or moment on, such as 2026-01-31.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the newest calls and jobs of a tenant."""
    check_filter(subject)
    if status is not None and status not in STATUSES:
        refuse([f"--status: must be one of {', '.join(STATUSES)}"])
    is_over = None if status is None else STATUSES[status]

    async def run(stores: SqlStores, directory: Directory) -> list[dict[str, Any]]:
        find_tenant(await directory.snapshot(), tenant)
        endpoints = None if endpoint is None else [parse_endpoint(endpoint).endpoint]
        wanted = JobFilter(tenant, subject, endpoints, is_over=is_over, since=parse_since(since))
        return [describe_job(job) for job in await stores.ledger.list_jobs(wanted, limit)]

    rows = run_on_database(run)
    print_rows(rows, as_json, ("submitted_at", "id", "request_id", "kind", "state", "endpoint", "subject"))


@jobs.command("show")
def jobs_show(job: JobId, as_json: AsJson = False) -> None:
    """Show what the ledger knows of a job: what it reserved and used, and its timeline."""
    if not is_request_id(job):
        refuse([f"{job[:100]!r} is not the id of a job"])

    async def run(stores: SqlStores, _directory: Directory) -> Job | None:
        return await stores.ledger.get(job) or await stores.ledger.find(job)

    found = run_on_database(run)
    if found is None:
        refuse([f"there is no job {job}"])
    fields = describe_details(found)
    print(to_json(fields, for_people=not as_json))


@jobs.command("cancel")
def jobs_cancel(job: JobId, url: Address = None, as_json: AsJson = False) -> None:
    """Cancel a job at fal, through the running proxy. Needs PROXY_ADMIN_TOKEN."""
    if not is_request_id(job):
        refuse([f"{job[:100]!r} is not the id of a job"])
    answer = ask_deployment("DELETE", f"/v1/admin/jobs/{job}", url)
    print(to_json(answer) if as_json else answer.get("status", "cancelled"))

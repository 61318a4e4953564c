"""The routes of both listeners, each given the parts that it works with."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from proxy.alerts.listing import AlertList
from proxy.auth.forgetting import Forgetting
from proxy.calls.call import Form
from proxy.calls.estimates import Estimator
from proxy.container import Container
from proxy.jobs.drift import DriftReports
from proxy.routes import fal_hosts, fal_proxy, openapi, playground, reference
from proxy.routes.admin import AdminRoutes
from proxy.routes.admin_alerts import AlertRoutes
from proxy.routes.admin_audit import AuditReader, AuditRoutes
from proxy.routes.admin_door import AdminDoor
from proxy.routes.admin_jobs import AdminJobRoutes, JobDesk
from proxy.routes.admin_reconciliation import ReconciliationRoutes
from proxy.routes.admin_tokens import AdminTokenRoutes
from proxy.routes.admin_upstreams import UpstreamRoutes
from proxy.routes.endpoints import EndpointRoutes
from proxy.routes.estimate import EstimateRoutes
from proxy.routes.fal_surface import FalSurface
from proxy.routes.grants import GrantRoutes, Grants
from proxy.routes.guests import GuestRoutes
from proxy.routes.job_lists import JobListRoutes
from proxy.routes.jobs import JobRoutes
from proxy.routes.operations import OperationsRoutes, livez_route
from proxy.routes.overrides import OverrideEditor, OverrideRoutes
from proxy.routes.plan_desk import PlanDesk
from proxy.routes.readiness import Readiness
from proxy.routes.sessions import SessionRoutes
from proxy.routes.statements import AdminStatementRoutes, StatementRoutes, Statements, style_routes
from proxy.routes.tenants import TenantLifecycle
from proxy.routes.uploads.calls import UploadCalls
from proxy.routes.uploads.cdn import CdnRoutes
from proxy.routes.uploads.native import NativeUploads
from proxy.routes.uploads.slots import SlotRoutes
from proxy.routes.usage import UsageReports, UsageRoutes
from proxy.targets import Target
from proxy.tenants.removal import TenantRemoval


def public_routes(parts: Container) -> list[BaseRoute]:
    """List the routes of the public listener: those of operators too, unless they have a listener of their own."""
    return [
        *fal_proxy.routes(_fal_surface(parts, fal_proxy.parse_target, Form())),
        *_job_routes(parts),
        *_estimate_routes(parts),
        *_upload_routes(parts),
        *_fal_host_routes(parts),
        *_session_routes(parts),
        *_guest_routes(parts),
        *EndpointRoutes(parts.authenticator, parts.limiter, parts.admission, parts.catalog).routes(),
        *UsageRoutes(parts.authenticator, parts.limiter, _usage_reports(parts)).routes(),
        *style_routes(parts.flood_guard),
        *StatementRoutes(parts.authenticator, parts.limiter, Statements(parts.stores, parts.clock)).routes(),
        *([] if parts.settings.server.ops_port else operators_routes(parts)),
        livez_route(),
        *openapi.routes(parts.flood_guard, parts.settings.server.public_url),
        *reference.routes(parts.flood_guard),
        *_playground_routes(parts),
    ]


def _fal_host_routes(parts: Container) -> list[Route]:
    public_url = parts.settings.server.public_url
    form = Form(fal_hosts.rewriter(public_url))
    return fal_hosts.routes(_fal_surface(parts, fal_hosts.TargetParser(public_url), form))


def operators_routes(parts: Container) -> list[BaseRoute]:
    """List the routes that operators ask, besides `/livez`."""
    door = AdminDoor(parts.admin_tokens, parts.flood_guard, parts.clock, parts.stores.audit)
    admin = AdminRoutes(
        door=door,
        directory=parts.directory,
        ledger=parts.stores.ledger,
        sessions=parts.sessions,
        plans=PlanDesk(parts.directory, parts.catalog),
        reports=_usage_reports(parts),
        clock=parts.clock,
    )
    jobs = AdminJobRoutes(door, _job_desk(parts))
    upstreams = UpstreamRoutes(door, parts.upstream.guard, parts.stores.ledger)
    drift = ReconciliationRoutes(door, DriftReports(parts.stores.ledger, parts.platform), parts.clock)
    audit = AuditRoutes(door, AuditReader(parts.stores.audit, parts.directory))
    alerts = AlertRoutes(door, AlertList(parts.stores.alerts, parts.stores.deliveries), parts.directory)
    tokens = AdminTokenRoutes(door, parts.admin_tokens)
    surfaces = (admin, jobs, upstreams, drift, audit, alerts, tokens, _operations(parts))
    return [
        *(style_routes(parts.flood_guard) if parts.settings.server.ops_port else []),
        *_tenant_routes(parts, door),
        *(route for part in surfaces for route in part.routes()),
        *_console_routes(parts),
    ]


def _tenant_routes(parts: Container, door: AdminDoor) -> list[Route]:
    """List the operators' routes below one tenant."""
    grants = GrantRoutes(
        door, parts.directory, Grants(parts.stores.grants, parts.stores.ledger, parts.directory, parts.clock)
    )
    editor = OverrideEditor(parts.stores.directory, parts.stores.ledger, parts.directory, parts.clock)
    overrides = OverrideRoutes(door, parts.directory, editor)
    removal = TenantRemoval(parts.directory, parts.stores.removal, parts.clock)
    forgetting = Forgetting(parts.directory, parts.stores, parts.clock)
    lifecycle = TenantLifecycle(door, parts.directory, removal, forgetting)
    statements = AdminStatementRoutes(door, parts.directory, Statements(parts.stores, parts.clock))
    return [route for part in (grants, overrides, lifecycle, statements) for route in part.routes()]


def _operations(parts: Container) -> OperationsRoutes:
    async def check_database() -> None:
        await parts.stores.ping()
        await parts.directory.snapshot()

    readiness = Readiness({"database": check_database, "counters": parts.counters.ping}, parts.clock)
    return OperationsRoutes(readiness, parts.upstream.guard, parts.metrics, parts.drain)


def _console_routes(parts: Container) -> list[Route]:
    if not parts.settings.server.console:
        return []
    # Imported here: its templates take memory that a proxy without a console has better uses for.
    from proxy.console.console import Console

    return Console(
        sessions=parts.sessions,
        tokens=parts.admin_tokens,
        directory=parts.directory,
        catalog=parts.catalog,
        stores=parts.stores,
        guard=parts.upstream.guard,
        jobs=_job_desk(parts),
        drain=parts.drain,
        limiter=parts.limiter,
        counters=parts.counters,
        provider=parts.openid,
        flood_guard=parts.flood_guard,
        recognizer=parts.recognizer,
        clock=parts.clock,
        metrics=parts.metrics,
        platform=parts.platform,
        is_https=parts.settings.server.is_console_https,
    ).routes()


def _job_desk(parts: Container) -> JobDesk:
    return JobDesk(parts.stores.ledger, parts.directory, parts.stores.audit, parts.job_handler)


def _usage_reports(parts: Container) -> UsageReports:
    return UsageReports(parts.stores.ledger, parts.stores.grants, parts.clock)


def _playground_routes(parts: Container) -> list[Route]:
    settings = parts.settings
    if not settings.dev and not settings.server.playground:
        return []
    return playground.routes(parts.flood_guard, is_dev=settings.dev)


def _fal_surface(parts: Container, parse: Callable[[Request], Target], form: Form) -> FalSurface:
    uploads = UploadCalls(
        parts.authenticator,
        parts.admission,
        parts.uploads.destinations,
        parts.uploads.slots,
        parts.settings.server.public_url,
    )
    return FalSurface(parts.authenticator, parts.grace, parts.handlers, uploads, parts.stream_guard, parse, form)


def _job_routes(parts: Container) -> list[Route]:
    jobs = JobRoutes(
        authenticator=parts.authenticator,
        grace=parts.grace,
        handlers=parts.handlers,
        job_handler=parts.job_handler,
        owners=parts.owners,
        audit=parts.stores.audit,
        clock=parts.clock,
        limiter=parts.limiter,
        streams=parts.streams,
        stream_guard=parts.stream_guard,
        hub=parts.hub,
        drain=parts.drain,
    )
    lists = JobListRoutes(parts.authenticator, parts.stores.ledger, parts.limiter, parts.hub)
    return [*jobs.routes(), *lists.routes()]


def _estimate_routes(parts: Container) -> list[Route]:
    estimator = Estimator(parts.admission, parts.limiter, parts.leases, parts.quotas, parts.upstream.guard)
    return EstimateRoutes(parts.authenticator, parts.limiter, estimator).routes()


def _session_routes(parts: Container) -> list[Route]:
    return SessionRoutes(
        authenticator=parts.authenticator,
        sessions=parts.sessions,
        directory=parts.directory,
        admission=parts.admission,
        limiter=parts.limiter,
        leases=parts.leases,
        ledger=parts.stores.ledger,
        grants=parts.stores.grants,
        clock=parts.clock,
        flood_guard=parts.flood_guard,
        recognizer=parts.recognizer,
    ).routes()


def _guest_routes(parts: Container) -> list[Route]:
    return GuestRoutes(
        sessions=parts.sessions,
        cookie=parts.authenticator.cookie,
        proofs=parts.guest_proofs,
        directory=parts.directory,
        limiter=parts.limiter,
        clock=parts.clock,
        flood_guard=parts.flood_guard,
        own_origin=parts.settings.server.own_origin,
    ).routes()


def _upload_routes(parts: Container) -> list[Route]:
    uploads = parts.uploads
    cdn = CdnRoutes(
        authenticator=parts.authenticator,
        admission=parts.admission,
        limiter=parts.limiter,
        destinations=uploads.destinations,
        slots=uploads.slots,
        parts=uploads.parts,
        new_files=uploads.new_files,
        files=parts.files,
        public_url=parts.settings.server.public_url,
    )
    slots = SlotRoutes(parts.authenticator, parts.limiter, uploads.slots, uploads.whole_files, uploads.parts)
    return [
        *slots.routes(),
        *NativeUploads(parts.authenticator, parts.admission, uploads.new_files).routes(),
        *cdn.routes(),
    ]

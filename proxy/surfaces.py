"""The routes of both listeners, each given the parts that it works with."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from proxy.calls.call import Form
from proxy.container import Container
from proxy.routes import fal_hosts, fal_proxy, openapi
from proxy.routes.admin import AdminRoutes
from proxy.routes.endpoints import EndpointRoutes
from proxy.routes.fal_surface import FalSurface
from proxy.routes.jobs import JobRoutes
from proxy.routes.operations import OperationsRoutes, livez_route
from proxy.routes.readiness import Readiness
from proxy.routes.sessions import SessionRoutes
from proxy.routes.uploads.calls import UploadCalls
from proxy.routes.uploads.cdn import CdnRoutes
from proxy.routes.uploads.native import NativeUploads
from proxy.routes.uploads.slots import SlotRoutes
from proxy.routes.usage import UsageReports, UsageRoutes
from proxy.targets import Target


def public_routes(parts: Container) -> list[BaseRoute]:
    """What the public listener answers; what is for operators too, unless they have a listener of their own."""
    return [
        *fal_proxy.routes(_fal_surface(parts, fal_proxy.parse_target, Form())),
        *_job_routes(parts),
        *_upload_routes(parts),
        *fal_hosts.routes(
            _fal_surface(parts, fal_hosts.parse_target, Form(fal_hosts.rewriter(parts.settings.server.public_url)))
        ),
        *_session_routes(parts),
        *EndpointRoutes(parts.authenticator, parts.limiter, parts.admission, parts.catalog).routes(),
        *UsageRoutes(parts.authenticator, parts.limiter, UsageReports(parts.stores.ledger, parts.clock)).routes(),
        *([] if parts.settings.server.ops_port else operators_routes(parts)),
        livez_route(),
        *openapi.routes(parts.flood_guard, parts.settings.server.public_url),
    ]


def operators_routes(parts: Container) -> list[BaseRoute]:
    """What operators ask, besides `/livez`."""
    admin = AdminRoutes(
        admin_token=parts.admin_token,
        directory=parts.directory,
        sessions=parts.sessions,
        catalog=parts.catalog,
        ledger=parts.stores.ledger,
        reports=UsageReports(parts.stores.ledger, parts.clock),
        clock=parts.clock,
        flood_guard=parts.flood_guard,
    )

    async def check_database() -> None:
        await parts.stores.ping()
        await parts.directory.snapshot()

    readiness = Readiness({"database": check_database, "counters": parts.counters.ping}, parts.clock)
    operations = OperationsRoutes(readiness, parts.upstream.guard, parts.metrics, parts.drain)
    return [*admin.routes(), *operations.routes()]


def _fal_surface(parts: Container, parse: Callable[[Request], Target], form: Form) -> FalSurface:
    uploads = UploadCalls(
        parts.authenticator, parts.admission, parts.destinations, parts.slots, parts.settings.server.public_url
    )
    return FalSurface(parts.authenticator, parts.handlers, uploads, parts.stream_guard, parse, form)


def _job_routes(parts: Container) -> list[Route]:
    return JobRoutes(
        authenticator=parts.authenticator,
        handlers=parts.handlers,
        job_handler=parts.job_handler,
        owners=parts.owners,
        ledger=parts.stores.ledger,
        limiter=parts.limiter,
        streams=parts.streams,
        stream_guard=parts.stream_guard,
        hub=parts.hub,
        drain=parts.drain,
    ).routes()


def _session_routes(parts: Container) -> list[Route]:
    return SessionRoutes(
        authenticator=parts.authenticator,
        sessions=parts.sessions,
        directory=parts.directory,
        admission=parts.admission,
        limiter=parts.limiter,
        leases=parts.leases,
        ledger=parts.stores.ledger,
        clock=parts.clock,
        flood_guard=parts.flood_guard,
    ).routes()


def _upload_routes(parts: Container) -> list[Route]:
    cdn = CdnRoutes(
        authenticator=parts.authenticator,
        admission=parts.admission,
        destinations=parts.destinations,
        slots=parts.slots,
        parts=parts.parts,
        new_files=parts.new_files,
        files=parts.files,
        public_url=parts.settings.server.public_url,
    )
    return [
        *SlotRoutes(parts.authenticator, parts.slots, parts.whole_files, parts.parts).routes(),
        *NativeUploads(parts.authenticator, parts.admission, parts.new_files).routes(),
        *cdn.routes(),
    ]

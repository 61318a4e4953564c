"""The console as a whole: its parts, and the files that its pages load."""

from __future__ import annotations

from typing import Protocol

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.alerts.listing import AlertList
from proxy.auth.admin_tokens import AdminTokens
from proxy.auth.forgetting import Forgetting
from proxy.auth.openid import OpenIdProvider
from proxy.auth.recognition import Recognizer
from proxy.auth.sessions import Sessions
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.console.audit import AuditPage
from proxy.console.configuration import ConfigurationPages
from proxy.console.cookies import ConsoleCookies
from proxy.console.credits import CreditPages
from proxy.console.door import PATH, ConsoleDoor
from proxy.console.jobs import JobPages
from proxy.console.oidc import OidcSignIn
from proxy.console.overview import FigureReader, OverviewPage
from proxy.console.pages import FOLDER, POLICY, Pages
from proxy.console.reconciliation import ReconciliationPage
from proxy.console.removal import RemovalPages
from proxy.console.sessions import ConsoleSessions
from proxy.console.sign_in import SignIn
from proxy.console.statements import STYLE_PATH, StatementPages
from proxy.console.subjects import SubjectPages
from proxy.console.tenants import TenantPages
from proxy.console.tokens import TokenPages
from proxy.console.usage import UsagePage
from proxy.console.watching import WatchPages
from proxy.drain import Drain
from proxy.http.static_page import StaticPage
from proxy.jobs.drift import DriftReports
from proxy.limits.rates import FILE_LIMIT, RateLimiter
from proxy.routes.admin_audit import AuditReader
from proxy.routes.admin_jobs import JobDesk
from proxy.routes.grants import Grants
from proxy.routes.overrides import OverrideEditor
from proxy.routes.plan_desk import PlanDesk
from proxy.routes.statements import Statements, style_routes
from proxy.routes.usage import UsageReports
from proxy.stores.base import Stores
from proxy.stores.counters import Counters
from proxy.telemetry.metrics import Metrics
from proxy.tenants.directory import Directory
from proxy.tenants.removal import TenantRemoval
from proxy.upstream.guard import Guard
from proxy.upstream.platform import FalPlatform

#: Ours, and what `make bundle` copies from packages.
_FILES = {
    "console.css": "console.css",
    "icon.svg": "icon.svg",
    "htmx.js": "bundle/htmx.min.js",
    "sse.js": "bundle/sse.min.js",
    "charts.js": "charts.js",
    "uplot.js": "bundle/uPlot.iife.min.js",
    "uplot.css": "bundle/uPlot.min.css",
}
#: A new version of the program brings new files.
_CACHING = b"no-cache"


class ConsolePart(Protocol):
    """Pages that belong together."""

    def routes(self) -> list[Route]: ...


class Console:
    """All routes below `/console`, each given the parts that it works with."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        tokens: AdminTokens,
        directory: Directory,
        catalog: Catalog,
        stores: Stores,
        guard: Guard,
        jobs: JobDesk,
        drain: Drain,
        limiter: RateLimiter,
        counters: Counters,
        provider: OpenIdProvider | None,
        flood_guard: Limiter,
        recognizer: Recognizer,
        clock: Clock,
        metrics: Metrics,
        platform: FalPlatform,
        is_https: bool,
    ) -> None:
        self._flood_guard = flood_guard
        pages, cookies = Pages(), ConsoleCookies(is_https=is_https)
        own_sessions = ConsoleSessions(sessions, tokens, directory, clock, provider.fingerprint if provider else None)
        door = ConsoleDoor(own_sessions, cookies, pages, flood_guard, recognizer, clock, metrics)
        reader = FigureReader(stores.ledger, guard, directory, metrics, clock)
        reports = UsageReports(stores.ledger, stores.grants, clock)
        self._parts: list[ConsolePart] = [
            OverviewPage(door, reader, own_sessions, drain, clock),
            SignIn(door, own_sessions, cookies, pages, limiter, stores.audit, provider.host if provider else ""),
            UsagePage(door, directory, reports),
            ReconciliationPage(door, DriftReports(stores.ledger, platform), clock),
            JobPages(door, jobs, directory, catalog),
            WatchPages(door, guard, stores.ledger, AlertList(stores.alerts, stores.deliveries), directory),
            *_tenant_parts(door, directory, stores, reports, clock),
            ConfigurationPages(door, directory, PlanDesk(directory, catalog)),
            TokenPages(door, tokens, clock),
            AuditPage(door, AuditReader(stores.audit, directory)),
        ]
        if provider:
            shared = (own_sessions, cookies, sessions, limiter, counters, stores.audit, clock)
            self._parts.append(OidcSignIn(provider, door, *shared))

    def routes(self) -> list[Route]:
        return [*_file_routes(self._flood_guard), *(route for part in self._parts for route in part.routes())]


def _tenant_parts(
    door: ConsoleDoor, directory: Directory, stores: Stores, reports: UsageReports, clock: Clock
) -> list[ConsolePart]:
    """Make the pages about one tenant."""
    return [
        TenantPages(door, directory, stores.ledger, clock),
        SubjectPages(door, directory, stores.ledger, reports, clock),
        CreditPages(
            door,
            directory,
            Grants(stores.grants, stores.ledger, directory, clock),
            OverrideEditor(stores.directory, stores.ledger, directory, clock),
        ),
        StatementPages(door, directory, Statements(stores, clock), clock),
        RemovalPages(
            door,
            directory,
            TenantRemoval(directory, stores.removal, clock),
            Forgetting(directory, stores, clock),
        ),
    ]


def _file_routes(flood_guard: Limiter) -> list[Route]:
    """Make the routes of the files that pages load. They need no session: the sign-in page looks like the others."""
    files = StaticPage(FOLDER / "static", _FILES, policy=POLICY, caching=_CACHING)

    @flood_guard.limit(FILE_LIMIT)
    async def console_file(request: Request) -> Response:
        return await files.respond_with_file(request)

    return [
        *style_routes(flood_guard, STYLE_PATH),
        Route(f"{PATH}/static/{{file}}", console_file, methods=["GET"]),
    ]

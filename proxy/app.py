"""The composition root: everything is built here once, and handed to who needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.assembly import assemble, open_counters
from proxy.calls.poll_cache import RepeatedPolls
from proxy.clock import Clock, SystemClock
from proxy.drain import Drain
from proxy.http.body_memory import BodyMemory
from proxy.http.cdn_targets import CdnTargets
from proxy.http.cors import Cors
from proxy.http.middleware import BodyLimit, Errors, RequestContext
from proxy.jobs.retention import Cleaner
from proxy.limits.refusals import RefusalBudget
from proxy.listeners import LISTENER, OPERATIONS
from proxy.page import Page
from proxy.reload import Reloader
from proxy.routes import admin, fal_hosts, fal_protocol, health, jobs, openapi, sessions, uploads, usage
from proxy.routes.services import Services
from proxy.settings import Settings
from proxy.startup import Startup
from proxy.stores.base import Stores
from proxy.stores.batching import Patience
from proxy.stores.counters.base import Counters
from proxy.stores.sql import SqlStores
from proxy.telemetry import Metrics
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import PlanFile
from proxy.upstream.client import Timeouts, Upstream
from proxy.upstream.guard import Guard
from proxy.upstream.transport import EngineTransport

if TYPE_CHECKING:
    import httpx


def create_app(
    settings: Settings,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    timeouts: Timeouts | None = None,
    stores: Stores | None = None,
    counters: Counters | None = None,
    clock: Clock | None = None,
    plan_file: PlanFile | None = None,
    drain: Drain | None = None,
    reconciles: bool = True,
    read_settings: Callable[[], Settings] | None = None,
    patience: Patience | None = None,
) -> Starlette:
    """The proxy as an ASGI application.

    Args:
        transport: how fal is reached; the fast one if not given.
        timeouts: how long fal may be silent; for tests that cannot wait that long.
        patience: how long callers wait for the ledger; for such tests too.
        stores: where things are kept; the database of the settings if not given.
        counters: where rate limits and slots are counted; the settings' Redis, or memory, if not given.
        clock: what time it is; the system's if not given.
        reconciles: whether this process looks after jobs that no caller watches, and removes what is past its time, or
            leaves that to others.
        plan_file: plans and tenants; what `PROXY_CONFIG` points at if not given.
        drain: what tells of the end of this process; one that only the server starts if not given.
        read_settings: reads the settings again, for a server that reloads them; without it, none can.

    Raises:
        SettingsError: `PROXY_CONFIG` cannot be used.
    """
    file, catalog = read_file(settings.config_path)
    metrics, clock = Metrics(), clock or SystemClock()
    services = assemble(
        settings,
        catalog,
        metrics,
        Upstream(
            settings.fal,
            transport or EngineTransport(idle_seconds=settings.fal.idle_seconds),
            timeouts,
            Guard(clock, metrics.upstream_refused, settings.fal.probe_seconds),
        ),
        stores or SqlStores.of(settings.stores),
        counters or open_counters(settings),
        clock,
        drain or Drain(settings.server.drain_seconds),
        patience,
    )
    cleaner = Cleaner(
        services.stores.retention, clock, settings.stores.retention_seconds, services.metrics.rows_removed
    )
    reloader = read_settings and Reloader(services, read_settings)
    app = Application(
        operations=_operations(services) if settings.server.ops_port else None,
        routes=_routes(services),
        middleware=_middleware(services),
        lifespan=_lifespan(services, plan_file or file, cleaner if reconciles else None, reloader),
    )
    # The fal clients follow redirects with all their headers, so none is ever sent.
    app.router.redirect_slashes = False
    if settings.dev:
        # Not mounted at "/": a mount there would answer wrong methods of other routes.
        app.router.default = Page()
    return app


class Application(Starlette):
    """Starlette without its own two layers of error handling: `Errors` answers for whatever is raised.

    Args:
        operations: what answers the listener for operators, if there is one.
    """

    def __init__(self, *, operations: ASGIApp | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.operations = operations

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self.router
        for cls, args, kwargs in reversed(self.user_middleware):
            app = cls(app, *args, **kwargs)
        return app if self.operations is None else ByListener(app, self.operations)


class ByListener:
    """Gives each request to the application of the listener over which it came."""

    def __init__(self, public: ASGIApp, operations: ASGIApp) -> None:
        self._public = public
        self._operations = operations

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._operations if scope.get("state", {}).get(LISTENER) == OPERATIONS else self._public
        return app(scope, receive, send)


def _routes(services: Services) -> list[BaseRoute]:
    """What the public listener answers; what is for operators too, unless they have a listener of their own."""
    for_operators = [] if services.settings.server.ops_port else _operators_routes(services)
    return [
        *fal_protocol.routes(services),
        *jobs.routes(services),
        *uploads.routes(services),
        *fal_hosts.routes(services),
        *sessions.routes(services),
        *usage.routes(services),
        *for_operators,
        health.livez_route(),
        *openapi.routes(services),
    ]


def _operators_routes(services: Services) -> list[BaseRoute]:
    return [*admin.routes(services), *health.routes(services)]


def _operations(services: Services) -> Application:
    """The application of the listener for operators: no pages call it, and no calls are answered."""
    routes = [*_operators_routes(services), health.livez_route()]
    app = Application(routes=routes, middleware=_middleware(services, is_public=False))
    app.router.redirect_slashes = False
    return app


def _middleware(services: Services, *, is_public: bool = True) -> list[Middleware]:
    """Outermost first. Each listener has budgets of its own, so that callers do not use up those of operators."""
    server, metrics, drain = services.settings.server, services.metrics, services.drain
    memory = services.body_memory if is_public else BodyMemory(server.max_body_memory)
    budget = RefusalBudget(
        server.refusals_per_address, services.clock, services.authenticator.recognize, metrics.unheard.inc
    )
    context = Middleware(RequestContext, metrics=metrics, drain=drain, body_memory=memory, budget=budget)
    errors = Middleware(Errors, metrics=metrics, drain=drain, budget=budget)
    is_file = uploads.carries_file if is_public else lambda path: False
    limit = Middleware(BodyLimit, max_bytes=server.max_body_bytes, is_file=is_file, body_memory=memory)
    if not is_public:
        return [context, errors, limit]
    metrics.body_bytes.set_function(lambda: memory.held)
    cors = Middleware(
        Cors,
        is_allowed=lambda origin: origin in server.allowed_origins or origin in services.directory.latest.origins,
        metrics=metrics,
        check=budget.check,
    )
    cdn = Middleware(CdnTargets, files=services.files, public_url=server.public_url)
    repeated = Middleware(
        RepeatedPolls,
        cache=services.poll_cache,
        hub=services.hub,
        limiter=services.limiter,
        settlement=services.settlement,
    )
    return [context, cors, errors, cdn, limit, repeated]


def _lifespan(
    services: Services, file: PlanFile, cleaner: Cleaner | None, reloader: Reloader | None
) -> Callable[[Starlette], AbstractAsyncContextManager[dict[str, Any]]]:
    async def prepare() -> None:
        await services.stores.prepare()
        # A reload may have applied a newer file meanwhile.
        if not services.directory.is_open:
            await services.directory.apply(file)

    startup = Startup(prepare)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        await startup.begin()
        services.bookkeeper.start()
        await services.leases.keeper.start()
        if cleaner is not None:
            services.reconciler.start()
            cleaner.start()
        services.hub.start()
        services.stream_guard.start()
        try:
            # This is how ASGI hands the server something.
            yield {"drain": services.drain, "metrics": services.metrics, "reload": reloader and reloader.request}
        finally:
            # First: the rest may take longer than this process has.
            await services.bookkeeper.spool()
            await startup.close()
            if reloader is not None:
                await reloader.close()
            await services.stream_guard.close()
            await services.hub.close()
            await services.reconciler.close()
            if cleaner is not None:
                await cleaner.close()
            await services.idempotency.close()
            await services.bookkeeper.close()
            await services.directory.close()
            await services.leases.keeper.close()
            await services.counters.close()
            await services.upstream.close()
            await services.stores.close()

    return lifespan

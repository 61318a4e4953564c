"""The composition root: everything is built here once, and handed to who needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.calls.poll_cache import RepeatedPolls
from proxy.clock import Clock, SystemClock
from proxy.container import Container
from proxy.drain import Drain
from proxy.http.body_memory import BodyMemory
from proxy.http.cdn_targets import CdnTargets
from proxy.http.cors import Cors
from proxy.http.middleware import BodyLimit, Errors, RequestContext
from proxy.limits.refusals import RefusalBudget
from proxy.listeners import LISTENER, OPERATIONS
from proxy.reload import Reloader
from proxy.routes import uploads
from proxy.routes.operations import livez_route
from proxy.settings import Settings
from proxy.startup import Startup
from proxy.stores.base import Stores
from proxy.stores.batching import LedgerTimeouts
from proxy.stores.counters import MemoryCounters
from proxy.stores.counters.base import Counters
from proxy.stores.sql import SqlStores
from proxy.surfaces import operators_routes, public_routes
from proxy.telemetry.metrics import Metrics
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
    ledger_timeouts: LedgerTimeouts | None = None,
    page: ASGIApp | None = None,
) -> Starlette:
    """The proxy as an ASGI application.

    Args:
        transport: how fal is reached; the fast one if not given.
        timeouts: how long fal may be silent; for tests that cannot wait that long.
        ledger_timeouts: how long callers wait for the ledger; for such tests too.
        stores: where things are kept; the database of the settings if not given.
        counters: where rate limits and slots are counted; the settings' Redis, or memory, if not given.
        clock: what time it is; the system's if not given.
        reconciles: whether this process looks after jobs that no caller watches, and removes what is past its time, or
            leaves that to others.
        plan_file: plans and tenants; what `PROXY_CONFIG` points at if not given.
        drain: what tells of the end of this process; one that only the server starts if not given.
        page: answers what no route does, with a page that is served beside the proxy.
        read_settings: reads the settings again, for a server that reloads them; without it, none can.

    Raises:
        SettingsError: `PROXY_CONFIG` cannot be used.
    """
    # Long: it names every part that its caller may put in.
    file, catalog = read_file(settings.config_path)
    metrics, clock = Metrics(), clock or SystemClock()
    guard = Guard(clock, metrics.upstream_refused, settings.fal.probe_seconds)
    transport = transport or EngineTransport(idle_seconds=settings.fal.idle_seconds)
    parts = Container(
        settings=settings,
        catalog=catalog,
        metrics=metrics,
        upstream=Upstream(settings.fal, transport, timeouts, guard),
        stores=stores or SqlStores.of(settings.stores),
        counters=counters or open_counters(settings),
        clock=clock,
        drain=drain or Drain(settings.server.drain_seconds),
        ledger_timeouts=ledger_timeouts,
    )
    _observe(parts)
    reloader = read_settings and _reloader(parts, read_settings)
    app = Application(
        operations=_operations(parts) if settings.server.ops_port else None,
        routes=public_routes(parts),
        middleware=_middleware(parts),
        lifespan=_lifespan(parts, plan_file or file, reloader, reconciles=reconciles),
    )
    # The fal clients follow redirects with all their headers, so none is ever sent.
    app.router.redirect_slashes = False
    if page is not None:
        # Not mounted at "/": a mount there would answer wrong methods of other routes.
        app.router.default = page
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


def open_counters(settings: Settings) -> Counters:
    """Give the counters that the settings name."""
    if settings.stores.redis_url is None:
        return MemoryCounters()
    # Imported here: its client library takes memory that a proxy without Redis has better uses for.
    from proxy.stores.counters.redis import RedisCounters

    return RedisCounters(settings.stores.redis_url.reveal())


def _observe(parts: Container) -> None:
    """Let the metrics read what the parts hold."""
    hub, streams, breakers = parts.hub, parts.streams, parts.upstream.guard.open_names
    parts.metrics.gauge(lambda: len(hub), lambda: streams.total, lambda: len(breakers()), parts.quotas.waiting)


def _reloader(parts: Container, read_settings: Callable[[], Settings]) -> Reloader:
    return Reloader(
        settings=parts.settings,
        read_settings=read_settings,
        directory=parts.directory,
        catalog=parts.catalog,
        upstream=parts.upstream,
        sessions=parts.sessions,
        admin_token=parts.admin_token,
        poll_cache=parts.poll_cache,
        stream_guard=parts.stream_guard,
        metrics=parts.metrics,
    )


def _operations(parts: Container) -> Application:
    """The application of the listener for operators: no pages call it, and no calls are answered."""
    routes = [*operators_routes(parts), livez_route()]
    app = Application(routes=routes, middleware=_middleware(parts, is_public=False))
    app.router.redirect_slashes = False
    return app


def _middleware(parts: Container, *, is_public: bool = True) -> list[Middleware]:
    """Outermost first. Each listener has budgets of its own, so that callers do not use up those of operators."""
    server, metrics, drain = parts.settings.server, parts.metrics, parts.drain
    memory = parts.body_memory if is_public else BodyMemory(server.max_body_memory)
    budget = RefusalBudget(server.refusals_per_address, parts.clock, parts.authenticator.recognize, metrics.unheard.inc)
    context = Middleware(RequestContext, metrics=metrics, drain=drain, body_memory=memory, budget=budget)
    errors = Middleware(Errors, metrics=metrics, drain=drain, budget=budget)
    is_file = uploads.carries_file if is_public else lambda path: False
    limit = Middleware(BodyLimit, max_bytes=server.max_body_bytes, is_file=is_file, body_memory=memory)
    if not is_public:
        return [context, errors, limit]
    metrics.body_bytes.set_function(lambda: memory.held)
    cors = Middleware(
        Cors,
        is_allowed=lambda origin: origin in server.allowed_origins or origin in parts.directory.latest.origins,
        metrics=metrics,
        check=budget.check,
    )
    cdn = Middleware(CdnTargets, files=parts.files, public_url=server.public_url)
    repeated = Middleware(
        RepeatedPolls,
        cache=parts.poll_cache,
        hub=parts.hub,
        limiter=parts.limiter,
        settlement=parts.settlement,
    )
    return [context, cors, errors, cdn, limit, repeated]


def _lifespan(
    parts: Container, file: PlanFile, reloader: Reloader | None, *, reconciles: bool
) -> Callable[[Starlette], AbstractAsyncContextManager[dict[str, Any]]]:
    async def prepare() -> None:
        await parts.stores.prepare()
        # A reload may have applied a newer file meanwhile.
        if not parts.directory.is_open:
            await parts.directory.apply(file)

    startup = Startup(prepare)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        await startup.begin()
        parts.quotas.start()
        await parts.leases.keeper.start()
        if reconciles:
            parts.reconciler.start()
            parts.cleaner.start()
        parts.hub.start()
        parts.stream_guard.start()
        try:
            # This is how ASGI hands the server something.
            yield {"drain": parts.drain, "metrics": parts.metrics, "reload": reloader and reloader.request}
        finally:
            # First: the rest may take longer than this process has.
            await parts.quotas.spool()
            await startup.close()
            if reloader is not None:
                await reloader.close()
            await parts.stream_guard.close()
            await parts.hub.close()
            await parts.reconciler.close()
            await parts.cleaner.close()
            await parts.idempotency.close()
            await parts.quotas.close()
            await parts.directory.close()
            await parts.leases.keeper.close()
            await parts.counters.close()
            await parts.upstream.close()
            await parts.stores.close()

    return lifespan

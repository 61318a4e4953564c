"""The composition root: builds every part once, and hands it to the parts that need it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware

from proxy.application import Application
from proxy.background import Background
from proxy.calls.poll_cache import RepeatedPolls
from proxy.clock import Clock, SystemClock
from proxy.container import Container
from proxy.drain import Drain
from proxy.http.body_memory import BodyMemory
from proxy.http.cdn_targets import CdnTargets
from proxy.http.cors import Cors
from proxy.http.middleware import BodyLimit, Errors, RequestContext
from proxy.http.refused_origins import RefusedOrigins
from proxy.http.repetition import ANSWER_AGAIN
from proxy.limits.refusals import RefusalBudget
from proxy.reload import Reloader
from proxy.routes import uploads
from proxy.routes.operations import livez_route
from proxy.settings import FalSettings, Settings
from proxy.startup import Startup
from proxy.stores.audit import Author
from proxy.stores.base import Stores
from proxy.stores.batching import LedgerTimeouts
from proxy.stores.counters import Counters
from proxy.stores.memory import MemoryCounters
from proxy.stores.sql import SqlStores
from proxy.surfaces import operators_routes, public_routes
from proxy.telemetry.loop_lag import LoopLag
from proxy.telemetry.metrics import LiveValues, Metrics
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import PlanFile
from proxy.tenants.removal import finish_interrupted
from proxy.tracing import open_traces, trace_calls, trace_requests
from proxy.upstream.client import Upstream
from proxy.upstream.engine import Engine
from proxy.upstream.guard import Guard
from proxy.upstream.refusals import Reason
from proxy.upstream.timeouts import Timeouts
from proxy.upstream.transport import EngineTransport

if TYPE_CHECKING:
    import httpx

    from proxy.telemetry.traces import Traces


def create_app(
    settings: Settings,
    *,
    transport: Engine | httpx.AsyncBaseTransport | None = None,
    timeouts: Timeouts | None = None,
    stores: Stores | None = None,
    counters: Counters | None = None,
    clock: Clock | None = None,
    plan_file: PlanFile | None = None,
    drain: Drain | None = None,
    reconciles: bool = True,
    read_settings: Callable[[], Settings] | None = None,
    ledger_timeouts: LedgerTimeouts | None = None,
    issuer_tls: ssl.SSLContext | None = None,
) -> Starlette:
    """Build the proxy as an ASGI application.

    Args:
        transport: sends requests to fal; the proxy's own engine if None.
        timeouts: how long fal may be silent; tests shorten them.
        ledger_timeouts: how long callers wait for the ledger; tests shorten them too.
        issuer_tls: what verifies the servers of issuers' keys, and receivers of webhooks, if not what verifies fal.
        stores: the database; that of the settings if None.
        counters: count rates and concurrency leases; the Redis of the settings, or memory, if None.
        clock: the time; the system's if None.
        reconciles: whether this process does the work beside its calls (`Background`), or leaves it to others.
        plan_file: plans and tenants; the file of `PROXY_CONFIG` if None.
        drain: signals that this process ends; by default a new one, which only the server starts.
        read_settings: reads the settings again when the server reloads them; None for a server that cannot.

    Raises:
        SettingsError: `PROXY_CONFIG` cannot be used.
    """
    # Long: it names every part that its caller may put in.
    file, catalog = read_file(settings.config_path)
    metrics, clock = Metrics(settings.commit), clock or SystemClock()
    traces = open_traces(settings.traces)
    engine = trace_requests(transport or EngineTransport(idle_seconds=settings.fal.idle_seconds), traces)
    parts = Container(
        settings=settings,
        catalog=catalog,
        metrics=metrics,
        upstream=_open_upstream(settings.fal, engine, timeouts, metrics, clock),
        stores=stores or SqlStores.of(settings.stores, metrics.store_seconds),
        counters=counters or open_counters(settings, metrics),
        clock=clock,
        drain=drain or Drain(settings.server.drain_seconds),
        ledger_timeouts=ledger_timeouts,
        issuer_tls=issuer_tls,
    )
    _observe(parts)
    reloader = read_settings and new_reloader(parts, read_settings)
    return Application(
        operations=_operations(parts) if settings.server.ops_port else None,
        routes=public_routes(parts),
        middleware=_middleware(parts, traces=traces),
        lifespan=_lifespan(parts, plan_file or file, reloader, traces, reconciles=reconciles),
    )


def _open_upstream(
    fal: FalSettings,
    engine: Engine | httpx.AsyncBaseTransport,
    timeouts: Timeouts | None,
    metrics: Metrics,
    clock: Clock,
) -> Upstream:
    """Make the client of fal, which counts what fal refuses."""
    metrics.expect_upstream_refusals(Reason)
    waited = metrics.queue_seconds.of("upstream").observe
    guard = Guard(clock, metrics.upstream_refused, fal.probe_seconds, waited)
    return Upstream(fal, engine, timeouts, guard, metrics.count_upstream)


def open_counters(settings: Settings, metrics: Metrics) -> Counters:
    """Open the counters that the settings name."""
    if settings.stores.redis_url is None:
        return MemoryCounters()
    # Imported here: its client library takes memory that a proxy without Redis has better uses for.
    from proxy.stores.redis.measured import MeasuredRedisCounters

    return MeasuredRedisCounters(settings.stores.redis_url.reveal(), metrics.store_seconds)


def _observe(parts: Container) -> None:
    """Let the metrics read what the parts hold."""
    hub, streams, breakers = parts.hub, parts.streams, parts.upstream.guard.open_names
    parts.metrics.gauge(
        LiveValues(
            watched_jobs=lambda: len(hub),
            open_streams=lambda: streams.total,
            open_breakers=lambda: len(breakers()),
            deferred=parts.quotas.count_waiting,
            max_streams=parts.settings.server.max_streams,
        )
    )


def new_reloader(parts: Container, read_settings: Callable[[], Settings]) -> Reloader:
    """Make the reloader of an application's settings."""
    return Reloader(
        settings=parts.settings,
        read_settings=read_settings,
        directory=parts.directory,
        catalog=parts.catalog,
        upstream=parts.upstream,
        platform=parts.platform,
        sessions=parts.sessions,
        admin_tokens=parts.admin_tokens,
        poll_cache=parts.poll_cache,
        stream_guard=parts.stream_guard,
        metrics=parts.metrics,
        audit=parts.stores.audit,
        clock=parts.clock,
    )


def _operations(parts: Container) -> Application:
    """Build the application of the operators' listener, which neither answers pages of other origins nor calls fal."""
    routes = [*operators_routes(parts), livez_route()]
    return Application(routes=routes, middleware=_middleware(parts, is_public=False))


def _middleware(parts: Container, *, is_public: bool = True, traces: Traces | None = None) -> list[Middleware]:
    """List the middleware, outermost first.

    Each listener has budgets of its own, so that callers do not use up those of operators.
    """
    server, metrics, drain = parts.settings.server, parts.metrics, parts.drain
    memory = parts.body_memory if is_public else BodyMemory(server.max_body_memory)
    budget = RefusalBudget(server.refusals_per_address, parts.clock, parts.recognizer.recognize, metrics.unheard.inc)
    context = Middleware(RequestContext, metrics=metrics, drain=drain, body_memory=memory, budget=budget)
    origins = RefusedOrigins(metrics)
    errors = Middleware(Errors, metrics=metrics, drain=drain, budget=budget, origins=origins)
    is_file = uploads.carries_file if is_public else lambda path: False
    limit = Middleware(BodyLimit, max_bytes=server.max_body_bytes, is_file=is_file, body_memory=memory)
    if not is_public:
        return [context, errors, limit]
    metrics.body_bytes.set_function(lambda: memory.held)
    cors = Middleware(
        Cors,
        is_allowed=lambda origin: origin in server.allowed_origins or origin in parts.directory.latest.origins,
        list_allowed=lambda: server.allowed_origins | parts.directory.latest.origins,
        metrics=metrics,
        budget=budget,
        origins=origins,
    )
    cdn = Middleware(CdnTargets, files=parts.files, public_url=server.public_url)
    repeated = Middleware(RepeatedPolls, cache=parts.poll_cache, hub=parts.hub, limiter=parts.limiter)
    tracing = trace_calls(traces, parts.recognizer.recall)
    return [context, *tracing, cors, errors, cdn, limit, repeated]


async def _prepare(parts: Container, file: PlanFile) -> None:
    await parts.stores.prepare()
    # A reload may have applied a newer file meanwhile.
    if not parts.directory.is_open:
        await finish_interrupted(parts.stores.directory, parts.stores.removal)
        await parts.directory.apply(file, by=Author.of_process("server:start", parts.clock.now()))


async def _close(parts: Container, background: Background) -> None:
    """Close each part before those that it works with."""
    await parts.stream_guard.close()
    await parts.hub.close()
    await background.close()
    await parts.idempotency.close()
    await parts.quotas.close()
    await parts.directory.close()
    await parts.identity_tokens.close()
    if parts.openid is not None:
        await parts.openid.close()
    await parts.guest_proofs.close()
    await parts.leases.keeper.close()
    await parts.counters.close()
    await parts.upstream.close()
    await parts.stores.close()


def _lifespan(
    parts: Container, file: PlanFile, reloader: Reloader | None, traces: Traces | None, *, reconciles: bool
) -> Callable[[Starlette], AbstractAsyncContextManager[dict[str, Any]]]:
    startup, background = Startup(partial(_prepare, parts, file)), Background(parts)
    loop_lag = LoopLag(parts.metrics.loop_lag.of().observe)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        await startup.begin()
        parts.quotas.start()
        await parts.leases.keeper.start()
        if reconciles:
            background.start()
        parts.hub.start()
        parts.stream_guard.start()
        loop_lag.start()
        try:
            # This is how ASGI hands the server something.
            state = {"drain": parts.drain, "metrics": parts.metrics, "reload": reloader and reloader.request}
            # Every call has a span, where there are traces.
            yield state if traces else {**state, ANSWER_AGAIN: parts.instant_polls.answer}
        finally:
            # First: the rest may take longer than this process has.
            await parts.quotas.spool()
            await startup.close()
            if reloader is not None:
                await reloader.close()
            loop_lag.close()
            await _close(parts, background)
            if traces is not None:
                await traces.close()

    return lifespan

"""Every part of the program, made once and handed to the parts that use it."""

from __future__ import annotations

from proxy.auth.admin_token import AdminToken
from proxy.auth.authenticator import Authenticator
from proxy.auth.sessions import Sessions
from proxy.calls.admission import Admission
from proxy.calls.handler import handlers
from proxy.calls.idempotency import Idempotency
from proxy.calls.jobs import JobHandler
from proxy.calls.models import ModelHandler
from proxy.calls.poll_cache import PollCache
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.drain import Drain
from proxy.http.body_memory import BodyMemory
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.hub import Hub
from proxy.jobs.ownership import Ownership
from proxy.jobs.reconciler import Reconciler
from proxy.jobs.results import ResultCache
from proxy.jobs.settlement import Settlement
from proxy.jobs.watches import watches_per_tenant
from proxy.limits.leases import Leases
from proxy.limits.quotas import Bookkeeper
from proxy.limits.rates import RateLimiter, flood_guard
from proxy.limits.retries import RetryAllowance
from proxy.limits.stream_guard import StreamGuard
from proxy.limits.streams import OpenStreams
from proxy.routes.services import Services
from proxy.settings import Settings
from proxy.stores.base import Stores
from proxy.stores.batching import Patience
from proxy.stores.counters import MemoryCounters
from proxy.stores.counters.base import Counters
from proxy.stores.spool import Spool
from proxy.telemetry import Metrics
from proxy.tenants.directory import Directory
from proxy.upstream.client import Upstream
from proxy.upstream.file_urls import FileUrls


def assemble(
    settings: Settings,
    catalog: Catalog,
    metrics: Metrics,
    upstream: Upstream,
    stores: Stores,
    counters: Counters,
    clock: Clock,
    drain: Drain,
    patience: Patience | None,
) -> Services:
    """Make every part once, and give each what it works with."""
    directory = Directory(stores.directory, clock, is_open=False)
    minted = Sessions(settings.sessions.secrets, clock)
    fails_open = settings.stores.rate_limit_on_error == "open"
    limiter = RateLimiter(counters, clock, fails_open=fails_open, failed=metrics.uncounted.inc)
    leases = Leases(counters, stores.ledger, clock, fails_open=fails_open, failed=metrics.uncounted.inc)
    bookkeeper = Bookkeeper(stores.ledger, clock, patience, Spool(settings.stores.spool_folder))
    settlement = Settlement(bookkeeper, leases, catalog, clock)
    owners = Ownership(stores.ledger)
    files = FileUrls(settings.fal.cdn_url, settings.server.public_url)
    queue = FalQueue(upstream, settlement)
    hub = Hub(
        upstream,
        queue,
        settlement,
        clock,
        drain,
        most_per_tenant=lambda: watches_per_tenant(len(directory.latest.tenants)),
    )
    results, poll_cache = ResultCache(), PollCache(directory, limiter, clock)
    idempotency = Idempotency(stores.idempotency, stores.ledger, leases.is_idle, clock)
    streams = OpenStreams(
        settings.server.max_streams,
        settings.server.max_streams_per_session,
        lambda: settings.server.streams_per_tenant(len(directory.latest.tenants)),
    )
    breakers = upstream.guard.open_names
    metrics.gauge(lambda: len(hub), lambda: streams.total, lambda: len(breakers()), bookkeeper.waiting)
    admission = Admission(catalog, owners, limiter, leases, bookkeeper, drain, files)
    models = ModelHandler(
        admission=admission,
        upstream=upstream,
        queue=queue,
        settlement=settlement,
        bookkeeper=bookkeeper,
        owners=owners,
        idempotency=idempotency,
        limiter=limiter,
        streams=streams,
        clock=clock,
    )
    job_handler = JobHandler(
        admission=admission,
        upstream=upstream,
        queue=queue,
        settlement=settlement,
        hub=hub,
        results=results,
        streams=streams,
        poll_cache=poll_cache,
    )
    return Services(
        settings=settings,
        clock=clock,
        drain=drain,
        catalog=catalog,
        stores=stores,
        directory=directory,
        sessions=minted,
        admin_token=AdminToken(settings.sessions.admin_token),
        authenticator=Authenticator(minted, directory, settings, clock),
        admission=admission,
        handlers=handlers(models, job_handler),
        job_handler=job_handler,
        limiter=limiter,
        leases=leases,
        bookkeeper=bookkeeper,
        settlement=settlement,
        owners=owners,
        streams=streams,
        stream_guard=StreamGuard(directory, clock, metrics),
        hub=hub,
        poll_cache=poll_cache,
        counters=counters,
        reconciler=Reconciler(stores.ledger, upstream, queue, settlement, leases, clock, hub.is_watching),
        idempotency=idempotency,
        upstream=upstream,
        files=files,
        body_memory=BodyMemory(settings.server.max_body_memory),
        metrics=metrics,
        flood_guard=flood_guard(),
        retries=RetryAllowance(clock),
    )


def open_counters(settings: Settings) -> Counters:
    """Give the counters that the settings name."""
    if settings.stores.redis_url is None:
        return MemoryCounters()
    # Imported here: its client library takes memory that a proxy without Redis has better uses for.
    from proxy.stores.counters.redis import RedisCounters

    return RedisCounters(settings.stores.redis_url.reveal())

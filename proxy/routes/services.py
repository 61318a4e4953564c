"""What the routes work with, put together once by the composition root."""

from __future__ import annotations

from dataclasses import dataclass

from slowapi import Limiter

from proxy.auth.admin_token import AdminToken
from proxy.auth.callers import Authenticator
from proxy.auth.sessions import Sessions
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.drain import Drain
from proxy.files import FileUrls
from proxy.http.body_memory import BodyMemory
from proxy.jobs.hub import Hub
from proxy.jobs.owners import Owners
from proxy.jobs.reconcile import Reconciler
from proxy.jobs.results import Results
from proxy.jobs.settlement import Settlement
from proxy.policy.directory import Directory
from proxy.policy.gate import Gate
from proxy.policy.leases import Leases
from proxy.policy.quota import Bookkeeper
from proxy.policy.ratelimit import RateLimiter
from proxy.policy.retries import RetryAllowance
from proxy.policy.stream_guard import StreamGuard
from proxy.policy.streams import OpenStreams
from proxy.routes.once import Once
from proxy.routes.repeats import KnownPolls
from proxy.settings import Settings
from proxy.stores.base import Counters, Stores
from proxy.telemetry import Metrics
from proxy.upstream.client import Upstream


@dataclass(frozen=True)
class Services:
    settings: Settings
    clock: Clock
    drain: Drain
    catalog: Catalog
    stores: Stores
    directory: Directory
    sessions: Sessions
    admin_token: AdminToken
    authenticator: Authenticator
    gate: Gate
    limiter: RateLimiter
    leases: Leases
    bookkeeper: Bookkeeper
    counters: Counters
    reconciler: Reconciler
    once: Once
    settlement: Settlement
    owners: Owners
    hub: Hub
    streams: OpenStreams
    stream_guard: StreamGuard
    results: Results
    known_polls: KnownPolls
    upstream: Upstream
    files: FileUrls
    body_memory: BodyMemory
    metrics: Metrics
    retries: RetryAllowance
    flood_guard: Limiter

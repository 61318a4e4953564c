"""What the routes work with, put together once by the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slowapi import Limiter

from proxy.auth.admin_token import AdminToken
from proxy.auth.authenticator import Authenticator
from proxy.auth.sessions import Sessions
from proxy.calls.admission import Admission
from proxy.calls.handler import Handle
from proxy.calls.idempotency import Idempotency
from proxy.calls.jobs import JobHandler
from proxy.calls.poll_cache import PollCache
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.drain import Drain
from proxy.http.body_memory import BodyMemory
from proxy.jobs.hub import Hub
from proxy.jobs.ownership import Ownership
from proxy.jobs.reconciler import Reconciler
from proxy.jobs.settlement import Settlement
from proxy.limits.leases import Leases
from proxy.limits.quotas import Bookkeeper
from proxy.limits.rates import RateLimiter
from proxy.limits.retries import RetryAllowance
from proxy.limits.stream_guard import StreamGuard
from proxy.limits.streams import OpenStreams
from proxy.settings import Settings
from proxy.stores.base import Stores
from proxy.stores.counters.base import Counters
from proxy.targets import Kind
from proxy.telemetry import Metrics
from proxy.tenants.directory import Directory
from proxy.upstream.client import Upstream
from proxy.upstream.file_urls import FileUrls


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
    admission: Admission
    handlers: Mapping[Kind, Handle]
    job_handler: JobHandler
    limiter: RateLimiter
    leases: Leases
    bookkeeper: Bookkeeper
    counters: Counters
    reconciler: Reconciler
    idempotency: Idempotency
    settlement: Settlement
    owners: Ownership
    hub: Hub
    streams: OpenStreams
    stream_guard: StreamGuard
    poll_cache: PollCache
    upstream: Upstream
    files: FileUrls
    body_memory: BodyMemory
    metrics: Metrics
    retries: RetryAllowance
    flood_guard: Limiter

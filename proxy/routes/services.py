"""What the routes work with, put together once by the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slowapi import Limiter

from proxy.auth.admin_token import AdminToken
from proxy.auth.callers import Authenticator
from proxy.auth.sessions import Sessions
from proxy.calls.admission import Admission
from proxy.calls.handler import Handle
from proxy.calls.idempotency import Idempotency
from proxy.calls.jobs import JobHandler
from proxy.calls.poll_cache import PollCache
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.drain import Drain
from proxy.files import FileUrls
from proxy.http.body_memory import BodyMemory
from proxy.jobs.hub import Hub
from proxy.jobs.owners import Owners
from proxy.jobs.reconcile import Reconciler
from proxy.jobs.settlement import Settlement
from proxy.policy.directory import Directory
from proxy.policy.leases import Leases
from proxy.policy.quota import Bookkeeper
from proxy.policy.ratelimit import RateLimiter
from proxy.policy.retries import RetryAllowance
from proxy.policy.stream_guard import StreamGuard
from proxy.policy.streams import OpenStreams
from proxy.settings import Settings
from proxy.stores.base import Counters, Stores
from proxy.targets import Kind
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
    owners: Owners
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

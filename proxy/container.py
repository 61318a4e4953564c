"""Every part of the program, made once and handed to the parts that use it."""

from __future__ import annotations

from functools import cached_property

from slowapi import Limiter

from proxy.auth.admin_token import AdminToken
from proxy.auth.authenticator import Authenticator
from proxy.auth.sessions import Sessions
from proxy.calls.admission import Admission
from proxy.calls.handler import Handlers, new_handlers
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
from proxy.jobs.retention import Cleaner
from proxy.jobs.settlement import Settlement
from proxy.jobs.watches import watches_per_tenant
from proxy.limits.leases import Leases
from proxy.limits.quotas import Quotas
from proxy.limits.rates import RateLimiter, flood_guard
from proxy.limits.retries import RetryAllowance
from proxy.limits.stream_guard import StreamGuard
from proxy.limits.streams import OpenStreams
from proxy.settings import Settings
from proxy.stores.base import Stores
from proxy.stores.batching import LedgerTimeouts
from proxy.stores.counters.base import Counters
from proxy.stores.spool import Spool
from proxy.telemetry.metrics import Metrics
from proxy.tenants.directory import Directory
from proxy.uploads.destinations import Destinations
from proxy.uploads.new_files import NewFiles
from proxy.uploads.part_attempts import PartAttempts
from proxy.uploads.parts import Parts
from proxy.uploads.slots import Slots
from proxy.uploads.transfer import Transfers
from proxy.uploads.whole_files import WholeFiles
from proxy.upstream.client import Upstream
from proxy.upstream.file_urls import FileUrls


class Container:
    """The parts of one application. Each is made when it is first asked for, and once.

    Only the composition root knows this: a part is given the others that it works with.

    Args:
        ledger_timeouts: how long callers wait for the ledger; the default if None.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        metrics: Metrics,
        upstream: Upstream,
        stores: Stores,
        counters: Counters,
        clock: Clock,
        drain: Drain,
        ledger_timeouts: LedgerTimeouts | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.metrics = metrics
        self.upstream = upstream
        self.stores = stores
        self.counters = counters
        self.clock = clock
        self.drain = drain
        self.public_url = settings.server.public_url
        self._ledger_timeouts = ledger_timeouts
        self._fails_open = settings.stores.rate_limit_on_error == "open"

    # Who asks.

    @cached_property
    def directory(self) -> Directory:
        return Directory(self.stores.directory, self.clock, is_open=False)

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(self.settings.sessions.secrets, self.clock)

    @cached_property
    def authenticator(self) -> Authenticator:
        return Authenticator(self.sessions, self.directory, self.settings, self.clock)

    @cached_property
    def admin_token(self) -> AdminToken:
        return AdminToken(self.settings.sessions.admin_token)

    # How much they may ask.

    @cached_property
    def flood_guard(self) -> Limiter:
        return flood_guard()

    @cached_property
    def limiter(self) -> RateLimiter:
        failed = self.metrics.uncounted.inc
        return RateLimiter(self.counters, self.clock, fails_open=self._fails_open, failed=failed)

    @cached_property
    def leases(self) -> Leases:
        failed = self.metrics.uncounted.inc
        return Leases(self.counters, self.stores.ledger, self.clock, fails_open=self._fails_open, failed=failed)

    @cached_property
    def quotas(self) -> Quotas:
        spool = Spool(self.settings.stores.spool_folder)
        return Quotas(self.stores.ledger, self.clock, self._ledger_timeouts, spool)

    @cached_property
    def retries(self) -> RetryAllowance:
        return RetryAllowance(self.clock)

    @cached_property
    def streams(self) -> OpenStreams:
        server = self.settings.server
        return OpenStreams(
            server.max_streams,
            server.max_streams_per_session,
            lambda: server.streams_per_tenant(len(self.directory.latest.tenants)),
        )

    @cached_property
    def stream_guard(self) -> StreamGuard:
        return StreamGuard(self.directory, self.clock, self.metrics)

    @cached_property
    def body_memory(self) -> BodyMemory:
        return BodyMemory(self.settings.server.max_body_memory)

    # Jobs.

    @cached_property
    def owners(self) -> Ownership:
        return Ownership(self.stores.ledger)

    @cached_property
    def settlement(self) -> Settlement:
        return Settlement(self.quotas, self.leases, self.catalog, self.clock)

    @cached_property
    def queue(self) -> FalQueue:
        return FalQueue(self.upstream, self.settlement)

    @cached_property
    def hub(self) -> Hub:
        return Hub(
            self.upstream,
            self.queue,
            self.settlement,
            self.clock,
            self.drain,
            most_per_tenant=lambda: watches_per_tenant(len(self.directory.latest.tenants)),
        )

    @cached_property
    def reconciler(self) -> Reconciler:
        ledger, is_watching = self.stores.ledger, self.hub.is_watching
        return Reconciler(ledger, self.upstream, self.queue, self.settlement, self.leases, self.clock, is_watching)

    @cached_property
    def cleaner(self) -> Cleaner:
        seconds = self.settings.stores.retention_seconds
        return Cleaner(self.stores.retention, self.clock, seconds, self.metrics.rows_removed)

    # Calls.

    @cached_property
    def files(self) -> FileUrls:
        return FileUrls(self.settings.fal.cdn_url, self.public_url)

    @cached_property
    def admission(self) -> Admission:
        return Admission(
            self.catalog,
            self.owners,
            self.limiter,
            self.leases,
            self.quotas,
            self.drain,
            self.files,
            self.upstream.guard,
        )

    @cached_property
    def idempotency(self) -> Idempotency:
        return Idempotency(self.stores.idempotency, self.stores.ledger, self.leases.is_idle, self.clock)

    @cached_property
    def poll_cache(self) -> PollCache:
        return PollCache(self.directory, self.limiter, self.clock)

    @cached_property
    def model_handler(self) -> ModelHandler:
        return ModelHandler(
            admission=self.admission,
            upstream=self.upstream,
            queue=self.queue,
            settlement=self.settlement,
            quotas=self.quotas,
            owners=self.owners,
            idempotency=self.idempotency,
            limiter=self.limiter,
            streams=self.streams,
            clock=self.clock,
        )

    @cached_property
    def job_handler(self) -> JobHandler:
        return JobHandler(
            admission=self.admission,
            upstream=self.upstream,
            queue=self.queue,
            settlement=self.settlement,
            hub=self.hub,
            results=ResultCache(),
            streams=self.streams,
            poll_cache=self.poll_cache,
        )

    @cached_property
    def handlers(self) -> Handlers:
        return new_handlers(self.model_handler, self.job_handler)

    # Uploads.

    @cached_property
    def destinations(self) -> Destinations:
        return Destinations(self.upstream, self.files)

    @cached_property
    def slots(self) -> Slots:
        return Slots(self.stores.uploads, self.directory, self.clock)

    @cached_property
    def part_attempts(self) -> PartAttempts:
        return PartAttempts(self.stores.uploads, self.directory)

    @cached_property
    def transfers(self) -> Transfers:
        return Transfers(self.quotas, self.stores.ledger, self.retries, self.clock)

    @cached_property
    def parts(self) -> Parts:
        return Parts(self.upstream, self.stores.uploads, self.part_attempts, self.transfers)

    @cached_property
    def whole_files(self) -> WholeFiles:
        return WholeFiles(self.upstream, self.stores.uploads, self.part_attempts, self.transfers, self.retries)

    @cached_property
    def new_files(self) -> NewFiles:
        return NewFiles(self.upstream, self.destinations, self.transfers, self.authenticator, self.body_memory)

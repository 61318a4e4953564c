"""Every part of the program, made once and handed to the parts that use it."""

from __future__ import annotations

import ssl
from functools import cached_property

from slowapi import Limiter

from proxy.auth.admin_tokens import AdminTokens
from proxy.auth.authenticator import Authenticator
from proxy.auth.identity import IdentityTokens
from proxy.auth.issuer_keys import KeySources
from proxy.auth.key_fetcher import KeyFetcher
from proxy.auth.openid import OpenIdProvider
from proxy.auth.proofs import GuestProofs
from proxy.auth.recognition import Recognizer
from proxy.auth.sessions import Sessions
from proxy.calls.admission import Admission
from proxy.calls.handler import Handlers, new_handlers
from proxy.calls.idempotency import Idempotency
from proxy.calls.jobs import JobHandler
from proxy.calls.models import ModelHandler
from proxy.calls.poll_cache import InstantPolls, PollCache
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.drain import Drain
from proxy.http.body_memory import BodyMemory
from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.grace import GracePeriod
from proxy.jobs.hub import Hub
from proxy.jobs.ownership import Ownership
from proxy.jobs.results import ResultCache
from proxy.jobs.settlement import Settlement
from proxy.jobs.watches import watches_per_tenant
from proxy.limits.leases import Leases
from proxy.limits.quotas import Quotas
from proxy.limits.rates import RateLimiter, flood_guard
from proxy.limits.retries import RetryAllowance
from proxy.limits.stream_guard import StreamGuard
from proxy.limits.streams import OpenStreams
from proxy.pictures.cleaner import PictureCleaner
from proxy.pictures.data_uris import InputPictures
from proxy.settings import Settings
from proxy.stores.base import Stores
from proxy.stores.batching import LedgerTimeouts
from proxy.stores.counters import Counters
from proxy.stores.ledger_metrics import LedgerMetrics
from proxy.stores.spool import Spool
from proxy.telemetry.metrics import Metrics
from proxy.tenants.directory import Directory
from proxy.uploads.services import UploadServices
from proxy.uploads.sniffing import recognise
from proxy.upstream.client import Upstream
from proxy.upstream.file_urls import FileUrls
from proxy.upstream.platform import FalPlatform


class Container:
    """The parts of one application. Each is made once, when it is first asked for.

    Only the composition root knows the container; a part gets the others that it works with as arguments.

    Args:
        ledger_timeouts: how long callers wait for the ledger; the default if None.
        issuer_tls: what verifies the servers of issuers' keys, and receivers of webhooks; as for fal if None.
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
        issuer_tls: ssl.SSLContext | None = None,
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
        self.issuer_tls = issuer_tls
        self._fails_open = settings.stores.rate_limit_on_error == "open"
        self._failed = metrics.uncounted.inc

    # Who asks.

    @cached_property
    def directory(self) -> Directory:
        directory = Directory(self.stores.directory, self.clock, is_open=False)
        directory.listen(lambda snapshot: self.catalog.set_prices(snapshot.prices))
        return directory

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(self.settings.sessions.secrets, self.clock)

    @cached_property
    def authenticator(self) -> Authenticator:
        return Authenticator(
            self.sessions, self.identity_tokens, self.directory, self.stores.ledger, self.settings, self.clock
        )

    @cached_property
    def identity_tokens(self) -> IdentityTokens:
        fetcher = KeyFetcher(self.settings.sessions.issuer_networks, self.issuer_tls)
        return IdentityTokens(KeySources(fetcher.fetch, self.clock), self.clock)

    @cached_property
    def guest_proofs(self) -> GuestProofs:
        return GuestProofs(self.settings, self.sessions, self.counters, self.clock, self.issuer_tls)

    @cached_property
    def admin_tokens(self) -> AdminTokens:
        return AdminTokens(self.settings.sessions.admin_token, self.stores.admin_tokens, self.clock)

    @cached_property
    def recognizer(self) -> Recognizer:
        cookie, tokens = self.authenticator.cookie, self.admin_tokens
        return Recognizer(cookie, self.sessions, self.identity_tokens, tokens, self.directory, self.clock)

    @cached_property
    def openid(self) -> OpenIdProvider | None:
        """The provider with which operators sign in to the console; None if the settings name none."""
        if self.settings.oidc is None:
            return None
        address, networks = self.settings.server.console_address, self.settings.sessions.issuer_networks
        return OpenIdProvider(self.settings.oidc, address, networks, self.clock, self.issuer_tls)

    # How much they may ask.

    @cached_property
    def flood_guard(self) -> Limiter:
        return flood_guard(self.clock)

    @cached_property
    def limiter(self) -> RateLimiter:
        return RateLimiter(self.counters, self.clock, fails_open=self._fails_open, failed=self._failed)

    @cached_property
    def leases(self) -> Leases:
        return Leases(self.counters, self.stores.ledger, self.clock, fails_open=self._fails_open, failed=self._failed)

    @cached_property
    def quotas(self) -> Quotas:
        spool = Spool(self.settings.stores.spool_folder)
        metrics, list_granted = LedgerMetrics(self.metrics), lambda: self.directory.latest.granted
        ledger, grants, learned = self.stores.ledger, self.stores.grants, self.stores.learned
        return Quotas(ledger, self.clock, self._ledger_timeouts, spool, metrics, grants, list_granted, learned)

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
        return Ownership(self.stores.ledger, self.directory)

    @cached_property
    def grace(self) -> GracePeriod:
        return GracePeriod(self.authenticator, self.owners)

    @cached_property
    def settlement(self) -> Settlement:
        queued = self.metrics.queue_seconds.of("fal").observe
        return Settlement(self.quotas, self.leases, self.catalog, self.clock, queued)

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
    def platform(self) -> FalPlatform:
        return FalPlatform(self.settings.fal)

    # Calls.

    @cached_property
    def files(self) -> FileUrls:
        return FileUrls(self.settings.fal.cdn_url, self.public_url)

    @cached_property
    def admission(self) -> Admission:
        limits = self.limiter, self.leases, self.quotas
        guard, pictures = self.upstream.guard, InputPictures(self.picture_cleaner)
        return Admission(self.catalog, self.owners, *limits, self.drain, self.files, guard, pictures, self.directory)

    @cached_property
    def picture_cleaner(self) -> PictureCleaner:
        return PictureCleaner(self.settings.server.picture_processes, recognise)

    @cached_property
    def idempotency(self) -> Idempotency:
        return Idempotency(self.stores.idempotency, self.stores.ledger, self.leases.is_idle, self.clock)

    @cached_property
    def poll_cache(self) -> PollCache:
        return PollCache(self.directory, self.limiter, self.clock)

    @cached_property
    def instant_polls(self) -> InstantPolls:
        return InstantPolls(self.poll_cache, self.hub, self.limiter, self.metrics, self.drain)

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
    def uploads(self) -> UploadServices:
        return UploadServices(
            upstream=self.upstream,
            files=self.files,
            stores=self.stores,
            directory=self.directory,
            authenticator=self.authenticator,
            quotas=self.quotas,
            retries=self.retries,
            body_memory=self.body_memory,
            cleaner=self.picture_cleaner,
            clock=self.clock,
        )

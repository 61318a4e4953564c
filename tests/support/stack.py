"""A sandbox and a proxy in front of it, both real servers, with a tenant to call as."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from proxy.app import create_app
from proxy.auth.sessions import Sessions
from proxy.catalog import built_in
from proxy.sandbox.app import SANDBOX_ADMIN_KEY, SANDBOX_KEY
from proxy.server.factory import ProtocolFactory
from proxy.server.options import connection_limits
from proxy.settings import Settings, read
from proxy.stores.batching import LedgerTimeouts
from proxy.stores.counters import Counters
from proxy.stores.sql import SqlStores
from proxy.tenants import keys
from proxy.tenants.plans import Guests, Plan, PlanFile, Tenant, Uploads
from proxy.upstream.engine import Engine
from proxy.upstream.timeouts import Timeouts
from proxy.upstream.transport import EngineTransport
from tests.support.audit_log import AUTHOR
from tests.support.clock import MovableClock
from tests.support.databases import migrated_sqlite
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import free_port, running

#: Longer than any test run, so that only tests that mean to let a session expire do.
TTL_SECONDS = 30 * 86_400
#: The sandbox is reached on plain http, and loading the authorities of the system for each proxy takes its time.
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: The clock of the shared stack stands still, so no window would ever slide.
UNLIMITED: dict[str, Any] = {
    "rate_limits": {"ip": None, "session": None, "subject": None, "tenant": None},
    "poll_limits": {"session": None},
    "concurrency": {"subject": None, "tenant": None},
}


@dataclass
class Stack:
    """What a test needs to call the proxy as any caller.

    Attributes:
        url: the proxy's base URL.
        other_origin: an origin that tenants allow, on a port where a test may serve its own page.
    """

    url: str
    sandbox: SandboxControl
    clock: MovableClock
    settings: Settings
    other_origin: str
    ca_file: Path | None = None
    _keys: dict[str, str] = field(default_factory=dict, repr=False)

    def token(
        self,
        subject: str = "alice",
        *,
        tenant: str = "acme",
        endpoints: Sequence[str] | None = None,
        ttl_seconds: float = 3600,
    ) -> str:
        """A fresh session token."""
        sessions = Sessions(self.settings.sessions.secrets, self.clock)
        return sessions.mint(tenant, subject, ttl_seconds, endpoints=endpoints)[0]

    @property
    def cookie_name(self) -> str:
        return "fal_session" if self.settings.dev else "__Host-fal_session"

    def cookie(self, token: str | None = None) -> str:
        """The `cookie` header of a page with a session."""
        return f"{self.cookie_name}={token or self.token()}"

    def tenant_key(self, tenant: str = "acme") -> str:
        """The tenant's key; created at the first call."""
        if tenant not in self._keys:
            text, record = keys.make(tenant, "tests", self.clock.now())
            asyncio.run(self._add_key(record))
            self._keys[tenant] = text
            # The running proxy reads changes of others at this age at the latest.
            self.clock.advance(5)
        return self._keys[tenant]

    async def _add_key(self, record: keys.TenantKey) -> None:
        stores = SqlStores(self.settings.stores.database_url.reveal())
        try:
            await stores.directory.add_key(record, by=AUTHOR)
        finally:
            await stores.close()

    def client(self, token: str | None = None, **options: object) -> httpx.Client:
        """An HTTP client on the proxy, with a session unless `token` is ''."""
        credential = {} if token == "" else {"authorization": f"Bearer {token or self.token()}"}
        headers = {**credential, **options.pop("headers", {})}  # type: ignore[dict-item]
        # On plain http there is nothing to verify, and loading the authorities of the system takes its time.
        verify = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else False
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=verify, **options)  # type: ignore[arg-type]


def plan_file(other_origin: str, own_origin: str) -> PlanFile:
    """Two tenants that share a plan, one that may call a single endpoint, and one with large files."""
    every = frozenset(built_in().ids())
    origins = frozenset({other_origin, own_origin})
    guests = Guests(enabled=True, plan="narrow", per_address=None)
    return PlanFile(
        plans={
            "full": Plan(endpoints=every, session_ttl_seconds=TTL_SECONDS, **UNLIMITED),
            "large": Plan(
                endpoints=every, session_ttl_seconds=TTL_SECONDS, uploads=Uploads(max_bytes=2**28), **UNLIMITED
            ),
            "narrow": Plan(
                endpoints=frozenset({"fal-ai/llava-next"}),
                session_ttl_seconds=900,
                max_tokens=128,
                max_prompt_chars=500,
                **UNLIMITED,
            ),
        },
        tenants=(
            Tenant(id="acme", plan="full", allowed_origins=origins, guests=guests),
            Tenant(id="globex", plan="full", allowed_origins=frozenset({"https://app.globex.example"})),
            Tenant(id="small", plan="narrow"),
            Tenant(id="studio", plan="large"),
        ),
    )


def sandbox_environ(sandbox_url: str) -> dict[str, str]:
    urls = {f"FAL_{name}_URL": f"{sandbox_url}/{name.lower()}" for name in ("RUN", "QUEUE", "REST", "CDN", "API")}
    return {**urls, "FAL_KEY": SANDBOX_KEY, "FAL_USAGE_KEY": SANDBOX_ADMIN_KEY}


#: On a busy machine too, an answer that is there means that its call is booked.
PATIENT = LedgerTimeouts(reserve=45.0, accept=45.0, settle=45.0)


@contextlib.contextmanager
def proxy_in_front_of(
    sandbox: SandboxControl,
    folder: Path,
    *,
    environ: Mapping[str, str] | None = None,
    certificate: tuple[Path, Path] | None = None,
    ca_file: Path | None = None,
    dev: bool = False,
    clock: MovableClock | None = None,
    counters: Counters | None = None,
    transport: Engine | httpx.AsyncBaseTransport | None = None,
    timeouts: Timeouts | None = None,
    ledger_timeouts: LedgerTimeouts = PATIENT,
    issuer_tls: ssl.SSLContext | None = None,
    server: Mapping[str, Any] | None = None,
    reconciles: bool = False,
) -> Iterator[Stack]:
    """A proxy with a database of its own in `folder`, serving until the block ends.

    Plans and tenants are those of `PROXY_CONFIG` if the environment names one, else those of `plan_file`. `server` is
    more for uvicorn. `reconciles` lets it do its background work too, such as raising alerts.
    """
    database = folder / "proxy.db"
    if not database.exists() and "PROXY_DATABASE_URL" not in (environ or {}):
        # To migrate it would be most of the proxy's start.
        database.write_bytes(migrated_sqlite())
    port, other_origin = free_port(), f"http://localhost:{free_port()}"
    url = f"https://localhost:{port}" if certificate else f"http://127.0.0.1:{port}"
    settings = read(
        {
            **sandbox_environ(sandbox.url),
            "PROXY_SESSION_SECRETS": SECRET,
            "PROXY_DATABASE_URL": f"sqlite:///{database}",
            "PROXY_PUBLIC_URL": url,
            "PROXY_PORT": str(port),
            # All callers have one address here, and tests are refused a lot.
            "PROXY_REFUSALS_PER_ADDRESS": "0",
            # The clock stands still: a fal that fails in one test would be sent no calls of the next.
            "PROXY_UPSTREAM_PROBE_SECONDS": "0",
            **(environ or {}),
        },
        dev=dev,
    )
    clock = clock or MovableClock()
    plans = None if settings.config_path else plan_file(other_origin, url)
    app = create_app(
        settings,
        clock=clock,
        counters=counters,
        transport=transport or EngineTransport(ssl_context=_NO_AUTHORITIES, idle_seconds=settings.fal.idle_seconds),
        timeouts=timeouts,
        ledger_timeouts=ledger_timeouts,
        issuer_tls=issuer_tls,
        plan_file=plans,
        reconciles=reconciles,
    )
    # As production serves it, but for a machine so busy that a connection is used when it is just being closed.
    http = ProtocolFactory(replace(connection_limits(settings.server), keep_alive_seconds=300))
    with running(app, port=port, certificate=certificate, **{"http": http, **(server or {})}):
        yield Stack(url, sandbox, clock, settings, other_origin, ca_file)

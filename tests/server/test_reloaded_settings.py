"""A reload applies each setting that has changed, or warns that it needs a restart."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.app import new_reloader
from proxy.catalog import built_in
from proxy.container import Container
from proxy.drain import Drain
from proxy.reload import APPLIED, Reloader
from proxy.settings import VARIABLES, Settings, read
from proxy.stores.memory import MemoryCounters
from proxy.stores.sql import SqlStores
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import Upstream
from proxy.upstream.transport import EngineTransport
from tests.support.clock import MovableClock
from tests.support.databases import SqliteDatabases
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
WEBHOOK_SECRETS = tuple(f"whsec_{letter * 32}" for letter in "AB")
BASE = {
    "FAL_KEY": "an-id:a-secret",
    "FAL_USAGE_KEY": "an-id:another-secret",
    "PROXY_SESSION_SECRETS": "s" * 40,
    "PROXY_ADMIN_TOKEN": "a" * 40,
    "PROXY_PUBLIC_URL": "https://ai.example.com",
    "PROXY_REDIS_URL": "redis://redis.example",
    "PROXY_ALERTS_URL": "https://hooks.example/in",
    "PROXY_ALERTS_SECRET": WEBHOOK_SECRETS[0],
    "PROXY_CONSOLE_OIDC_ISSUER": "https://id.example.com",
    "PROXY_CONSOLE_OIDC_CLIENT_ID": "fal-proxy",
    "PROXY_CONSOLE_OIDC_CLIENT_SECRET": "c" * 40,
    "PROXY_CONSOLE_OIDC_ROLES": "groups:ops=admin",
}
HALVES = {"FAL_KEY": "", "FAL_KEY_ID": "another-id", "FAL_KEY_SECRET": "a-secret"}
URLS = ("FAL_RUN", "FAL_QUEUE", "FAL_REST", "FAL_CDN", "FAL_API", "PROXY_PUBLIC")
VERIFIERS = ("PROXY_TURNSTILE", "PROXY_HCAPTCHA", "PROXY_RECAPTCHA", "PROXY_APP_CHECK")
PORTS = ("PROXY_PORT", "PROXY_OPS_PORT")
DAYS = ("PROXY_RETENTION_DAYS", "PROXY_AUDIT_DAYS")
MOST = ("STREAMS", "STREAMS_PER_SESSION", "STREAMS_PER_TENANT", "CONNECTIONS", "CONNECTIONS_PER_ADDRESS")
SECONDS = ("UPSTREAM_IDLE", "UPSTREAM_PROBE", "CONNECT", "HEAD", "KEEP_ALIVE", "DRAIN")
COUNTS = (
    *("PROXY_WORKERS", "PROXY_PICTURE_PROCESSES", *PORTS, *DAYS),
    *(f"PROXY_MAX_{name}" for name in MOST),
    *(f"PROXY_{name}_SECONDS" for name in SECONDS),
)
#: Another value of each setting.
OTHER: dict[str, dict[str, str]] = {
    "FAL_KEY": {"FAL_KEY": "another-id:a-secret"},
    "FAL_KEY_ID": HALVES,
    "FAL_KEY_SECRET": HALVES,
    **{f"{name}_URL": {f"{name}_URL": "https://other.example"} for name in (*URLS, *VERIFIERS)},
    **{name: {name: "7"} for name in COUNTS},
    **{
        name: {name: text}
        for name, text in (
            ("FAL_USAGE_KEY", "another-id:a-secret"),
            ("PROXY_SESSION_SECRETS", "t" * 40),
            ("PROXY_ADMIN_TOKEN", "b" * 40),
            ("PROXY_HOST", "127.0.0.2"),
            ("PROXY_OPS_HOST", "127.0.0.2"),
            ("PROXY_ISSUER_NETWORKS", "10.0.0.0/8"),
            ("PROXY_DATABASE_URL", "sqlite:///other.db"),
            ("PROXY_MIGRATE", "on"),
            ("PROXY_SQLITE_SYNC", "full"),
            ("PROXY_REDIS_URL", "redis://other.example"),
            ("PROXY_RATE_LIMIT_ON_ERROR", "open"),
            ("PROXY_ALLOWED_ORIGINS", "https://app.example"),
            ("PROXY_TRUSTED_PROXIES", "10.0.0.1"),
            ("PROXY_MAX_BODY_BYTES", "2048"),
            ("PROXY_MAX_BODY_MEMORY", "100000000"),
            ("PROXY_REFUSALS_PER_ADDRESS", "7/minute"),
            ("PROXY_PLAYGROUND", "on"),
            ("PROXY_CONSOLE", "off"),
            ("PROXY_CONSOLE_URL", "https://ops.example.com"),
            ("PROXY_CONSOLE_OIDC_ISSUER", "https://other.example.com"),
            ("PROXY_CONSOLE_OIDC_CLIENT_ID", "other"),
            ("PROXY_CONSOLE_OIDC_CLIENT_SECRET", "d" * 40),
            ("PROXY_CONSOLE_OIDC_ROLES", "groups:ops=viewer"),
            ("PROXY_LOG_FORMAT", "text"),
            ("PROXY_LOG_LEVEL", "debug"),
            ("PROXY_ALERTS_URL", "https://hooks.example/other"),
            ("PROXY_ALERTS_SECRET", WEBHOOK_SECRETS[1]),
            ("PROXY_ALERTS_NETWORKS", "10.0.0.0/8"),
            ("PROXY_COMMIT", "0" * 40),
            ("PROXY_OTLP_ENDPOINT", "http://localhost:4318"),
        )
    },
}
#: Those that name something on the disk; the test makes it.
ON_DISK = {"PROXY_CONFIG", "PROXY_STATE_DIR"}


class Reloads:
    """A process that reads its settings again from an environment, which a test can change as no process can."""

    def __init__(self, environ: dict[str, str], database: str) -> None:
        self.environ = dict(environ)
        settings = read(self.environ)
        upstream = Upstream(settings.fal, EngineTransport())
        self.metrics = Metrics()
        self.parts = Container(
            settings=settings,
            catalog=built_in(),
            metrics=self.metrics,
            upstream=upstream,
            stores=SqlStores(database),
            counters=MemoryCounters(),
            clock=MovableClock(),
            drain=Drain(settings.server.drain_seconds),
        )
        self.reloader: Reloader = new_reloader(self.parts, self._read)

    def _read(self) -> Settings:
        return read(self.environ)

    async def warn_of(self, changed: dict[str, str], log: pytest.LogCaptureFixture) -> set[str]:
        """The settings that a reload warns of when these have changed."""
        log.clear()
        self.environ = {name: text for name, text in {**BASE, **changed}.items() if text}
        self.reloader.request()
        await wait_until_async(lambda: _messages(log, "configuration reloaded") or _problems(log), "it does not reload")
        assert not _problems(log), _problems(log)
        return {fields["setting"] for fields in _messages(log, "a changed setting needs a restart")}

    async def close(self) -> None:
        await self.reloader.close()
        await self.parts.directory.close()
        await self.parts.upstream.close()
        await self.parts.stores.close()


def _messages(log: pytest.LogCaptureFixture, message: str) -> list[dict[str, str]]:
    return [vars(record)["log_fields"] for record in log.records if record.getMessage() == message]


def _problems(log: pytest.LogCaptureFixture) -> list[str]:
    return [repr(vars(one).get("log_fields")) for one in log.records if one.levelno >= logging.ERROR]


@pytest.fixture
async def process(sqlite_databases: SqliteDatabases) -> AsyncIterator[Reloads]:
    reloads = Reloads(BASE, sqlite_databases.migrated())
    yield reloads
    await reloads.close()


def test_the_table_has_each_setting() -> None:
    assert {*OTHER, *ON_DISK} == {*VARIABLES}


async def test_each_setting_is_applied_or_warned_of(
    process: Reloads, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plans = tmp_path / "plans.yaml"
    plans.write_text("plans: {}\ntenants: []\n")
    on_disk = {"PROXY_CONFIG": {"PROXY_CONFIG": str(plans)}, "PROXY_STATE_DIR": {"PROXY_STATE_DIR": str(tmp_path)}}
    for name, changed in {**OTHER, **on_disk}.items():
        assert await process.warn_of({}, caplog) == set()
        warned = await process.warn_of(changed, caplog)
        assert warned == set(changed) - APPLIED, name
        (reloaded,) = _messages(caplog, "configuration reloaded")
        applied = "FAL_KEY" if name.startswith("FAL_KEY") else name
        assert (applied in reloaded["secrets"].split()) is (name in APPLIED), name


async def test_the_console_opens_and_closes_with_a_restart(
    sqlite_databases: SqliteDatabases, caplog: pytest.LogCaptureFixture
) -> None:
    """Its setting is unset, and depends on the admin token, which is applied."""
    caplog.set_level(logging.INFO)
    closed = {name: "" for name in BASE if name.startswith("PROXY_CONSOLE_")} | {"PROXY_ADMIN_TOKEN": ""}
    process = Reloads({name: text for name, text in {**BASE, **closed}.items() if text}, sqlite_databases.migrated())
    assert await process.warn_of(closed, caplog) == set()
    assert await process.warn_of({**closed, "PROXY_ADMIN_TOKEN": "a" * 40}, caplog) == {"PROXY_CONSOLE"}
    await process.close()

"""The settings themselves: one frozen dataclass a subject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

from proxy.origins import normalize_origin
from proxy.settings.oidc import OidcSettings
from proxy.settings.secret import Secret
from proxy.settings.values import is_wildcard

DAY_SECONDS = 86_400.0


def http_url(host: str, port: int) -> str:
    """Return the address of a listener, with an IPv6 host in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True)
class FalSettings:
    """fal's hosts, and the keys with which the proxy calls them."""

    key: Secret
    run_url: str
    queue_url: str
    rest_url: str
    cdn_url: str
    probe_seconds: int
    idle_seconds: int
    api_url: str = "https://api.fal.ai"
    #: Reads what the account used; None if nothing is compared with that.
    usage_key: Secret | None = None


@dataclass(frozen=True)
class ServerSettings:
    """The listeners, who may call them from where, and what their connections and bodies may take."""

    host: str
    port: int
    ops_host: str
    ops_port: int | None
    workers: int
    public_url: str
    allowed_origins: frozenset[str]
    trusted_proxies: tuple[str, ...]
    max_body_bytes: int
    max_body_memory: int
    max_streams: int
    max_streams_per_session: int
    max_streams_per_tenant: int | None
    max_connections: int
    max_connections_per_address: int | None
    refusals_per_address: str | None
    connect_seconds: int
    head_seconds: int
    keep_alive_seconds: int
    drain_seconds: int
    picture_processes: int
    playground: bool
    console: bool
    console_url: str | None = None

    def streams_per_tenant(self, tenants: int) -> int:
        """Return how many event streams a tenant may hold open in one process, if there are so many tenants."""
        if self.max_streams_per_tenant is not None:
            return self.max_streams_per_tenant
        return self.max_streams if tenants < 2 else max(1, self.max_streams // 2)

    @property
    def own_origin(self) -> str:
        """The origin of a page that this server itself serves."""
        return normalize_origin(self.public_url)

    @property
    def operators_url(self) -> str:
        """Where this machine reaches `/v1/admin` and `/console`."""
        if self.ops_port is None:
            return self.public_url
        return http_url("127.0.0.1" if is_wildcard(self.ops_host) else self.ops_host, self.ops_port)

    @property
    def console_address(self) -> str:
        """Where the browsers of operators reach the console, as far as the settings say it."""
        return self.console_url or self.public_url

    @property
    def is_console_https(self) -> bool:
        """Whether those browsers use https, whatever arrives here.

        The listener of operators has a host of its own, of which the public address says nothing.
        """
        is_known = self.console_url is not None or self.ops_port is None
        return is_known and self.console_address.startswith("https:")


@dataclass(frozen=True)
class SessionSettings:
    """What signs sessions, the admin token, and where the keys of identity tokens may be."""

    secrets: tuple[Secret, ...]
    admin_token: Secret | None
    #: Networks, beside the public ones, in which the key sets of issuers may be.
    issuer_networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifierSettings:
    """Where the proofs of guests are verified, by kind."""

    turnstile: str
    hcaptcha: str
    recaptcha: str
    #: The keys that verify tokens of Firebase App Check.
    app_check: str


@dataclass(frozen=True)
class StoreSettings:
    """The database and the counters, and how long rows are kept. Times are seconds."""

    database_url: Secret
    redis_url: Secret | None
    rate_limit_on_error: str = "refuse"
    sqlite_sync: str = "normal"
    state_dir: Path | None = None
    retention_seconds: float = 90 * DAY_SECONDS
    audit_seconds: float = 365 * DAY_SECONDS
    #: Whether a start upgrades the schema; None: that of a SQLite file only, which is this program's alone.
    migrates: bool | None = None

    @property
    def spool_folder(self) -> Path | None:
        """Where ledger entries wait that outlive a process; None if there is no place for files."""
        if self.state_dir is not None:
            return self.state_dir / "spool"
        return None if self.sqlite_path is None else Path(f"{self.sqlite_path}-spool")

    @property
    def sqlite_path(self) -> str | None:
        """The file of the database; None if it is no SQLite file."""
        url = self.database_url.reveal()
        return url.removeprefix("sqlite:///").partition("?")[0] if url.startswith("sqlite:") else None


@dataclass(frozen=True)
class AlertSettings:
    """Where the operator gets alerts; `url` is None for nowhere.

    Attributes:
        secrets: each signs every webhook, the newest first.
        networks: where receivers may be, beside public addresses.
    """

    url: str | None = None
    secrets: tuple[Secret, ...] = ()
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogSettings:
    """The form of log lines, and the least level that is written."""

    format: str
    level: str


@dataclass(frozen=True)
class TraceSettings:
    """Where spans go, `https://host[:port][/path]`; None for nowhere."""

    endpoint: str | None = None


@dataclass(frozen=True)
class Settings:
    """All settings. `warnings` are for the operator to read; they do not stop a start."""

    fal: FalSettings
    server: ServerSettings
    sessions: SessionSettings
    stores: StoreSettings
    log: LogSettings
    verifiers: VerifierSettings
    traces: TraceSettings = TraceSettings()
    alerts: AlertSettings = AlertSettings()
    #: With whom operators sign in to the console, beside admin tokens.
    oidc: OidcSettings | None = None
    config_path: Path | None = None
    commit: str | None = None
    dev: bool = False
    warnings: tuple[str, ...] = ()
    #: Variables that a plan file can name, with what they hold.
    named_secrets: Mapping[str, Secret] = field(default_factory=dict)
    #: What each variable says, or its default, to find what has changed since.
    texts: Mapping[str, Secret] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Every secret there is: what no log may show."""
        return tuple(secrets_in(self))


def secrets_in(value: object) -> Iterator[Secret]:
    """Return the secrets in settings, wherever they stand."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from secrets_in(item)
    elif is_dataclass(value):
        for one in fields(value):
            yield from secrets_in(getattr(value, one.name))

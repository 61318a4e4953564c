"""Reads the settings from the environment: each variable is looked at, and all problems are reported together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from proxy.settings.oidc import read_oidc
from proxy.settings.reader import EnvironmentReader, SettingsError
from proxy.settings.redis_url import parse_redis_url
from proxy.settings.secret import Secret
from proxy.settings.subjects import (
    DAY_SECONDS,
    AlertSettings,
    FalSettings,
    LogSettings,
    ServerSettings,
    SessionSettings,
    Settings,
    StoreSettings,
    TraceSettings,
    VerifierSettings,
    http_url,
)
from proxy.settings.values import (
    check_origin,
    existing_file,
    existing_folder,
    is_loopback,
    is_wildcard,
    parse_admin_token,
    parse_collector,
    parse_commit,
    parse_console_url,
    parse_database_url,
    parse_fal_url,
    parse_host,
    parse_network,
    parse_public_url,
    parse_rate,
    parse_session_secret,
    parse_webhook_secret,
    parse_webhook_url,
)
from proxy.settings.variables import VARIABLES, is_secret_of_tenant, unknown_variables


def read(environ: Mapping[str, str], *, dev: bool = False) -> Settings:
    """Read settings from the environment.

    Raises:
        SettingsError: with every problem there is, not only the first.
    """
    reader = EnvironmentReader(environ)
    settings = Settings(
        fal=_fal(reader),
        server=_server(reader),
        sessions=_sessions(reader),
        stores=_stores(reader),
        log=LogSettings(
            reader.one_of("PROXY_LOG_FORMAT", ("json", "text")),
            reader.one_of("PROXY_LOG_LEVEL", ("debug", "info", "warning", "error")),
        ),
        verifiers=VerifierSettings(
            *(
                reader.get_required(f"PROXY_{kind}_URL", parse_fal_url)
                for kind in ("TURNSTILE", "HCAPTCHA", "RECAPTCHA", "APP_CHECK")
            )
        ),
        alerts=_alerts(reader),
        oidc=read_oidc(reader),
        traces=TraceSettings(reader.take("PROXY_OTLP_ENDPOINT", parse_collector)),
        config_path=reader.take("PROXY_CONFIG", existing_file),
        commit=reader.take("PROXY_COMMIT", parse_commit),
        dev=dev,
        named_secrets={name: Secret(text.strip()) for name, text in environ.items() if is_secret_of_tenant(name)},
        texts={name: Secret(reader.value(name)) for name in VARIABLES},
    )
    reader.warnings += unknown_variables(environ)
    if settings.server.workers > 1 and settings.stores.redis_url is None:
        reader.complain("PROXY_WORKERS", "more than one needs PROXY_REDIS_URL, or each would count limits separately")
    if settings.server.max_body_memory < 4 * settings.server.max_body_bytes:
        reader.warn(
            "PROXY_MAX_BODY_MEMORY", "is less than four times PROXY_MAX_BODY_BYTES: the largest are never taken"
        )
    if settings.oidc is not None:
        _check_oidc(reader, settings.server)
    if reader.problems:
        raise SettingsError(reader.problems, reader.warnings)
    return replace(settings, warnings=tuple(reader.warnings))


def read_stores(environ: Mapping[str, str]) -> StoreSettings:
    """Read only where the data lies: for commands that work on the database and need no fal key.

    Raises:
        SettingsError: a URL is wrong.
    """
    reader = EnvironmentReader(environ)
    stores = _stores(reader)
    if reader.problems:
        raise SettingsError(reader.problems)
    return stores


def read_session_secrets(environ: Mapping[str, str]) -> SessionSettings:
    """Read only what sessions are signed with: for commands that mint them.

    Raises:
        SettingsError: there is no secret, or a short one.
    """
    reader = EnvironmentReader(environ)
    sessions = _sessions(reader)
    if reader.problems:
        raise SettingsError(reader.problems)
    return sessions


def read_operator(environ: Mapping[str, str]) -> tuple[str, Secret]:
    """Read only where a running proxy answers its operator, and the admin token: for commands that ask it.

    Raises:
        SettingsError: there is no token, or a value is wrong.
    """
    reader = EnvironmentReader(environ)
    server, token = _server(reader), reader.take("PROXY_ADMIN_TOKEN", parse_admin_token)
    if not reader.value("PROXY_ADMIN_TOKEN"):
        reader.complain("PROXY_ADMIN_TOKEN", "is not set; set it to that of the running proxy")
    if reader.problems or token is None:
        raise SettingsError(reader.problems)
    return server.operators_url, token


def _fal(reader: EnvironmentReader) -> FalSettings:
    return FalSettings(
        key=Secret(reader.fal_key()),
        run_url=reader.get_required("FAL_RUN_URL", parse_fal_url),
        queue_url=reader.get_required("FAL_QUEUE_URL", parse_fal_url),
        rest_url=reader.get_required("FAL_REST_URL", parse_fal_url),
        cdn_url=reader.get_required("FAL_CDN_URL", parse_fal_url),
        probe_seconds=reader.integer("PROXY_UPSTREAM_PROBE_SECONDS", 0, 15),
        idle_seconds=reader.integer("PROXY_UPSTREAM_IDLE_SECONDS", 1, 3600),
        api_url=reader.get_required("FAL_API_URL", parse_fal_url),
        usage_key=Secret(usage_key) if (usage_key := reader.usage_key()) else None,
    )


def _server(reader: EnvironmentReader) -> ServerSettings:
    host = reader.get_required("PROXY_HOST", parse_host)
    port = reader.integer("PROXY_PORT", 1, 65535)
    return ServerSettings(
        host=host,
        port=port,
        ops_host=reader.take("PROXY_OPS_HOST", parse_host) or host,
        ops_port=_ops_port(reader, port),
        workers=reader.integer("PROXY_WORKERS", 1, 256),
        public_url=_public_address(reader, host, port),
        allowed_origins=frozenset(reader.get_each("PROXY_ALLOWED_ORIGINS", check_origin)),
        trusted_proxies=tuple(reader.get_each("PROXY_TRUSTED_PROXIES", parse_network)),
        max_body_bytes=reader.integer("PROXY_MAX_BODY_BYTES", 1024, 1024**3),
        max_body_memory=reader.integer("PROXY_MAX_BODY_MEMORY", 1024, 1024**4),
        max_streams=reader.integer("PROXY_MAX_STREAMS", 1, 1_000_000),
        max_streams_per_session=reader.integer("PROXY_MAX_STREAMS_PER_SESSION", 1, 1_000_000),
        max_streams_per_tenant=reader.optional_integer("PROXY_MAX_STREAMS_PER_TENANT", 1, 1_000_000),
        max_connections=reader.integer("PROXY_MAX_CONNECTIONS", 1, 1_000_000),
        max_connections_per_address=reader.optional_integer("PROXY_MAX_CONNECTIONS_PER_ADDRESS", 1, 1_000_000),
        refusals_per_address=reader.take("PROXY_REFUSALS_PER_ADDRESS", parse_rate) or None,
        connect_seconds=reader.integer("PROXY_CONNECT_SECONDS", 1, 3600),
        head_seconds=reader.integer("PROXY_HEAD_SECONDS", 1, 3600),
        keep_alive_seconds=reader.integer("PROXY_KEEP_ALIVE_SECONDS", 1, 86_400),
        drain_seconds=reader.integer("PROXY_DRAIN_SECONDS", 0, 3600),
        picture_processes=reader.integer("PROXY_PICTURE_PROCESSES", 1, 64),
        playground=reader.one_of("PROXY_PLAYGROUND", ("on", "off")) == "on",
        console=_is_on(reader, "PROXY_CONSOLE", unset=_has_operators(reader)),
        console_url=_console_address(reader),
    )


def _console_address(reader: EnvironmentReader) -> str | None:
    console_url = reader.take("PROXY_CONSOLE_URL", parse_console_url)
    if console_url is not None and is_wildcard(host := urlsplit(console_url).hostname or ""):
        reader.warn("PROXY_CONSOLE_URL", f"nothing can be reached at {host}: set what operators' browsers see")
    return console_url


def _has_operators(reader: EnvironmentReader) -> bool:
    return any(map(reader.value, ("PROXY_ADMIN_TOKEN", "PROXY_CONSOLE_OIDC_ISSUER")))


def _is_on(reader: EnvironmentReader, name: str, *, unset: bool) -> bool:
    return reader.one_of(name, ("on", "off")) == "on" if reader.value(name) else unset


def _ops_port(reader: EnvironmentReader, port: int) -> int | None:
    ops_port = reader.optional_integer("PROXY_OPS_PORT", 1, 65535)
    if ops_port == port:
        reader.complain("PROXY_OPS_PORT", "is the same as PROXY_PORT; choose another one, or leave it out")
    if ops_port is None and reader.value("PROXY_OPS_HOST"):
        reader.warn("PROXY_OPS_HOST", "means nothing without PROXY_OPS_PORT")
    return ops_port


def _public_address(reader: EnvironmentReader, host: str, port: int) -> str:
    """Read the address that callers see; warn of one that cannot work, as only callers would notice."""
    public_url = reader.take("PROXY_PUBLIC_URL", parse_public_url)
    if public_url is None:
        if is_wildcard(host):
            reader.warn("PROXY_PUBLIC_URL", f"is not set, and nothing can be reached at {host}: set what callers see")
        return http_url(host, port)
    parts = urlsplit(public_url)
    public_host = parts.hostname or ""
    if is_wildcard(public_host):
        reader.warn("PROXY_PUBLIC_URL", f"nothing can be reached at {public_host}: set what callers see")
    elif parts.scheme == "http" and not is_loopback(public_host):
        reader.warn("PROXY_PUBLIC_URL", "is http, so browsers do not keep the session cookie; use https")
    return public_url


def _sessions(reader: EnvironmentReader) -> SessionSettings:
    secrets = reader.get_each("PROXY_SESSION_SECRETS", parse_session_secret)
    if not reader.value("PROXY_SESSION_SECRETS"):
        reader.complain("PROXY_SESSION_SECRETS", "is not set; make one with: openssl rand -base64 48")
    return SessionSettings(
        tuple(secrets),
        reader.take("PROXY_ADMIN_TOKEN", parse_admin_token),
        tuple(reader.get_each("PROXY_ISSUER_NETWORKS", parse_network)),
    )


def _stores(reader: EnvironmentReader) -> StoreSettings:
    return StoreSettings(
        Secret(reader.get_required("PROXY_DATABASE_URL", parse_database_url)),
        reader.take("PROXY_REDIS_URL", parse_redis_url),
        reader.one_of("PROXY_RATE_LIMIT_ON_ERROR", ("refuse", "open")),
        reader.one_of("PROXY_SQLITE_SYNC", ("normal", "full")),
        reader.take("PROXY_STATE_DIR", existing_folder),
        reader.integer("PROXY_RETENTION_DAYS", 1, 3650) * DAY_SECONDS,
        reader.integer("PROXY_AUDIT_DAYS", 1, 3650) * DAY_SECONDS,
        reader.one_of("PROXY_MIGRATE", ("on", "off")) == "on" if reader.value("PROXY_MIGRATE") else None,
    )


def _alerts(reader: EnvironmentReader) -> AlertSettings:
    settings = AlertSettings(
        reader.take("PROXY_ALERTS_URL", parse_webhook_url),
        tuple(reader.get_each("PROXY_ALERTS_SECRET", parse_webhook_secret)),
        tuple(reader.get_each("PROXY_ALERTS_NETWORKS", parse_network)),
    )
    has_secret = bool(reader.value("PROXY_ALERTS_SECRET"))
    if settings.url and not has_secret:
        reader.complain("PROXY_ALERTS_SECRET", "is not set; make one with: echo whsec_$(openssl rand -base64 32)")
    if has_secret and not reader.value("PROXY_ALERTS_URL"):
        reader.warn("PROXY_ALERTS_SECRET", "means nothing without PROXY_ALERTS_URL")
    if (settings.url or "").startswith("http:") and not settings.networks:
        reader.complain("PROXY_ALERTS_URL", "must be https, unless PROXY_ALERTS_NETWORKS names the network of its host")
    return settings


def _check_oidc(reader: EnvironmentReader, server: ServerSettings) -> None:
    """Check that the provider can send browsers back to the console: it must be on, and use https."""
    parts = urlsplit(server.console_address)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        name = "PROXY_CONSOLE_URL" if server.console_url else "PROXY_PUBLIC_URL"
        reader.complain(name, "must be https with PROXY_CONSOLE_OIDC_ISSUER: sign-ins come back to it")
    if not server.console:
        reader.warn("PROXY_CONSOLE_OIDC_ISSUER", "means nothing with PROXY_CONSOLE=off")
    elif server.ops_port is not None and server.console_url is None:
        reader.warn(
            "PROXY_CONSOLE_OIDC_ISSUER",
            f"sends browsers back to {server.public_url}/console: set PROXY_CONSOLE_URL to where operators reach "
            "PROXY_OPS_PORT, or pass that path on to it",
        )

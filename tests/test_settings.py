"""Settings: what is read, what is refused, and that every problem is named at once without showing a secret."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import pprint
from collections.abc import Callable, Mapping
from pathlib import Path

import certifi
import orjson
import pytest
from redis.asyncio import ConnectionPool

from proxy.settings import DEFAULTS, SECRETS, VARIABLES, Secret, Settings, SettingsError, read, unknown_variables
from proxy.settings.redis_url import KEYS
from tests.support.secrets import SECRET

KEY = "an-id-of-a-key:a-secret-of-a-key"
GOOD = {"FAL_KEY": KEY, "PROXY_SESSION_SECRETS": SECRET}


def problems(environ: Mapping[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(environ)
    return caught.value.problems


def names(environ: Mapping[str, str]) -> list[str]:
    """The variables that are complained about."""
    return [problem.partition(":")[0] for problem in problems(environ)]


def test_the_key_and_a_session_secret_are_enough() -> None:
    settings = read(GOOD)
    assert settings.fal.key.reveal() == KEY
    assert settings.fal.run_url == "https://fal.run" and settings.fal.queue_url == "https://queue.fal.run"
    assert (settings.server.host, settings.server.port, settings.server.workers) == ("127.0.0.1", 8787, 1)
    assert settings.server.public_url == settings.server.own_origin == "http://127.0.0.1:8787"
    assert settings.server.max_body_bytes == 12 * 1024 * 1024 and settings.server.drain_seconds == 25
    assert settings.stores.database_url.reveal() == "sqlite:///fal-proxy.db" and settings.stores.redis_url is None
    assert settings.sessions.admin_token is None and settings.config_path is None
    assert not settings.server.allowed_origins and not settings.server.trusted_proxies
    assert not settings.dev and not settings.warnings


def test_a_receiver_of_alerts_needs_a_secret_and_https() -> None:
    url, secret = {"PROXY_ALERTS_URL": "https://hooks.example.com/a"}, {"PROXY_ALERTS_SECRET": f"whsec_{'A' * 32}"}
    alerts = read({**GOOD, **url, **secret}).alerts
    assert (alerts.url, [one.reveal() for one in alerts.secrets]) == (*url.values(), [*secret.values()])
    assert problems({**GOOD, **url}) == [
        "PROXY_ALERTS_SECRET: is not set; make one with: echo whsec_$(openssl rand -base64 32)"
    ]
    assert read({**GOOD, **secret}).warnings == ("PROXY_ALERTS_SECRET: means nothing without PROXY_ALERTS_URL",)
    plain = {**GOOD, **secret, "PROXY_ALERTS_URL": "http://hooks.internal/a"}
    assert names(plain) == ["PROXY_ALERTS_URL"]
    assert read({**plain, "PROXY_ALERTS_NETWORKS": "10.0.0.0/8"}).alerts.networks == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("given", "alone", "of_several"),
    [
        ({}, 10_000, 5_000),
        ({"PROXY_MAX_STREAMS": "7"}, 7, 3),
        ({"PROXY_MAX_STREAMS": "1"}, 1, 1),
        ({"PROXY_MAX_STREAMS_PER_TENANT": "40"}, 40, 40),
    ],
)
def test_one_of_several_tenants_has_half_of_the_streams(given: dict[str, str], alone: int, of_several: int) -> None:
    server = read({**GOOD, **given}).server
    assert [server.streams_per_tenant(tenants) for tenants in (0, 1, 2, 9)] == [alone, alone, of_several, of_several]


@pytest.mark.parametrize(
    ("given", "is_on"),
    [
        ({}, False),
        ({"PROXY_ADMIN_TOKEN": SECRET}, True),
        ({"PROXY_ADMIN_TOKEN": SECRET, "PROXY_CONSOLE": "off"}, False),
        ({"PROXY_CONSOLE": "on"}, True),
    ],
)
def test_the_console_is_on_with_an_admin_token_unless_it_is_said(given: dict[str, str], is_on: bool) -> None:
    assert read({**GOOD, **given}).server.console is is_on


OIDC = {
    "PROXY_CONSOLE_OIDC_ISSUER": "https://id.example.com/realms/ops",
    "PROXY_CONSOLE_OIDC_CLIENT_ID": "fal-proxy",
    "PROXY_CONSOLE_OIDC_CLIENT_SECRET": "the-secret-of-the-client",
    "PROXY_CONSOLE_OIDC_ROLES": "groups:fal-admins=admin, https://acme.example/tier:urn:night=operator",
    "PROXY_PUBLIC_URL": "https://ai.example.com",
}


def test_a_provider_for_the_console_is_set_as_a_whole() -> None:
    settings = read({**GOOD, **OIDC})
    assert settings.oidc is not None and settings.server.console and not settings.warnings
    assert settings.oidc.client_secret in settings.secrets
    assert [tuple(rule) for rule in settings.oidc.roles] == [
        ("groups", "fal-admins", "admin"),
        ("https://acme.example/tier", "urn:night", "operator"),
    ]
    assert read(GOOD).oidc is None
    for name in OIDC.keys() - {"PROXY_PUBLIC_URL"}:
        (problem,) = problems({**GOOD, **OIDC, name: ""})
        assert problem.startswith(f"{name}: is not set")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROXY_CONSOLE_OIDC_ISSUER", "http://id.example.com"),
        ("PROXY_CONSOLE_OIDC_ISSUER", "https://id.example.com?x=1"),
        ("PROXY_CONSOLE_OIDC_ISSUER", "https://id.example.com#x"),
        ("PROXY_CONSOLE_OIDC_ISSUER", "https://user@id.example.com"),
        ("PROXY_CONSOLE_OIDC_ISSUER", "https://"),
        ("PROXY_CONSOLE_OIDC_ISSUER", "https://[::1"),
        ("PROXY_CONSOLE_OIDC_ISSUER", "https://id.example.com/" + "x" * 500),
        ("PROXY_CONSOLE_OIDC_CLIENT_ID", "é"),
        ("PROXY_CONSOLE_OIDC_CLIENT_SECRET", "x" * 501),
        ("PROXY_CONSOLE_OIDC_ROLES", "groups"),
        ("PROXY_CONSOLE_OIDC_ROLES", "groups:x=owner"),
        ("PROXY_CONSOLE_OIDC_ROLES", "groups=admin"),
        ("PROXY_CONSOLE_OIDC_ROLES", ":x=admin"),
        ("PROXY_PUBLIC_URL", "http://ai.example.com"),
    ],
)
def test_a_provider_that_is_not_safe_is_refused(name: str, value: str) -> None:
    assert names({**GOOD, **OIDC, name: value}) == [name]


def test_the_secret_of_the_provider_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-a-file\n")
    name = "PROXY_CONSOLE_OIDC_CLIENT_SECRET"
    settings = read({**GOOD, **OIDC, name: "", f"{name}_FILE": str(tmp_path / "secret")})
    assert settings.oidc is not None and settings.oidc.client_secret.reveal() == "from-a-file"
    assert "from-a-file" not in repr(settings)


def test_the_console_is_where_its_own_address_says_or_at_the_public_one() -> None:
    at_public = {**GOOD, "PROXY_PUBLIC_URL": "https://ai.example.com"}
    public = read(at_public).server
    assert public.console_address == "https://ai.example.com" and public.is_console_https
    # Of a port of its own, the public address says nothing.
    assert not read({**at_public, "PROXY_OPS_PORT": "9090"}).server.is_console_https
    own = read({**GOOD, **OIDC, "PROXY_OPS_PORT": "9090", "PROXY_CONSOLE_URL": "https://OPS.example.com:443/"})
    assert own.server.console_address == "https://ops.example.com" and own.server.is_console_https
    assert own.server.public_url == "https://ai.example.com" and not own.warnings
    assert not read({**at_public, "PROXY_CONSOLE_URL": "http://ops.internal:9090"}).server.is_console_https


@pytest.mark.parametrize(
    "url",
    [
        "ops.example.com",
        "ftp://ops.example.com",
        "https://",
        "https://ops.example.com/sub",
        "https://ops.example.com?x=1",
        "https://ops.example.com#x",
        "https://user@ops.example.com",
        "https://*.example.com",
        "https://ops.example.com:x",
        "https://[::1",
    ],
)
def test_an_address_of_the_console_that_is_none_is_refused(url: str) -> None:
    assert names({**GOOD, "PROXY_CONSOLE_URL": url}) == ["PROXY_CONSOLE_URL"]


def test_sign_ins_come_back_by_https_or_to_this_machine() -> None:
    assert names({**GOOD, **OIDC, "PROXY_CONSOLE_URL": "http://ops.example.com"}) == ["PROXY_CONSOLE_URL"]
    assert not read({**GOOD, **OIDC, "PROXY_CONSOLE_URL": "http://localhost:9090"}).warnings
    inside = {**GOOD, **OIDC, "PROXY_PUBLIC_URL": "http://ai.internal", "PROXY_CONSOLE_URL": "https://ops.example.com"}
    assert read(inside).server.console_address == "https://ops.example.com"


@pytest.mark.parametrize("given", [{"PROXY_CONSOLE": "off"}, {"PROXY_OPS_PORT": "9090"}])
def test_a_provider_that_leads_to_no_console_is_worth_a_warning(given: dict[str, str]) -> None:
    (warning,) = read({**GOOD, **OIDC, **given}).warnings
    assert warning.startswith("PROXY_CONSOLE_OIDC_ISSUER: ")


def test_an_empty_environment_names_what_is_missing() -> None:
    assert names({}) == ["FAL_KEY", "PROXY_SESSION_SECRETS"]


def test_all_problems_are_named_at_once() -> None:
    wrong = {
        "FAL_RUN_URL": "http://fal.run",
        "PROXY_PORT": "http",
        "PROXY_WORKERS": "4",
        "PROXY_PUBLIC_URL": "ai.example.com",
        "PROXY_CONFIG": "/there/is/no/such/file.yaml",
        "PROXY_SESSION_SECRETS": "short",
        "PROXY_ADMIN_TOKEN": "short",
        "PROXY_DATABASE_URL": "mysql://db/proxy",
        "PROXY_REDIS_URL": "http://redis",
        "PROXY_ALLOWED_ORIGINS": "https://app.example.com/path",
        "PROXY_TRUSTED_PROXIES": "the-balancer",
        "PROXY_MAX_BODY_BYTES": "1",
        "PROXY_MAX_STREAMS_PER_TENANT": "0",
        "PROXY_DRAIN_SECONDS": "-1",
        "PROXY_PLAYGROUND": "yes",
        "PROXY_CONSOLE": "maybe",
        "PROXY_LOG_FORMAT": "xml",
        "PROXY_LOG_LEVEL": "loud",
        "PROXY_COMMIT": "main",
    }
    assert sorted(names(wrong)) == sorted(["FAL_KEY", *wrong])


#: More than a file can be called.
LONG_NAME = "a" * 5000

WRONG: list[tuple[str, str]] = [
    ("FAL_KEY", "with a space:secret"),
    ("FAL_KEY", "id:sécret"),
    ("FAL_KEY", "id:se\x07cret"),
    ("FAL_KEY", '"id:secret"'),
    ("FAL_KEY", "'id:secret'"),
    ("FAL_KEY", "\u201cid:secret\u201d"),
    ("FAL_KEY", "id"),
    ("FAL_KEY", "id:"),
    ("FAL_KEY", ":secret"),
    ("FAL_USAGE_KEY", "with a space:secret"),
    ("FAL_USAGE_KEY", '"id:secret"'),
    ("FAL_USAGE_KEY", "id"),
    ("FAL_API_URL", "http://api.fal.ai"),
    *[(f"FAL_{host}_URL", "http://203.0.113.7/") for host in ("RUN", "QUEUE", "REST", "CDN")],
    ("FAL_RUN_URL", "http://localhost.example.com"),
    ("FAL_RUN_URL", "http://127.0.0.1.example.com"),
    ("FAL_RUN_URL", "ftp://localhost"),
    ("FAL_RUN_URL", "https://user@fal.run"),
    ("FAL_RUN_URL", "https://fal.run?x=1"),
    ("FAL_RUN_URL", "https://fal.run#x"),
    ("FAL_RUN_URL", "https://[::1"),
    ("FAL_RUN_URL", "fal.run"),
    *[(f"FAL_{host}_URL", "https://fal.run:70000") for host in ("RUN", "QUEUE", "REST", "CDN", "API")],
    *[("FAL_RUN_URL", f"https://fal.run:{port}") for port in ("port", "0", "-1", "4_43")],
    ("FAL_RUN_URL", "https://"),
    ("PROXY_HOST", "[::]"),
    ("PROXY_HOST", "*"),
    ("PROXY_HOST", "0.0.0.0:8787"),
    ("PROXY_HOST", "http://127.0.0.1"),
    ("PROXY_HOST", "local host"),
    ("PROXY_HOST", "256.0.0.1"),
    ("PROXY_HOST", "1.2.3.4.5"),
    ("PROXY_HOST", "proxy..example"),
    ("PROXY_HOST", f"{'a' * 64}.example"),
    ("PROXY_OPS_HOST", "[::1]"),
    ("PROXY_PORT", "0"),
    ("PROXY_PORT", "65536"),
    ("PROXY_PORT", "80.0"),
    ("PROXY_PORT", "９"),
    ("PROXY_PORT", "²"),
    ("PROXY_PORT", "8_080"),
    ("PROXY_PORT", "0000000000000070000"),
    ("PROXY_PORT", "0" * 5000 + "80"),
    ("PROXY_DATABASE_URL", "postgresql://db:000000070000/proxy"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?connect_timeout=" + "0" * 5000 + "1"),
    *[
        ("PROXY_ALERTS_URL", url)
        for url in ("acme.example", "ftp://a.example", "https://", "https://a:0", "https://a b")
    ],
    *[("PROXY_ALERTS_URL", url) for url in ("https://u:p@a.example", "https://a.example/#x", "https://\u00e4.example")],
    *[
        ("PROXY_ALERTS_SECRET", text)
        for text in ("secret", "whsec_", "whsec_short", f"whsec_{'A' * 31}", "whsec_" + "A" * 92)
    ],
    ("PROXY_ALERTS_SECRET", f"whsec_{'A' * 32},{'A' * 32}"),
    ("PROXY_ALERTS_NETWORKS", "10.0.0.0/33"),
    ("PROXY_COMMIT", "abcdef"),
    ("PROXY_COMMIT", "a" * 65),
    ("PROXY_OPS_PORT", "0"),
    ("PROXY_OPS_PORT", "65536"),
    ("PROXY_OPS_PORT", "8787"),
    ("PROXY_WORKERS", "0"),
    ("PROXY_PUBLIC_URL", "ftp://ai.example.com"),
    ("PROXY_PUBLIC_URL", "https://user@ai.example.com"),
    ("PROXY_PUBLIC_URL", "https://ai.example.com/?a=b"),
    ("PROXY_SESSION_SECRETS", "x" * 31),
    ("PROXY_SESSION_SECRETS", f"{SECRET},{'x' * 31}"),
    ("PROXY_ADMIN_TOKEN", "x" * 31),
    ("PROXY_DATABASE_URL", "sqlite://fal-proxy.db"),
    ("PROXY_DATABASE_URL", "sqlite:///"),
    ("PROXY_DATABASE_URL", "sqlite:///:memory:"),
    ("PROXY_DATABASE_URL", "sqlite:///."),
    ("PROXY_DATABASE_URL", "sqlite:////dev/null"),
    ("PROXY_DATABASE_URL", "postgresql+asyncpg://db/proxy"),
    ("PROXY_DATABASE_URL", "postgresql://db:port/proxy"),
    ("PROXY_DATABASE_URL", "postgresql://db-1:5432,db-2:port/proxy"),
    ("PROXY_DATABASE_URL", "postgresql://db:70000/proxy"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?sslmode=on"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?target_session_attrs=writer"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?connect_timeout=soon"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?connect_timeout=99999999999999999999"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?connection_limit=1"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy#primary"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?ssl_min_protocol_version=1.2"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?application_name=a%00b"),
    *[
        ("PROXY_DATABASE_URL", f"postgresql://db/proxy?sslmode=verify-full&{name}=/no/such/file.pem")
        for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl")
    ],
    ("PROXY_REDIS_URL", "localhost:6379"),
    ("PROXY_REDIS_URL", "redis://redis:65536"),
    ("PROXY_REDIS_URL", "redis://redis:port"),
    ("PROXY_REDIS_URL", "redis://redis:0"),
    *[("PROXY_REDIS_URL", f"redis://{host}") for host in ("redis..example", "a" * 64, "re dis")],
    *[("FAL_QUEUE_URL", f"https://{host}") for host in ("queue..fal.run", f"{'a' * 64}.example", "fal run")],
    ("PROXY_REDIS_URL", "redis://redis/cache"),
    ("PROXY_REDIS_URL", "redis://redis/0/1"),
    ("PROXY_REDIS_URL", "redis://redis?family=6"),
    ("PROXY_REDIS_URL", "redis://redis?ssl_cert_reqs=none"),
    ("PROXY_REDIS_URL", "rediss://redis?ssl_cert_reqs=sometimes"),
    ("PROXY_REDIS_URL", "rediss://redis?ssl_ca_certs=/no/such/file.pem"),
    ("PROXY_REDIS_URL", "redis://redis?socket_timeout=soon"),
    ("PROXY_REDIS_URL", "redis://redis?max_connections=0"),
    ("PROXY_REDIS_URL", "redis://redis?db="),
    ("PROXY_REDIS_URL", "redis://redis?db=1&db=2"),
    ("PROXY_REDIS_URL", "redis://:[word]@redis"),
    ("PROXY_SESSION_SECRETS", ","),
    ("PROXY_TRUSTED_PROXIES", " , "),
    ("PROXY_ALLOWED_ORIGINS", "*"),
    ("PROXY_ALLOWED_ORIGINS", "https://*.example.com"),
    ("PROXY_ALLOWED_ORIGINS", "https://app.example.com/"),
    ("PROXY_ALLOWED_ORIGINS", "app.example.com"),
    ("PROXY_ALLOWED_ORIGINS", "//app.example.com"),
    ("PROXY_ALLOWED_ORIGINS", "https://[v1.app.example]"),
    ("PROXY_ALLOWED_ORIGINS", "null"),
    ("PROXY_ALLOWED_ORIGINS", "https://app.example.com:port"),
    ("PROXY_ALLOWED_ORIGINS", "https://app.example.com:70000"),
    ("PROXY_ALLOWED_ORIGINS", "https://b\u00fcch\u00adr .example"),
    ("PROXY_ALLOWED_ORIGINS", "https://[::1"),
    ("PROXY_ALLOWED_ORIGINS", "https://app%2eexample.com"),
    *[("PROXY_ALLOWED_ORIGINS", f"{scheme}://app.example.com") for scheme in ("ws", "wss", "ftp")],
    ("PROXY_ALLOWED_ORIGINS", "https://[fe80::1%25eth0]"),
    ("PROXY_ALLOWED_ORIGINS", "https://${APP_HOST}"),
    ("PROXY_ALLOWED_ORIGINS", "https://{host}"),
    ("PROXY_ALLOWED_ORIGINS", "https://\U0001f4a9.example"),
    ("PROXY_PUBLIC_URL", "https://$HOST"),
    *[("PROXY_PUBLIC_URL", f"https://ai.example.com/{path}") for path in ("\u00fc", 'a"b', "<a>", "a;b", "{a}")],
    ("PROXY_CONFIG", "/"),
    ("PROXY_PUBLIC_URL", "https://ai.example.com:port"),
    ("PROXY_TRUSTED_PROXIES", "*"),
    ("PROXY_TRUSTED_PROXIES", "10.0.0.0/33"),
    ("PROXY_MAX_BODY_BYTES", "12MB"),
    ("PROXY_MAX_STREAMS_PER_TENANT", "0"),
    ("PROXY_MAX_STREAMS_PER_TENANT", "half"),
    ("PROXY_MAX_CONNECTIONS", "0"),
    ("PROXY_MAX_CONNECTIONS", "1000001"),
    ("PROXY_MAX_CONNECTIONS_PER_ADDRESS", "0"),
    ("PROXY_MAX_CONNECTIONS_PER_ADDRESS", "many"),
    ("PROXY_CONNECT_SECONDS", "0"),
    ("PROXY_REFUSALS_PER_ADDRESS", "600"),
    ("PROXY_REFUSALS_PER_ADDRESS", "0/minute"),
    ("PROXY_REFUSALS_PER_ADDRESS", "600/fortnight"),
    ("PROXY_HEAD_SECONDS", "3601"),
    ("PROXY_KEEP_ALIVE_SECONDS", "75s"),
    ("PROXY_UPSTREAM_IDLE_SECONDS", "0"),
    ("PROXY_UPSTREAM_IDLE_SECONDS", "3601"),
    ("PROXY_UPSTREAM_PROBE_SECONDS", "-1"),
    ("PROXY_UPSTREAM_PROBE_SECONDS", "16"),
    ("PROXY_DRAIN_SECONDS", "1e3"),
    ("PROXY_RETENTION_DAYS", "0"),
    ("PROXY_RETENTION_DAYS", "3651"),
    ("PROXY_RETENTION_DAYS", "1.5"),
    ("PROXY_AUDIT_DAYS", "0"),
    ("PROXY_AUDIT_DAYS", "3651"),
    ("PROXY_LOG_FORMAT", "yaml"),
    ("PROXY_LOG_LEVEL", "trace"),
    ("PROXY_CONFIG", "missing.yaml"),
    ("PROXY_STATE_DIR", "/there/is/no/such/folder"),
    ("PROXY_STATE_DIR", __file__),
    ("PROXY_CONFIG", LONG_NAME),
    ("PROXY_STATE_DIR", LONG_NAME),
    ("PROXY_REDIS_URL", f"rediss://redis?ssl_ca_certs={LONG_NAME}"),
    ("PROXY_DATABASE_URL", f"postgresql://db/proxy?sslmode=verify-full&sslrootcert={LONG_NAME}"),
    ("PROXY_MIGRATE", "yes"),
    ("PROXY_MIGRATE", "1"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: str) -> None:
    assert names({**GOOD, name: value}) == [name]


#: Addresses to listen on that no caller can ask.
WILDCARDS = ["0.0.0.0", "::", "0", "0.0", "0x0", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0"]

RIGHT: list[tuple[str, str]] = [
    *[("FAL_RUN_URL", f"http://{host}:8788/run") for host in ("127.0.0.1", "127.8.8.8", "[::1]", "localhost")],
    ("FAL_RUN_URL", "https://fal.internal.example:8443/run/"),
    ("PROXY_SESSION_SECRETS", f" {SECRET} , {SECRET}-older "),
    ("PROXY_ADMIN_TOKEN", "x" * 32),
    ("PROXY_DATABASE_URL", "postgresql://proxy:word@db.example/proxy"),
    ("PROXY_DATABASE_URL", "postgres://proxy:word@db.example/proxy?sslmode=require&channel_binding=require"),
    ("PROXY_DATABASE_URL", "postgresql://proxy:word@[::1]:5432/proxy?application_name=proxy&connect_timeout=10"),
    ("PROXY_DATABASE_URL", f"postgresql://db/proxy?sslmode=verify-full&sslrootcert={certifi.where()}"),
    ("PROXY_DATABASE_URL", "postgresql://db/proxy?sslmode=verify-full&sslrootcert=system"),
    ("PROXY_DATABASE_URL", "postgresql://db-1:5432,db-2:5432/proxy?target_session_attrs=read-write"),
    ("PROXY_REDIS_URL", "rediss://redis.example:6380/0"),
    ("PROXY_REDIS_URL", "redis://:p%2Fw@redis/"),
    ("PROXY_REDIS_URL", "rediss://redis?ssl_cert_reqs=none&ssl_check_hostname=False&db=3&socket_timeout=2.5"),
    ("PROXY_REDIS_URL", f"rediss://redis?ssl_ca_certs={__file__}&protocol=3&client_name=proxy"),
    ("PROXY_ALLOWED_ORIGINS", "https://App.example.com, http://localhost:5173"),
    ("PROXY_TRUSTED_PROXIES", "10.0.0.0/8, ::1, 192.0.2.7"),
    ("PROXY_PUBLIC_URL", "https://ai.example.com/"),
    ("PROXY_LOG_LEVEL", "DEBUG"),
    ("PROXY_RETENTION_DAYS", "1"),
    ("PROXY_RETENTION_DAYS", "3650"),
    ("PROXY_AUDIT_DAYS", "3650"),
    ("PROXY_PORT", ""),
    ("PROXY_HOST", "my_proxy-1.internal"),
    ("PROXY_HOST", "proxy.example."),
    ("PROXY_HOST", "127.1"),
    ("PROXY_HOST", "fe80::1%eth0"),
]


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_a_right_value_is_taken(name: str, value: str) -> None:
    assert not read({**GOOD, name: value}).warnings


def test_values_are_taken_as_they_are_meant() -> None:
    server = read({**GOOD, "PROXY_PUBLIC_URL": "https://ai.example.com/", **dict(RIGHT[6:8])}).server
    assert server.public_url == server.own_origin == "https://ai.example.com"
    assert read({**GOOD, "PROXY_HOST": "::1"}).server.public_url == "http://[::1]:8787"
    origins = read({**GOOD, "PROXY_ALLOWED_ORIGINS": "https://App.example.com, http://localhost:5173"}).server
    assert origins.allowed_origins == {"https://app.example.com", "http://localhost:5173"}
    ring = read({**GOOD, "PROXY_SESSION_SECRETS": f"{SECRET}-new, {SECRET}-old"}).sessions.secrets
    assert [one.reveal() for one in ring] == [f"{SECRET}-new", f"{SECRET}-old"]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("HTTPS://APP.example.com:08443", "https://app.example.com:8443"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("https://B\u00dcCHER.example:443", "https://xn--bcher-kva.example"),
        ("https://stra\u00dfe.example", "https://xn--strae-oqa.example"),
        ("https://\uff41pp.example", "https://app.example"),
        ("http://[0:0:0:0:0:0:0:1]:8080", "http://[::1]:8080"),
        ("http://127.1:5173", "http://127.0.0.1:5173"),
        ("http://[::ffff:192.0.2.7]", "http://[::ffff:c000:207]"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("tauri://localhost", "tauri://localhost"),
        ("http://tauri.localhost", "http://tauri.localhost"),
        ("chrome-extension://ABCDEF", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_brought_to_the_spelling_that_browsers_send(written: str, sent: str) -> None:
    server = read({**GOOD, "PROXY_ALLOWED_ORIGINS": written}).server
    assert server.allowed_origins == {sent}
    if sent.startswith("http"):
        assert read({**GOOD, "PROXY_PUBLIC_URL": f"{written}/ai/"}).server.own_origin == sent


def test_the_spool_is_beside_the_database_or_where_the_setting_says(tmp_path: Path) -> None:
    def folder(**more: str) -> Path | None:
        return read({**GOOD, **more}).stores.spool_folder

    assert folder() == Path("fal-proxy.db-spool")
    assert folder(PROXY_DATABASE_URL="sqlite:////data/a.db?timeout=5") == Path("/data/a.db-spool")
    assert folder(PROXY_DATABASE_URL="postgresql://db/proxy") is None
    assert folder(PROXY_DATABASE_URL="postgresql://db/proxy", PROXY_STATE_DIR=str(tmp_path)) == tmp_path / "spool"
    assert folder(PROXY_STATE_DIR=str(tmp_path)) == tmp_path / "spool"


def test_a_start_migrates_if_that_is_set_and_else_as_the_database_is() -> None:
    migrates = {value: read({**GOOD, "PROXY_MIGRATE": value}).stores.migrates for value in ("on", "ON", "off", "")}
    assert migrates == {"on": True, "ON": True, "off": False, "": None}


def test_the_public_url_keeps_its_path_and_loses_the_default_port() -> None:
    server = read({**GOOD, "PROXY_PUBLIC_URL": "https://B\u00fccher.example:443/ai/"}).server
    assert server.public_url == "https://xn--bcher-kva.example/ai"


@pytest.mark.parametrize("origin", ["null", "NULL", "file://", "file:///android_asset", "FILE://localhost"])
def test_the_origin_of_pages_from_files_is_refused_with_what_to_do(origin: str) -> None:
    with pytest.raises(SettingsError, match="serve the page from an address of its own"):
        read({**GOOD, "PROXY_ALLOWED_ORIGINS": origin})


def test_no_refusal_of_a_redis_url_shows_a_part_of_a_password() -> None:
    for special in "/?#":
        url = f"redis://:12{special}pass-word@redis"
        with pytest.raises(SettingsError) as caught:
            read({**GOOD, "PROXY_REDIS_URL": url})
        assert "pass-word" not in str(caught.value)
    for url in ("redis://u:[pass-word]@redis", "redis://:x/pass-word@redis", "redis://:x?pass-word@redis"):
        with pytest.raises(SettingsError) as caught:
            read({**GOOD, "PROXY_REDIS_URL": url})
        assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("host", WILDCARDS)
def test_a_wildcard_host_without_a_public_url_is_a_warning(host: str) -> None:
    (warning,) = read({**GOOD, "PROXY_HOST": host}).warnings
    assert warning.startswith("PROXY_PUBLIC_URL: is not set")
    assert not read({**GOOD, "PROXY_HOST": host, "PROXY_PUBLIC_URL": "https://ai.example.com"}).warnings


@pytest.mark.parametrize("host", WILDCARDS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_wildcard_as_the_public_url_is_a_warning(host: str, scheme: str) -> None:
    url = f"{scheme}://[{host}]:8787" if ":" in host else f"{scheme}://{host}:8787/ai"
    (warning,) = read({**GOOD, "PROXY_PUBLIC_URL": url}).warnings
    assert warning.startswith("PROXY_PUBLIC_URL: nothing can be reached at ")
    (warning,) = read({**GOOD, "PROXY_CONSOLE_URL": url.removesuffix("/ai")}).warnings
    assert warning.startswith("PROXY_CONSOLE_URL: nothing can be reached at ")


@pytest.mark.parametrize("name", sorted(VARIABLES))
@pytest.mark.parametrize("quotes", ['""', "''", "\u201c\u201d"])
def test_quotes_around_a_value_are_named(name: str, quotes: str, tmp_path: Path) -> None:
    """As `docker --env-file` keeps them."""
    given = f"{quotes[0]}a canary{quotes[1]}"
    quoted = f"{name}: contains quotes; remove them (docker's --env-file keeps them)"
    found = problems({**{one: text for one, text in GOOD.items() if not name.startswith(one)}, name: given})
    assert found.count(quoted) == 1
    if name in SECRETS:
        (tmp_path / "secret").write_text(f"{given}\n")
        others = {one: text for one, text in GOOD.items() if one != name}
        assert quoted in problems({**others, f"{name}_FILE": str(tmp_path / "secret")})
        assert not any("canary" in problem for problem in found)


@pytest.mark.parametrize("name", sorted(VARIABLES))
@pytest.mark.parametrize("line", ["{}=", "export {}=", "{} = "])
def test_a_value_that_begins_with_its_own_name_is_named(name: str, line: str, tmp_path: Path) -> None:
    """As in a file that a shell reads."""
    given, said = line.format(name) + "a canary", f"{name}: begins with {name}=; give only what is behind it"
    others = {one: text for one, text in GOOD.items() if not name.startswith(one)}
    found = problems({**others, name: given})
    assert found.count(said) == 1
    if name in SECRETS:
        (tmp_path / "secret").write_text(f"{given}\n")
        assert said in problems({**others, f"{name}_FILE": str(tmp_path / "secret")})
        assert not any("canary" in problem for problem in found)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        *[
            (key, "contains characters that no fal key has")
            for key in ("${FAL_KEY:-x}", "$ID:$SECRET", "<id>:<secret>")
        ],
        *[(key, "contains characters that no fal key has") for key in ("id:secret\\n", "id:secret,", "Key id:secret")],
        *[(key, "is not id:secret") for key in ("https://fal.run", "id", ":secret", "id:")],
        ('id:sec"ret', "contains quotes"),
    ],
)
def test_what_cannot_be_a_fal_key_is_named(value: str, problem: str) -> None:
    for name in ("FAL_KEY", "FAL_USAGE_KEY"):
        (found,) = problems({**GOOD, name: value})
        assert found.startswith(f"{name}: {problem}") and "id:" not in found.replace("id:secret, the form", "")


@pytest.mark.parametrize("more", [" ", ",", "\n", "\t", "\0", "\x7f", "\ufeff", "\u00e4"])
def test_an_admin_token_that_no_header_can_carry_is_named(more: str) -> None:
    (problem,) = problems({**GOOD, "PROXY_ADMIN_TOKEN": "a" * 20 + more + "b" * 20})
    assert problem.startswith("PROXY_ADMIN_TOKEN: contains a space, a comma or a character") and "aaa" not in problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (f"{SECRET}\n{SECRET}", "a secret contains a line break"),
        (f"{SECRET}\0", "a secret contains a line break or another control character"),
        (f'{SECRET},"{SECRET}"', "contains quotes"),
        (f"'{SECRET}',{SECRET}", "contains quotes"),
        (f'["{SECRET}"]', "is a list in JSON"),
    ],
)
def test_session_secrets_that_are_written_otherwise_are_named(value: str, problem: str) -> None:
    (found,) = problems({**GOOD, "PROXY_SESSION_SECRETS": value})
    assert found.startswith(f"PROXY_SESSION_SECRETS: {problem}") and SECRET not in found
    assert len(read({**GOOD, "PROXY_SESSION_SECRETS": f"{SECRET},\n{SECRET[::-1]}"}).sessions.secrets) == 2


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbf" + SECRET.encode() + b"\r\n")
    token = read({**GOOD, "PROXY_ADMIN_TOKEN_FILE": str(tmp_path / "token")}).sessions.admin_token
    assert token is not None and token.reveal() == SECRET


def test_a_file_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(SECRET.encode("utf-16"))
    (problem,) = problems({**GOOD, "PROXY_ADMIN_TOKEN_FILE": str(tmp_path / "token")})
    assert problem == "PROXY_ADMIN_TOKEN_FILE: names a file that is not text in UTF-8; save it as UTF-8"


def test_a_public_url_over_which_browsers_keep_no_cookie_is_a_warning() -> None:
    (warning,) = read({**GOOD, "PROXY_PUBLIC_URL": "http://ai.example.com"}).warnings
    assert warning.startswith("PROXY_PUBLIC_URL: is http")
    assert not read({**GOOD, "PROXY_PUBLIC_URL": "http://localhost:8787"}).warnings


def test_less_memory_for_bodies_than_one_address_needs_for_the_largest_is_a_warning() -> None:
    (warning,) = read({**GOOD, "PROXY_MAX_BODY_BYTES": str(100 * 2**20)}).warnings
    assert warning.startswith("PROXY_MAX_BODY_MEMORY: is less than four times")
    assert not read({**GOOD, "PROXY_MAX_BODY_BYTES": str(64 * 2**20)}).warnings


def test_warnings_are_named_beside_problems() -> None:
    with pytest.raises(SettingsError) as caught:
        read({"PROXY_HOST": "0.0.0.0", "FAL_KEY": KEY})
    assert [one.partition(":")[0] for one in caught.value.warnings] == ["PROXY_PUBLIC_URL"]


def test_the_key_in_two_halves() -> None:
    halves = {"FAL_KEY_ID": "the-id", "FAL_KEY_SECRET": "the-secret", "PROXY_SESSION_SECRETS": SECRET}
    assert read(halves).fal.key.reveal() == "the-id:the-secret"
    assert names({**halves, "FAL_KEY_SECRET": ""}) == ["FAL_KEY"]
    assert names({**halves, "FAL_KEY": KEY}) == ["FAL_KEY"]


@pytest.mark.parametrize("workers", ["2", "8"])
def test_more_than_one_worker_needs_redis(workers: str) -> None:
    (problem,) = problems({**GOOD, "PROXY_WORKERS": workers})
    assert problem.startswith("PROXY_WORKERS: ") and "PROXY_REDIS_URL" in problem
    assert read({**GOOD, "PROXY_WORKERS": workers, "PROXY_REDIS_URL": "redis://redis"}).server.workers == int(workers)


#: A good value of each secret, and how to find it again.
SECRET_VALUES = {
    "FAL_KEY": KEY,
    "FAL_USAGE_KEY": "admin-id:admin-secret",
    "PROXY_SESSION_SECRETS": SECRET,
    "PROXY_ADMIN_TOKEN": "an-admin-token-of-more-than-32-bytes",
    "PROXY_DATABASE_URL": "postgresql://proxy:a-password-of-the-database@db/proxy",
    "PROXY_REDIS_URL": "redis://:a-password-of-redis@redis",
}


def found_in(settings: Settings, name: str) -> str:
    places = {
        "FAL_KEY": settings.fal.key,
        "FAL_USAGE_KEY": settings.fal.usage_key,
        "PROXY_SESSION_SECRETS": settings.sessions.secrets[0],
        "PROXY_ADMIN_TOKEN": settings.sessions.admin_token,
        "PROXY_DATABASE_URL": settings.stores.database_url,
        "PROXY_REDIS_URL": settings.stores.redis_url,
    }
    place = places[name]
    assert place is not None
    return place.reveal()


@pytest.mark.parametrize("name", SECRET_VALUES)
def test_a_secret_can_come_from_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET_VALUES[name]}\n")
    environ = {variable: value for variable, value in GOOD.items() if variable != name}
    settings = read({**environ, f"{name}_FILE": str(path)})
    assert found_in(settings, name) == SECRET_VALUES[name]
    assert not settings.warnings


def test_the_halves_of_the_key_can_come_from_files(tmp_path: Path) -> None:
    environ = {"PROXY_SESSION_SECRETS": SECRET}
    for name, value in (("FAL_KEY_ID", "the-id"), ("FAL_KEY_SECRET", "the-secret")):
        (tmp_path / name).write_text(value)
        environ[f"{name}_FILE"] = str(tmp_path / name)
    assert read(environ).fal.key.reveal() == "the-id:the-secret"


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_given_twice_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("of-the-file-that-is-more-than-32-bytes-long")
    value = SECRET_VALUES.get(name, "half-a-key")
    assert f"{name}: is set twice, also as {name}_FILE; keep one" in problems(
        {**GOOD, name: value, f"{name}_FILE": str(path)}
    )


def test_a_secret_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    found = problems({"FAL_KEY": KEY, "PROXY_SESSION_SECRETS_FILE": str(tmp_path)})
    assert [one for one in found if "_FILE" in one] == [
        "PROXY_SESSION_SECRETS_FILE: cannot be read (IsADirectoryError)"
    ]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/dev/zero", "names a file of more than 65536 bytes"),
        (LONG_NAME, "cannot be read (OSError)"),
        ("a\0b", "cannot be read (ValueError)"),
    ],
    ids=["endless", "long", "NUL"],
)
def test_a_secret_file_that_no_secret_can_be_in_is_a_problem(path: str, problem: str) -> None:
    assert f"FAL_KEY_FILE: {problem}" in problems({"PROXY_SESSION_SECRETS": SECRET, "FAL_KEY_FILE": path})


def test_what_is_no_secret_has_no_file_form() -> None:
    (warning,) = read({**GOOD, "PROXY_PORT_FILE": "/etc/port"}).warnings
    assert warning == "PROXY_PORT_FILE: is not a setting; did you mean PROXY_PORT?"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PROXY_SESSION_SECRET", "PROXY_SESSION_SECRETS"),
        ("PROXY_ALLOW_ORIGINS", "PROXY_ALLOWED_ORIGINS"),
        ("PROXY_DATABSE_URL", "PROXY_DATABASE_URL"),
        ("PROXY_SERVICE_PORT_8787_TCP_ADDR", None),
    ],
)
def test_an_unknown_variable_is_a_warning_with_the_nearest_name(name: str, meant: str | None) -> None:
    settings = read({**GOOD, name: "x"})
    assert settings.warnings == (f"{name}: is not a setting" + (f"; did you mean {meant}?" if meant else ""),)


def test_only_the_names_of_unknown_variables_are_printed() -> None:
    assert "hidden" not in "".join(unknown_variables({"PROXY_PASSWORD": "hidden", "OTHER": "x"}))


@pytest.mark.parametrize("name", SECRET_VALUES)
def test_no_secret_shows_itself(name: str) -> None:
    settings = read({**GOOD, name: SECRET_VALUES[name]})
    for shown in (repr(settings), str(settings), str(settings.fal.key), f"{settings.stores.database_url}"):
        assert SECRET_VALUES[name] not in shown
        assert SECRET_VALUES[name].rpartition(":")[2] not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FAL_KEY", "canary with spaces:canary"),
        ("PROXY_SESSION_SECRETS", "canary"),
        ("PROXY_ADMIN_TOKEN", "canary"),
        ("PROXY_DATABASE_URL", "mysql://proxy:canary@db"),
        ("PROXY_DATABASE_URL", "postgresql://proxy:canary/canary@db/proxy"),
        ("PROXY_REDIS_URL", "http://:canary@redis"),
        ("PROXY_REDIS_URL", "redis://:canary/canary@redis"),
        ("PROXY_REDIS_URL", "redis://:6379?canary@redis"),
        ("PROXY_REDIS_URL", "redis://redis?canary=canary"),
        ("PROXY_REDIS_URL", "redis://redis?db=canary"),
    ],
)
def test_a_secret_that_is_refused_is_not_quoted(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read({**GOOD, name: value})
    assert name in str(caught.value) and "canary" not in str(caught.value)


@pytest.mark.parametrize("key", [*KEYS])
def test_the_client_of_redis_takes_what_may_be_in_its_url(key: str) -> None:
    values = (__file__, "3", "true", "none", "proxy")
    url = next(f"rediss://redis?{key}={value}" for value in values if KEYS[key].fullmatch(value))
    read({**GOOD, "PROXY_REDIS_URL": url})
    ConnectionPool.from_url(url).make_connection()


def test_every_default_and_every_secret_is_a_variable() -> None:
    assert set(DEFAULTS) <= set(VARIABLES) and set(VARIABLES) >= SECRETS


OPENS = {
    "PROXY_ADMIN_TOKEN": "an-admin-token-of-the-tests-with-32-bytes",
    "PROXY_DATABASE_URL": "postgresql://proxy:a-password-of-the-database@db/proxy",
    "PROXY_REDIS_URL": "redis://:a-password-of-redis@cache",
}
SHOWN: dict[str, Callable[[Settings], object]] = {
    "repr": repr,
    "str": str,
    "format": lambda settings: f"{settings} {settings.fal.key} {settings.fal.key!r}",
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "vars": lambda settings: [vars(part) for part in (settings, settings.fal, settings.sessions, settings.stores)],
    "copies": lambda settings: (copy.copy(settings), copy.deepcopy(settings), copy.deepcopy(settings.fal.key)),
    "replaced": lambda settings: dataclasses.replace(settings, dev=True),
    "JSON": lambda settings: json.dumps(dataclasses.asdict(settings), default=repr),
    "a fast JSON": lambda settings: orjson.dumps(settings, default=str),
    "a pretty print": lambda settings: pprint.pformat(settings),
    "all secrets": lambda settings: settings.secrets,
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_nothing_shows_a_secret(show: Callable[[Settings], object]) -> None:
    settings = read({**GOOD, **OPENS})
    said = repr(show(settings))
    assert not [part for part in (*GOOD.values(), *OPENS.values(), "a-password") if part in said]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    settings = read(GOOD)
    for one in (settings, settings.fal, settings.fal.key):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(one, protocol)
    with pytest.raises(TypeError, match="cannot be pickled"):
        settings.fal.key.__getstate__()


def test_a_secret_is_a_value_that_does_not_change() -> None:
    one = Secret("one")
    assert (one, hash(one), bool(one), bool(Secret(""))) == (Secret("one"), hash(Secret("one")), True, False)
    assert one != Secret("other") and one != "one" and copy.deepcopy(one).reveal() == "one"
    with pytest.raises(AttributeError, match="does not change"):
        one._value = "other"


def test_every_secret_is_on_the_list() -> None:
    settings = read({**GOOD, **OPENS, "PROXY_SESSION_SECRETS": f"{SECRET},{SECRET[::-1]}"})
    assert {secret.reveal() for secret in settings.secrets} == {KEY, SECRET, SECRET[::-1], *OPENS.values()}

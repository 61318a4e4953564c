"""The variables that the program reads: their names, their defaults, and which hold secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

SECRETS = frozenset(
    {
        "FAL_KEY",
        "FAL_KEY_ID",
        "FAL_KEY_SECRET",
        "FAL_USAGE_KEY",
        "PROXY_SESSION_SECRETS",
        "PROXY_ADMIN_TOKEN",
        "PROXY_DATABASE_URL",
        "PROXY_REDIS_URL",
        "PROXY_ALERTS_SECRET",
        "PROXY_CONSOLE_OIDC_CLIENT_SECRET",
    }
)
#: A variable with a secret of a tenant, which the plan file names.
SECRET_NAME = r"^[A-Z][A-Z0-9_]*_SECRET$"
#: Every variable the program reads, with what it is for: the table in docs/settings.md is checked against this.
VARIABLES: dict[str, str] = {
    "FAL_KEY": "fal's key, `id:secret`; the API scope is enough",
    "FAL_KEY_ID": "the first half of the key, if you give it in two halves",
    "FAL_KEY_SECRET": "the second half of the key",
    "FAL_USAGE_KEY": "an admin key of fal's, which reads what the account used; if unset, there is no "
    "[reconciliation](reconciliation.md)",
    "FAL_RUN_URL": "fal's host for direct calls",
    "FAL_QUEUE_URL": "fal's host for queued calls",
    "FAL_REST_URL": "fal's host that begins uploads",
    "FAL_CDN_URL": "fal's host that receives files, beside `https://*.fal.media`",
    "FAL_API_URL": "fal's platform API, which is asked with `FAL_USAGE_KEY`",
    "PROXY_UPSTREAM_PROBE_SECONDS": "seconds until the first probe of fal while fal fails or has locked the account; "
    "later probes wait longer; `0` sends every call",
    "PROXY_UPSTREAM_IDLE_SECONDS": "seconds for which an idle connection to fal can be used again; keep it below fal's "
    "own idle timeout",
    "PROXY_HOST": "the address to listen on",
    "PROXY_PORT": "the port to listen on",
    "PROXY_OPS_PORT": "a separate port for `/metrics`, `/readyz`, `/v1/admin` and `/console`; if unset, they are on "
    "`PROXY_PORT`",
    "PROXY_OPS_HOST": "the address of the separate port; if unset, `PROXY_HOST`",
    "PROXY_WORKERS": "the number of worker processes; more than one needs `PROXY_REDIS_URL`",
    "PROXY_PUBLIC_URL": "the address that callers see; the proxy builds the URLs in its answers from it",
    "PROXY_CONFIG": "the YAML file of plans, tenants and additional endpoints",
    "PROXY_SESSION_SECRETS": "the secrets that sign sessions: comma-separated, newest first, 32 bytes or more each",
    "PROXY_ADMIN_TOKEN": "the token that opens `/v1/admin` to an admin; if unset, only named tokens open it",
    "PROXY_ISSUER_NETWORKS": "private addresses or networks from which the proxy may fetch the keys of identity "
    "tokens, with https too, comma-separated; if unset, only from public addresses",
    "PROXY_TURNSTILE_URL": "where the proxy verifies guests' proofs of the kind `turnstile`",
    "PROXY_HCAPTCHA_URL": "the same for `hcaptcha`",
    "PROXY_RECAPTCHA_URL": "the same for `recaptcha`",
    "PROXY_APP_CHECK_URL": "the JWK Set that verifies guests' proofs of the kind `app_check`",
    "PROXY_DATABASE_URL": "`sqlite:///file` or `postgresql://…`",
    "PROXY_MIGRATE": "`on` or `off`: whether a start upgrades the database schema; if unset, `on` for SQLite and `off` "
    "for PostgreSQL, where you run `fal-proxy migrate`",
    "PROXY_SQLITE_SYNC": "`normal`: a power cut may lose the last commits of a SQLite file; `full`: it loses none",
    "PROXY_STATE_DIR": "a folder, used by this database alone, for ledger entries that a process could not write "
    "before it ended; if unset, a folder beside the SQLite file, and none with PostgreSQL",
    "PROXY_RETENTION_DAYS": "days for which jobs are kept after they end, grants after they expire, and quota "
    "accounts after their window, from 1 to 3650; daily sums of usage are kept forever",
    "PROXY_AUDIT_DAYS": "days for which entries of the audit log are kept, from 1 to 3650",
    "PROXY_REDIS_URL": "`redis://…`; if unset, each process keeps its counters in memory",
    "PROXY_RATE_LIMIT_ON_ERROR": "`refuse` or `open`: refuse calls or let them through while rates cannot be counted",
    "PROXY_ALLOWED_ORIGINS": "page origins that may call for every tenant, comma-separated",
    "PROXY_TRUSTED_PROXIES": "addresses or networks whose forwarded headers the proxy trusts, comma-separated",
    "PROXY_MAX_BODY_BYTES": "the largest JSON body, in bytes",
    "PROXY_MAX_BODY_MEMORY": "bytes of large JSON bodies that one process holds at once; one address gets a quarter",
    "PROXY_MAX_STREAMS": "open event streams of one process",
    "PROXY_MAX_STREAMS_PER_SESSION": "open event streams of one session in one process",
    "PROXY_MAX_STREAMS_PER_TENANT": "open event streams of one tenant in one process; if unset, half of "
    "`PROXY_MAX_STREAMS`, or all of them if there is only one tenant",
    "PROXY_MAX_CONNECTIONS": "open connections of one process; lowered if the process may not open enough files",
    "PROXY_MAX_CONNECTIONS_PER_ADDRESS": "open connections of one address; if unset, a third of "
    "`PROXY_MAX_CONNECTIONS` for each public address",
    "PROXY_REFUSALS_PER_ADDRESS": "refusals of one address in one process, after which its requests get 429; `0` sets "
    "no limit",
    "PROXY_PICTURE_PROCESSES": "pictures from which one process removes metadata at once (`strip_metadata`); each "
    "takes a processor and up to 768 MiB",
    "PROXY_CONNECT_SECONDS": "seconds until a new connection must send its first byte",
    "PROXY_HEAD_SECONDS": "seconds for the head of a request, from its first byte",
    "PROXY_KEEP_ALIVE_SECONDS": "seconds for which a connection may be idle; keep it above the idle timeout of "
    "your balancer",
    "PROXY_DRAIN_SECONDS": "seconds for running calls to finish after a stop signal",
    "PROXY_PLAYGROUND": "`on` or `off`: whether `/playground` serves a page to try calls on, for callers with a "
    "session and for the guests of a tenant",
    "PROXY_CONSOLE": "`on` or `off`: whether `/console` serves the operator's pages, beside `/v1/admin`; if unset, "
    "`on` if `PROXY_ADMIN_TOKEN` or `PROXY_CONSOLE_OIDC_ISSUER` is set",
    "PROXY_CONSOLE_URL": "where the browsers of operators reach `/console`, such as `https://ops.example.com`, if that "
    "is not `PROXY_PUBLIC_URL`; sign-ins at the provider come back there",
    "PROXY_CONSOLE_OIDC_ISSUER": "the OpenID Connect provider with which operators [sign in to the "
    "console](console.md#sign-in-with-openid-connect), as its discovery document spells it; set it and the "
    "three below, or none",
    "PROXY_CONSOLE_OIDC_CLIENT_ID": "what the provider calls this proxy",
    "PROXY_CONSOLE_OIDC_CLIENT_SECRET": "the secret of this client",
    "PROXY_CONSOLE_OIDC_ROLES": "which claim gives which role: `claim:value=role`, comma-separated, such as "
    "`groups:fal-admins=admin,groups:support=viewer`; the highest counts",
    "PROXY_LOG_FORMAT": "`json` or `text`",
    "PROXY_LOG_LEVEL": "`debug`, `info`, `warning` or `error`",
    "PROXY_ALERTS_URL": "where the operator gets [alerts](alerts.md) as webhooks; if unset, nowhere",
    "PROXY_ALERTS_SECRET": "what signs them: `whsec_` and 24 to 64 bytes in base64; comma-separated, newest first",
    "PROXY_ALERTS_NETWORKS": "private addresses or networks in which receivers of alerts may be, also with plain http, "
    "comma-separated; if unset, only public addresses with https",
    "PROXY_COMMIT": "the commit that runs, for `fal_proxy_build_info`; the image sets it if it is built with one",
    "PROXY_OTLP_ENDPOINT": "the OpenTelemetry collector that gets traces, such as `http://localhost:4318`; needs the "
    "extra `fal-proxy[otel]`; if unset, there are no traces",
}
DEFAULTS: dict[str, str] = {
    "FAL_RUN_URL": "https://fal.run",
    "FAL_QUEUE_URL": "https://queue.fal.run",
    "FAL_REST_URL": "https://rest.fal.ai",
    "FAL_CDN_URL": "https://v3.fal.media",
    "FAL_API_URL": "https://api.fal.ai",
    "PROXY_UPSTREAM_PROBE_SECONDS": "1",
    "PROXY_UPSTREAM_IDLE_SECONDS": "15",
    "PROXY_HOST": "127.0.0.1",
    "PROXY_PORT": "8787",
    "PROXY_WORKERS": "1",
    "PROXY_TURNSTILE_URL": "https://challenges.cloudflare.com/turnstile/v0/siteverify",
    "PROXY_HCAPTCHA_URL": "https://api.hcaptcha.com/siteverify",
    "PROXY_RECAPTCHA_URL": "https://www.google.com/recaptcha/api/siteverify",
    "PROXY_APP_CHECK_URL": "https://firebaseappcheck.googleapis.com/v1/jwks",
    "PROXY_DATABASE_URL": "sqlite:///fal-proxy.db",
    "PROXY_SQLITE_SYNC": "normal",
    "PROXY_RETENTION_DAYS": "90",
    "PROXY_AUDIT_DAYS": "365",
    "PROXY_RATE_LIMIT_ON_ERROR": "refuse",
    "PROXY_MAX_BODY_BYTES": str(12 * 1024 * 1024),
    "PROXY_MAX_BODY_MEMORY": str(256 * 1024 * 1024),
    "PROXY_MAX_STREAMS": "10000",
    "PROXY_MAX_STREAMS_PER_SESSION": "2500",
    "PROXY_MAX_CONNECTIONS": "12000",
    "PROXY_REFUSALS_PER_ADDRESS": "600/minute",
    "PROXY_PICTURE_PROCESSES": "1",
    "PROXY_CONNECT_SECONDS": "60",
    "PROXY_HEAD_SECONDS": "30",
    "PROXY_KEEP_ALIVE_SECONDS": "75",
    "PROXY_DRAIN_SECONDS": "25",
    "PROXY_PLAYGROUND": "off",
    "PROXY_LOG_FORMAT": "json",
    "PROXY_LOG_LEVEL": "info",
}


def is_secret_of_tenant(name: str) -> bool:
    """Return whether a plan file may name this variable. The proxy's own secrets go nowhere that it names."""
    return re.fullmatch(SECRET_NAME, name) is not None and not name.startswith(("FAL_", "PROXY_"))


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {*VARIABLES, *(f"{name}_FILE" for name in SECRETS)}
    unknown = sorted(name for name in environ if name.startswith("PROXY_") and name not in known)
    return [f"{name}: is not a setting{_find_nearest(name, known)}" for name in unknown]


def _find_nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""

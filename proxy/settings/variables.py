"""The variables that the program reads: their names, their defaults, and which hold secrets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

SECRETS = frozenset(
    {
        "FAL_KEY",
        "FAL_KEY_ID",
        "FAL_KEY_SECRET",
        "PROXY_SESSION_SECRETS",
        "PROXY_ADMIN_TOKEN",
        "PROXY_DATABASE_URL",
        "PROXY_REDIS_URL",
    }
)
#: Every variable the program reads, with what it is for: the README's table is checked against this.
VARIABLES: dict[str, str] = {
    "FAL_KEY": "fal's key, `id:secret`; needs no more than the API scope",
    "FAL_KEY_ID": "the first half of the key, if it is given in two",
    "FAL_KEY_SECRET": "the second half",
    "FAL_RUN_URL": "where direct calls go",
    "FAL_QUEUE_URL": "where queued calls go",
    "FAL_REST_URL": "where uploads are initiated",
    "FAL_CDN_URL": "where files are uploaded to, beside `https://*.fal.media`",
    "PROXY_UPSTREAM_PROBE_SECONDS": "how soon fal is tried again while it fails or has locked the account; later tries "
    "wait longer; `0`: every call is sent",
    "PROXY_UPSTREAM_IDLE_SECONDS": "how long a connection to fal may be idle and be used again; less than fal keeps it",
    "PROXY_HOST": "the address to listen on",
    "PROXY_PORT": "the port to listen on",
    "PROXY_OPS_PORT": "the port of `/metrics`, `/readyz` and `/v1/admin`; unset: `PROXY_PORT`, for all callers",
    "PROXY_OPS_HOST": "the address of that port; unset: that of `PROXY_HOST`",
    "PROXY_WORKERS": "processes; more than one needs `PROXY_REDIS_URL`",
    "PROXY_PUBLIC_URL": "the address callers see, for the URLs inside answers",
    "PROXY_CONFIG": "the YAML file with plans, tenants and more endpoints",
    "PROXY_SESSION_SECRETS": "what sessions are signed with: newest first, comma-separated, 32 bytes or more each",
    "PROXY_ADMIN_TOKEN": "opens `/v1/admin`; unset: closed",
    "PROXY_DATABASE_URL": "`sqlite:///file` or `postgresql://…`",
    "PROXY_SQLITE_SYNC": "`normal` or `full`: whether a power cut may take the last commits of a SQLite file, or none",
    "PROXY_STATE_DIR": "a folder of this database, for entries of the ledger that a process could not write before its "
    "end; unset: beside the SQLite file, and with PostgreSQL none",
    "PROXY_RETENTION_DAYS": "how many days jobs stay after they are over, and quota accounts after their window; what "
    "jobs used stays for good, in sums a day",
    "PROXY_REDIS_URL": "`redis://…`; unset: counters in memory",
    "PROXY_RATE_LIMIT_ON_ERROR": "`refuse` or `open`: what happens to calls while rate limits cannot be counted",
    "PROXY_ALLOWED_ORIGINS": "origins that may call from a browser for every tenant, comma-separated",
    "PROXY_TRUSTED_PROXIES": "addresses or networks whose forwarded headers are believed, comma-separated",
    "PROXY_MAX_BODY_BYTES": "the largest JSON body",
    "PROXY_MAX_BODY_MEMORY": "bytes of large JSON bodies that one process holds at once; an address may have a quarter",
    "PROXY_MAX_STREAMS": "event streams that one process holds open at once",
    "PROXY_MAX_STREAMS_PER_SESSION": "event streams that one session holds open at once, in one process",
    "PROXY_MAX_STREAMS_PER_TENANT": "event streams that all sessions of one tenant hold open at once, in one process; "
    "unset: half of `PROXY_MAX_STREAMS`, or all of them for a tenant that is the only one",
    "PROXY_MAX_CONNECTIONS": "connections that one process holds open at once; fewer if it may open fewer files",
    "PROXY_MAX_CONNECTIONS_PER_ADDRESS": "of these, from one address; unset: a third of them from each public one",
    "PROXY_REFUSALS_PER_ADDRESS": "refusals that an address gets in one process before it is not heard; `0`: no limit",
    "PROXY_CONNECT_SECONDS": "how long a new connection may be silent",
    "PROXY_HEAD_SECONDS": "how long the head of a request may take, from its first byte",
    "PROXY_KEEP_ALIVE_SECONDS": "how long a connection may be idle; longer than your balancer keeps it",
    "PROXY_DRAIN_SECONDS": "how long running calls may take to finish after a stop signal",
    "PROXY_LOG_FORMAT": "`json` or `text`",
    "PROXY_LOG_LEVEL": "`debug`, `info`, `warning` or `error`",
}
DEFAULTS: dict[str, str] = {
    "FAL_RUN_URL": "https://fal.run",
    "FAL_QUEUE_URL": "https://queue.fal.run",
    "FAL_REST_URL": "https://rest.fal.ai",
    "FAL_CDN_URL": "https://v3.fal.media",
    "PROXY_UPSTREAM_PROBE_SECONDS": "1",
    "PROXY_UPSTREAM_IDLE_SECONDS": "15",
    "PROXY_HOST": "127.0.0.1",
    "PROXY_PORT": "8787",
    "PROXY_WORKERS": "1",
    "PROXY_DATABASE_URL": "sqlite:///fal-proxy.db",
    "PROXY_SQLITE_SYNC": "normal",
    "PROXY_RETENTION_DAYS": "90",
    "PROXY_RATE_LIMIT_ON_ERROR": "refuse",
    "PROXY_MAX_BODY_BYTES": str(12 * 1024 * 1024),
    "PROXY_MAX_BODY_MEMORY": str(256 * 1024 * 1024),
    "PROXY_MAX_STREAMS": "10000",
    "PROXY_MAX_STREAMS_PER_SESSION": "2500",
    "PROXY_MAX_CONNECTIONS": "12000",
    "PROXY_REFUSALS_PER_ADDRESS": "600/minute",
    "PROXY_CONNECT_SECONDS": "60",
    "PROXY_HEAD_SECONDS": "30",
    "PROXY_KEEP_ALIVE_SECONDS": "75",
    "PROXY_DRAIN_SECONDS": "25",
    "PROXY_LOG_FORMAT": "json",
    "PROXY_LOG_LEVEL": "info",
}


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {*VARIABLES, *(f"{name}_FILE" for name in SECRETS)}
    unknown = sorted(name for name in environ if name.startswith("PROXY_") and name not in known)
    return [f"{name}: is not a setting{_nearest(name, known)}" for name in unknown]


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""

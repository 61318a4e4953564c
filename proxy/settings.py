"""Frozen settings by subject, read once from the environment.

`read` looks at every variable and reports all problems together, each by the variable's name; nothing else in the
program reads the environment. Every variable that holds a secret can also be given as `NAME_FILE`, a path to a file
with the value.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import NoReturn, Self, TypeVar
from urllib.parse import urlsplit

from proxy import libpq
from proxy.numbers import parse_whole
from proxy.origins import normalize_origin

MIN_SECRET_BYTES = 32
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

DAY_SECONDS = 86_400.0
#: Addresses that a server can listen on and no caller can ask.
_WILDCARDS = ("0.0.0.0", "::", "0")
_RATE = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)")
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"
T = TypeVar("T")


class SettingsError(Exception):
    """The settings do not allow a start.

    Attributes:
        problems: one sentence each, beginning with the variable's name.
        warnings: what stops no start, in the same form.
    """

    def __init__(self, problems: list[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.warnings = tuple(warnings)


class Secret:
    """A value that only `reveal` shows. Its text, copies and dictionaries do not, and it cannot be pickled."""

    __slots__ = ("_value",)
    _value: str

    def __init__(self, value: str) -> None:
        object.__setattr__(self, "_value", value)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "****"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a secret does not change")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        # `dataclasses.asdict` copies what is no dataclass.
        return self

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


@dataclass(frozen=True)
class FalSettings:
    key: Secret
    run_url: str
    queue_url: str
    rest_url: str
    cdn_url: str
    probe_seconds: int
    idle_seconds: int


@dataclass(frozen=True)
class ServerSettings:
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

    def streams_per_tenant(self, tenants: int) -> int:
        """How many event streams a tenant may hold open in one process, if there are so many tenants."""
        if self.max_streams_per_tenant is not None:
            return self.max_streams_per_tenant
        return self.max_streams if tenants < 2 else max(1, self.max_streams // 2)

    @property
    def own_origin(self) -> str:
        """The origin of a page that this server itself serves."""
        return normalize_origin(self.public_url)


@dataclass(frozen=True)
class SessionSettings:
    secrets: tuple[Secret, ...]
    admin_token: Secret | None


@dataclass(frozen=True)
class StoreSettings:
    database_url: Secret
    redis_url: Secret | None
    rate_limit_on_error: str = "refuse"
    sqlite_sync: str = "normal"
    state_dir: Path | None = None
    retention_seconds: float = 90 * DAY_SECONDS

    @property
    def spool_folder(self) -> Path | None:
        """Where ledger entries wait that outlive a process; None if there is no place for files."""
        if self.state_dir is not None:
            return self.state_dir / "spool"
        path = self.database_url.reveal().removeprefix("sqlite:///").partition("?")[0]
        return Path(f"{path}-spool") if self.database_url.reveal().startswith("sqlite:") else None


@dataclass(frozen=True)
class LogSettings:
    format: str
    level: str


@dataclass(frozen=True)
class Settings:
    """Everything the program was told. `warnings` are for the operator's eyes and stop nothing."""

    fal: FalSettings
    server: ServerSettings
    sessions: SessionSettings
    stores: StoreSettings
    log: LogSettings
    config_path: Path | None = None
    dev: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Every secret there is: what no log may show."""
        return tuple(secrets_in(self))


def secrets_in(value: object) -> Iterator[Secret]:
    """The secrets in settings, wherever they stand."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from secrets_in(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from secrets_in(getattr(value, field.name))


def read(environ: Mapping[str, str], *, dev: bool = False) -> Settings:
    """Settings from the environment.

    Raises:
        SettingsError: with every problem there is, not only the first.
    """
    reader = _Reader(environ)
    settings = Settings(
        fal=_fal(reader),
        server=_server(reader),
        sessions=_sessions(reader),
        stores=_stores(reader),
        log=LogSettings(
            reader.one_of("PROXY_LOG_FORMAT", ("json", "text")),
            reader.one_of("PROXY_LOG_LEVEL", ("debug", "info", "warning", "error")),
        ),
        config_path=reader.take("PROXY_CONFIG", existing_file),
        dev=dev,
    )
    reader.warnings += unknown_variables(environ)
    if settings.server.workers > 1 and settings.stores.redis_url is None:
        reader.complain("PROXY_WORKERS", "more than one needs PROXY_REDIS_URL, or limits would be counted apart")
    if settings.server.max_body_memory < 4 * settings.server.max_body_bytes:
        reader.warn(
            "PROXY_MAX_BODY_MEMORY", "is less than four times PROXY_MAX_BODY_BYTES: the largest are never taken"
        )
    if reader.problems:
        raise SettingsError(reader.problems, reader.warnings)
    return replace(settings, warnings=tuple(reader.warnings))


def read_stores(environ: Mapping[str, str]) -> StoreSettings:
    """Only where the data lies: for commands that work on the database and need no fal key.

    Raises:
        SettingsError: a URL is wrong.
    """
    reader = _Reader(environ)
    stores = _stores(reader)
    if reader.problems:
        raise SettingsError(reader.problems)
    return stores


def read_session_secrets(environ: Mapping[str, str]) -> SessionSettings:
    """Only what sessions are signed with: for commands that mint them.

    Raises:
        SettingsError: there is no secret, or a short one.
    """
    reader = _Reader(environ)
    sessions = _sessions(reader)
    if reader.problems:
        raise SettingsError(reader.problems)
    return sessions


def _fal(reader: _Reader) -> FalSettings:
    return FalSettings(
        key=Secret(reader.fal_key()),
        run_url=reader.required("FAL_RUN_URL", _fal_url),
        queue_url=reader.required("FAL_QUEUE_URL", _fal_url),
        rest_url=reader.required("FAL_REST_URL", _fal_url),
        cdn_url=reader.required("FAL_CDN_URL", _fal_url),
        probe_seconds=reader.integer("PROXY_UPSTREAM_PROBE_SECONDS", 0, 15),
        idle_seconds=reader.integer("PROXY_UPSTREAM_IDLE_SECONDS", 1, 3600),
    )


def _server(reader: _Reader) -> ServerSettings:
    host = reader.value("PROXY_HOST")
    port = reader.integer("PROXY_PORT", 1, 65535)
    return ServerSettings(
        host=host,
        port=port,
        ops_host=reader.value("PROXY_OPS_HOST") or host,
        ops_port=_ops_port(reader, port),
        workers=reader.integer("PROXY_WORKERS", 1, 256),
        public_url=_public_address(reader, host, port),
        allowed_origins=frozenset(reader.each("PROXY_ALLOWED_ORIGINS", check_origin)),
        trusted_proxies=tuple(reader.each("PROXY_TRUSTED_PROXIES", _network)),
        max_body_bytes=reader.integer("PROXY_MAX_BODY_BYTES", 1024, 1024**3),
        max_body_memory=reader.integer("PROXY_MAX_BODY_MEMORY", 1024, 1024**4),
        max_streams=reader.integer("PROXY_MAX_STREAMS", 1, 1_000_000),
        max_streams_per_session=reader.integer("PROXY_MAX_STREAMS_PER_SESSION", 1, 1_000_000),
        max_streams_per_tenant=reader.optional_integer("PROXY_MAX_STREAMS_PER_TENANT", 1, 1_000_000),
        max_connections=reader.integer("PROXY_MAX_CONNECTIONS", 1, 1_000_000),
        max_connections_per_address=reader.optional_integer("PROXY_MAX_CONNECTIONS_PER_ADDRESS", 1, 1_000_000),
        refusals_per_address=reader.take("PROXY_REFUSALS_PER_ADDRESS", _rate) or None,
        connect_seconds=reader.integer("PROXY_CONNECT_SECONDS", 1, 3600),
        head_seconds=reader.integer("PROXY_HEAD_SECONDS", 1, 3600),
        keep_alive_seconds=reader.integer("PROXY_KEEP_ALIVE_SECONDS", 1, 86_400),
        drain_seconds=reader.integer("PROXY_DRAIN_SECONDS", 0, 3600),
    )


def _ops_port(reader: _Reader, port: int) -> int | None:
    ops_port = reader.optional_integer("PROXY_OPS_PORT", 1, 65535)
    if ops_port == port:
        reader.complain("PROXY_OPS_PORT", "is the same as PROXY_PORT; choose another one, or leave it out")
    if ops_port is None and reader.value("PROXY_OPS_HOST"):
        reader.warn("PROXY_OPS_HOST", "means nothing without PROXY_OPS_PORT")
    return ops_port


def _public_address(reader: _Reader, host: str, port: int) -> str:
    """The address callers see. One that cannot work for them is worth a warning: it shows only in their answers."""
    public_url = reader.take("PROXY_PUBLIC_URL", _public_url)
    if public_url is None:
        if host in _WILDCARDS:
            reader.warn("PROXY_PUBLIC_URL", f"is not set, and nothing can be reached at {host}: set what callers see")
        return f"http://{_bracketed(host)}:{port}"
    parts = urlsplit(public_url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        reader.warn("PROXY_PUBLIC_URL", "is http, so browsers do not keep the session cookie; use https")
    return public_url


def _sessions(reader: _Reader) -> SessionSettings:
    secrets = reader.each("PROXY_SESSION_SECRETS", _session_secret)
    if not reader.value("PROXY_SESSION_SECRETS"):
        reader.complain("PROXY_SESSION_SECRETS", "is not set; make one with: openssl rand -base64 48")
    return SessionSettings(tuple(secrets), reader.take("PROXY_ADMIN_TOKEN", _admin_token))


def _stores(reader: _Reader) -> StoreSettings:
    return StoreSettings(
        Secret(reader.required("PROXY_DATABASE_URL", _database_url)),
        reader.take("PROXY_REDIS_URL", _redis_url),
        reader.one_of("PROXY_RATE_LIMIT_ON_ERROR", ("refuse", "open")),
        reader.one_of("PROXY_SQLITE_SYNC", ("normal", "full")),
        reader.take("PROXY_STATE_DIR", _existing_folder),
        reader.integer("PROXY_RETENTION_DAYS", 1, 3650) * DAY_SECONDS,
    )


class _Reader:
    """Reads variables one by one and keeps the complaints, so that all are told at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def complain(self, name: str, what: str) -> None:
        self.problems.append(f"{name}: {what}")

    def warn(self, name: str, what: str) -> None:
        self.warnings.append(f"{name}: {what}")

    def value(self, name: str) -> str:
        """The text of a variable, from the file that `NAME_FILE` points at, or the default; '' when there is none."""
        given = self._environ.get(name, "").strip()
        path = self._environ.get(f"{name}_FILE", "").strip() if name in SECRETS else ""
        if given and path:
            self._complain_once(name, f"is set twice, also as {name}_FILE; keep one")
        if not given and path:
            given = self._file(name, path)
        return given or DEFAULTS.get(name, "")

    def _file(self, name: str, path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as problem:
            self._complain_once(f"{name}_FILE", f"cannot be read ({type(problem).__name__})")
            return ""

    def _complain_once(self, name: str, what: str) -> None:
        if f"{name}: {what}" not in self.problems:
            self.complain(name, what)

    def take(self, name: str, parse: Callable[[str], T]) -> T | None:
        text = self.value(name)
        if not text:
            return None
        try:
            return parse(text)
        except ValueError as problem:
            self.complain(name, str(problem))
            return None

    def required(self, name: str, parse: Callable[[str], str]) -> str:
        return self.take(name, parse) or ""

    def integer(self, name: str, least: int, most: int) -> int:
        text = self.value(name)
        if (number := parse_whole(text, most, least)) is not None:
            return number
        self.complain(name, f"must be a whole number from {least} to {most}")
        return least

    def optional_integer(self, name: str, least: int, most: int) -> int | None:
        return self.integer(name, least, most) if self.value(name) else None

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        text = self.value(name).lower()
        if text not in choices:
            self.complain(name, f"must be one of {', '.join(choices)}")
        return text

    def each(self, name: str, parse: Callable[[str], T]) -> list[T]:
        items: list[T] = []
        for part in filter(None, (part.strip() for part in self.value(name).split(","))):
            try:
                items.append(parse(part))
            except ValueError as problem:
                self.complain(name, str(problem))
        return items

    def fal_key(self) -> str:
        whole, first, second = (self.value(name) for name in ("FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET"))
        if whole and (first or second):
            self.complain("FAL_KEY", "is set, and FAL_KEY_ID or FAL_KEY_SECRET too; keep one way")
        key = whole or (f"{first}:{second}" if first and second else "")
        if not key:
            self.complain("FAL_KEY", "is not set, nor FAL_KEY_ID together with FAL_KEY_SECRET")
        elif not key.isascii() or any(character.isspace() for character in key) or not key.isprintable():
            self.complain("FAL_KEY", "has characters that no fal key has")
        elif any(quote in key for quote in _QUOTES):
            self.complain("FAL_KEY", "has quotes in it; docker's --env-file keeps them, so leave them out")
        elif not all(key.partition(":")[::2]):
            self.complain("FAL_KEY", "is not id:secret, the form of fal's keys")
        return key


def _rate(text: str) -> str:
    """A rate in the words of plans; '' for none."""
    if text == "0":
        return ""
    if not _RATE.fullmatch(text):
        raise ValueError("must be a rate such as 600/minute (second, minute, hour or day), or 0 for no limit")
    return text


def _fal_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.username or parts.password or parts.query or parts.fragment or not parts.hostname:
        raise ValueError("must be a plain URL such as https://fal.run, without user, query or fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ValueError("must be https, as the key travels there; plain http only to this machine's loopback")
    return text.rstrip("/")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _public_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("must be the address that callers see, such as https://ai.example.com")
    return f"{normalize_origin(text)}{parts.path}".rstrip("/")


def check_origin(text: str) -> str:
    """An origin as browsers send it: lower-case, without the default port, an international name in A-labels.

    Raises:
        ValueError: it has a path, a wildcard, or no host.
    """
    parts = urlsplit(text)
    if parts.netloc == "" or parts.path or parts.query or parts.fragment or "*" in text or "@" in parts.netloc:
        raise ValueError(f"{text!r} is not an origin such as https://app.example.com (no path, no wildcard)")
    return normalize_origin(text)


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(f"{text!r} is neither an IP address nor a network such as 10.0.0.0/8") from None


def _session_secret(text: str) -> Secret:
    if len(text.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"a secret has fewer than {MIN_SECRET_BYTES} bytes; make one with: openssl rand -base64 48")
    return Secret(text)


def _admin_token(text: str) -> Secret:
    if len(text.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"has fewer than {MIN_SECRET_BYTES} bytes; make one with: openssl rand -base64 48")
    return Secret(text)


def _database_url(text: str) -> str:
    if not text.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("must begin with sqlite:/// or postgresql://, such as sqlite:///fal-proxy.db")
    if text in ("sqlite:///", "sqlite:///:memory:"):
        raise ValueError("must name a file: what is only in memory is lost at every start")
    if not text.startswith("sqlite:"):
        libpq.parse(text)
    return text


def _redis_url(text: str) -> Secret:
    if urlsplit(text).scheme not in ("redis", "rediss"):
        raise ValueError("must begin with redis:// or rediss://")
    return Secret(text)


def existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"there is no file {text}")
    return path


def _existing_folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise ValueError(f"there is no folder {text}; make it, or leave the setting out")
    return path


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {*VARIABLES, *(f"{name}_FILE" for name in SECRETS)}
    unknown = sorted(name for name in environ if name.startswith("PROXY_") and name not in known)
    return [f"{name}: is not a setting{_nearest(name, known)}" for name in unknown]


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""

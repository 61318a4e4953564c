"""PostgreSQL connection URLs as providers hand them out (PostgreSQL documentation, 34.1.2: parameter key words).

libpq knows more parameters than the driver does. Each is passed on, translated, ignored or refused by the tables here.
"""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from proxy.numbers import parse_whole

#: What the driver reads from a URL itself.
_PASSED = frozenset(
    [
        "host",
        "port",
        "dbname",
        "user",
        "password",
        "passfile",
        "service",
        "krbsrvname",
        "gsslib",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "target_session_attrs",
        "application_name",
        "options",
        "client_encoding",
    ]
)
_TRANSLATED = {"ssl": "sslmode", "fallback_application_name": "application_name"}
#: What tunes libpq's own connection, or asks for what the driver negotiates by itself.
_IGNORED = frozenset(
    [
        "channel_binding",
        "gssencmode",
        "gssdelegation",
        "sslcompression",
        "sslsni",
        "sslcertmode",
        "load_balance_hosts",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    ]
)
#: How URLs of other drivers name a transaction pooler.
_POOLED = {"pgbouncer": "true", "statement_cache_size": "0", "prepared_statement_cache_size": "0"}
_VALUES = {
    "pgbouncer": ("true", "false"),
    "statement_cache_size": ("0",),
    "prepared_statement_cache_size": ("0",),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    **dict.fromkeys(
        ("ssl_min_protocol_version", "ssl_max_protocol_version"), ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
    ),
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
}
#: Files that have to be there before a connection can be made.
_FILES = frozenset(["sslcert", "sslkey", "sslrootcert", "sslcrl"])
#: In place of a file: the authorities of the system.
_SYSTEM = "system"
_SCHEMES = ("postgresql", "postgres")
_MOST_SECONDS = 3600


class ConnectionUrl(NamedTuple):
    """A URL that the driver understands, and what else was said in it.

    Attributes:
        connect_timeout: how long a connection may take in seconds.
        is_pooled: whether it leads to a transaction pooler for sure.
    """

    url: str
    connect_timeout: int | None = None
    is_pooled: bool = False

    def __repr__(self) -> str:
        # The URL holds a password.
        return f"ConnectionUrl(url=****, connect_timeout={self.connect_timeout}, is_pooled={self.is_pooled})"


def parse(text: str) -> ConnectionUrl:
    """Read a PostgreSQL URL.

    Raises:
        ValueError: it has a parameter that neither libpq nor the driver knows, or a value that they refuse.
    """
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES or parts.fragment:
        raise ValueError("must be such as postgresql://user:password@host/database; percent-encode what is special")
    if not all(_has_good_port(host) for host in parts.netloc.rpartition("@")[2].split(",")):
        # The text is not quoted: it may be half a password.
        raise ValueError("has a port that is no number; percent-encode what is special in a password")
    kept: dict[str, str] = {}
    timeout, is_pooled = None, False
    for given, value in parse_qsl(parts.query, keep_blank_values=True):
        name = _TRANSLATED.get(given, given)
        if name == "connect_timeout":
            timeout = _seconds(value)
        elif name in _POOLED:
            is_pooled |= _check_value(name, value) == _POOLED[name]
        elif name in _PASSED:
            kept[name] = _check_value(name, value)
        elif name not in _IGNORED:
            raise ValueError(f"has a parameter that is not known: {given[:40]}; take it out of the URL")
    url = _join_url(parts.netloc, parts.path, kept)
    if len(split_hosts(url)) > 1:
        # Of several servers, the one that takes writes.
        kept.setdefault("target_session_attrs", "read-write")
        url = _join_url(parts.netloc, parts.path, kept)
    return ConnectionUrl(url, timeout, is_pooled)


def split_hosts(url: str) -> list[str]:
    """Give a URL for each server that a URL names, in the same order.

    Raises:
        ValueError: it names several ports, and not as many as servers.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        return [_join_url(f"{user}{at}{host}", parts.path, query) for host in hosts.split(",")]
    names, ports = (query.get(name, "").split(",") for name in ("host", "port"))
    if len(ports) not in (1, len(names)):
        raise ValueError(f"names {len(names)} hosts and {len(ports)} ports; give one port, or one for each host")
    named = [{"host": name, "port": port} for name, port in zip(names, ports * len(names), strict=False)]
    given = [{key: text for key, text in one.items() if text} for one in named]
    return [_join_url(parts.netloc, parts.path, query | one) for one in given]


def _join_url(netloc: str, path: str, query: dict[str, str]) -> str:
    return f"{_SCHEMES[0]}://{netloc}{path}" + (f"?{urlencode(query)}" if query else "")


def _check_value(name: str, value: str) -> str:
    values = _VALUES.get(name)
    if values is not None and value not in values:
        raise ValueError(f"has {name}={value[:40]}, which must be one of {', '.join(values)}")
    if "\0" in value:
        raise ValueError(f"has a zero byte in {name}; take it out of the URL")
    if name in _FILES and value != _SYSTEM and not os.path.isfile(value):
        raise ValueError(f"has {name}={value[:200]}, and there is no such file")
    return value


def _has_good_port(host: str) -> bool:
    port = host.rpartition("]")[2].partition(":")[2]
    return not port or parse_whole(port, 65535, least=1) is not None


def _seconds(value: str) -> int | None:
    if (seconds := parse_whole(value, _MOST_SECONDS)) is None:
        raise ValueError(f"has a connect_timeout that is no number of seconds up to {_MOST_SECONDS}")
    return seconds or None

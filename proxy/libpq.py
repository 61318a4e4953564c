"""PostgreSQL connection URLs as providers hand them out (PostgreSQL documentation, 34.1.2: parameter key words).

libpq knows more parameters than the driver does. Each is passed on, translated, ignored or refused by the tables here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from proxy.certificates import check_files, find_authorities
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
    "sslnegotiation": ("postgres", "direct"),
    # Those of a server that takes writes.
    "target_session_attrs": ("any", "primary", "read-write"),
    "gsslib": ("gssapi", "sspi"),
}
#: Files that have to be there before a connection can be made.
_FILES = frozenset(["sslcert", "sslkey", "sslrootcert", "sslcrl"])
#: In place of a file: the authorities of the system.
_SYSTEM = "system"
#: What `ssl` says in URLs of Java and JavaScript.
_SSL_MODES = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
_VERIFIED = ("verify-ca", "verify-full")
_SCHEMES = ("postgresql", "postgres")
_MOST_SECONDS = 3600
_NO_HOST = "has a host that is no name, no address and no folder of a socket"
_ENCODE = "; percent-encode what is special in a password"


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
    """Read a PostgreSQL URL. No error quotes what may be a part of a password.

    Raises:
        ValueError: it has a parameter that neither libpq nor the driver knows, or a value that they refuse.
    """
    parts = _split(text)
    kept: dict[str, str] = {}
    timeout, is_pooled = None, False
    for given, value in _parse_query(parts):
        name = _TRANSLATED.get(given, given)
        if name == "connect_timeout":
            timeout = _seconds(value)
        elif name in _POOLED:
            is_pooled |= _check_value(name, value) == _POOLED[name]
        elif name in _PASSED:
            kept[name] = _check_value(name, _SSL_MODES.get(value, value) if given == "ssl" else value)
        elif name not in _IGNORED:
            shown = f": {given[:40]}; take it out of the URL" if "@" not in parts.query else _ENCODE
            raise ValueError(f"has a parameter that is not known{shown}")
    _check_verification(kept)
    url = _join_url(parts.netloc, parts.path, kept)
    if len(split_hosts(url)) > 1:
        # Of several servers, the one that takes writes.
        kept.setdefault("target_session_attrs", "read-write")
        url = _join_url(parts.netloc, parts.path, kept)
    return ConnectionUrl(url, timeout, is_pooled)


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
    except ValueError:
        # The text of this error would quote what may be a part of a password.
        raise ValueError(f"has brackets that hold no IPv6 address{_ENCODE}") from None
    if parts.scheme not in _SCHEMES or parts.fragment:
        raise ValueError("must be such as postgresql://user:password@host/database; percent-encode what is special")
    if parts.netloc.count("@") > 1:
        # The driver would take what is behind the first one for a host, and ask name servers for it.
        raise ValueError(f"has several @ before its path{_ENCODE}")
    hosts = parts.netloc.rpartition("@")[2]
    if not all(map(_has_good_port, hosts.split(","))):
        raise ValueError(f"has a port that is no number{_ENCODE}")
    if "@" in parts.path:
        raise ValueError(f"has an @ behind its host{_ENCODE}")
    if not all(map(_is_host, hosts.split(","))):
        raise ValueError(_NO_HOST)
    if "\0" in unquote(parts.netloc + parts.path):
        raise ValueError("has a zero byte; take it out of the URL")
    return parts


def _parse_query(parts: SplitResult) -> list[tuple[str, str]]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    names = [_TRANSLATED.get(name, name) for name, _ in pairs]
    for name in names:
        if names.count(name) > 1 and name in _PASSED | _POOLED.keys() | {"connect_timeout"}:
            raise ValueError(f"has {name} twice; keep one of them")
    return pairs


def _check_verification(kept: dict[str, str]) -> None:
    """Make sure that the server's certificate can be verified if it is to be, and put files in the place of words."""
    mode = kept.get("sslmode", "prefer")
    if kept.get("sslrootcert") == _SYSTEM:
        if mode != "verify-full":
            raise ValueError(f"has sslmode={mode} with sslrootcert=system, which needs sslmode=verify-full")
        if (found := find_authorities()) is None:
            raise ValueError("has sslrootcert=system, and the system has no authorities; install ca-certificates")
        kept["sslrootcert"] = found
    elif mode in _VERIFIED and "sslrootcert" not in kept and not _has_own_authority():
        raise ValueError(
            f"has sslmode={mode} and no authority; add sslrootcert=system, or the path of the provider's certificate"
        )
    check_files(kept)


def _has_own_authority() -> bool:
    """Return whether the driver finds the certificate of an authority where libpq looks for one."""
    return Path("~/.postgresql/root.crt").expanduser().is_file()


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
        raise ValueError(f"has a value of {name} that is none of {', '.join(values)}")
    if "\0" in value:
        raise ValueError(f"has a zero byte in {name}; take it out of the URL")
    if name == "port" and not all(not port or _is_port(port) for port in value.split(",")):
        raise ValueError("has a port that is no number from 1 to 65535")
    if name == "host" and not all(map(_is_host, value.split(","))):
        raise ValueError(_NO_HOST)
    if name in _FILES and (name, value) != ("sslrootcert", _SYSTEM) and not os.path.isfile(value):
        raise ValueError(f"has {name}={value[:200]}, and there is no such file")
    return value


def _has_good_port(host: str) -> bool:
    port = host.rpartition("]")[2].partition(":")[2]
    return not port or _is_port(port)


def _is_host(text: str) -> bool:
    """Return whether a resolver takes it for a name, of those that are no folder."""
    name = unquote(text).partition("]")[0].strip("[") if text.startswith("[") else unquote(text.partition(":")[0])
    if name.startswith("/"):
        return True
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return not any(character.isspace() for character in name)


def _is_port(text: str) -> bool:
    return parse_whole(text, 65535, least=1) is not None


def _seconds(value: str) -> int | None:
    if (seconds := parse_whole(value, _MOST_SECONDS)) is None:
        raise ValueError(f"has a connect_timeout that is no number of seconds up to {_MOST_SECONDS}")
    return seconds or None

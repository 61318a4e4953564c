"""The URL of Redis, checked as its client will read it."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from proxy.settings.secret import Secret
from proxy.settings.values import existing_file, split_url

_DATABASE = re.compile(r"/?|/[0-9]{1,5}")
_TEXT, _SECONDS, _SWITCH = re.compile(r".+"), re.compile(r"[0-9]{1,5}(\.[0-9]{1,6})?"), re.compile(r"(?i:true|false)")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
#: What redis-py takes in the query of a URL, and in which form.
KEYS = {
    "db": re.compile(r"[0-9]{1,5}"),
    "username": _TEXT,
    "password": _TEXT,
    "client_name": re.compile(r"[!-~]+"),
    "protocol": re.compile(r"[23]"),
    "max_connections": re.compile(r"[1-9][0-9]{0,5}"),
    "health_check_interval": re.compile(r"[0-9]{1,5}"),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _SWITCH,
    "retry_on_timeout": _SWITCH,
    "ssl_cert_reqs": re.compile(r"none|optional|required"),
    "ssl_check_hostname": _SWITCH,
    "ssl_password": _TEXT,
    **dict.fromkeys(_FILES, _TEXT),
}


def parse_redis_url(text: str) -> Secret:
    """Check what redis-py checks when it connects. No error quotes the URL: a part of a password may be anywhere."""
    try:
        parts = split_url(text)
    except ValueError as problem:
        raise ValueError(f"{problem}; percent-encode what is special in a password") from None
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("must begin with redis:// or rediss://")
    if parts.fragment:
        raise ValueError("has a #; percent-encode what is special in a password")
    if not _DATABASE.fullmatch(parts.path):
        raise ValueError("must end in the number of a database, such as /0, or in none")
    keys = {key: shape for key, shape in KEYS.items() if parts.scheme == "rediss" or not key.startswith("ssl_")}
    seen: set[str] = set()
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in keys:
            raise ValueError(f"has a key in its query that is none of {', '.join(keys)} of {parts.scheme}://")
        if key in seen:
            raise ValueError(f"has {key} in its query twice; keep one of them")
        seen.add(key)
        if not keys[key].fullmatch(value):
            raise ValueError(f"has a value of {key} that Redis's client does not take")
        if key in _FILES:
            existing_file(value)
    return Secret(text)

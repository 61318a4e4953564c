"""Origins and hosts, spelled as a browser sends them (WHATWG URL, host parsing; RFC 6454, section 6.2).

A browser leaves out the default port, writes an international name in its A-label form and shortens an IP address.
A setting in another spelling would never match, so settings are brought to this one.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection
from typing import NamedTuple
from urllib.parse import urlsplit

#: The ports that a browser leaves out.
_DEFAULT_PORTS = {"http": 80, "https": 443}


def normalize_origin(text: str) -> str:
    """Return the origin of a URL.

    Raises:
        ValueError: the URL has no host, or one that no browser can ask for.
    """
    parts = urlsplit(text)
    if not text.isprintable() or " " in text or "@" in parts.netloc or not parts.hostname:
        raise ValueError(f"{text!r} has no host that a browser can ask for")
    if "[" in parts.netloc and ":" not in parts.hostname:
        raise ValueError(f"{text!r} has brackets, and no IPv6 address in them")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{text!r} has a port that is no number up to 65535") from None
    shown = "" if port is None or port == _DEFAULT_PORTS.get(parts.scheme) else f":{port}"
    return f"{parts.scheme}://{_normalize_host(parts.hostname)}{shown}"


def _normalize_host(host: str) -> str:
    if ":" in host:
        return f"[{_compress(ipaddress.IPv6Address(host))}]"
    name = host if host.isascii() else _to_ascii(host)
    if any(character in name for character in "%\\<>^|*${}"):
        # The last three: a placeholder that was not replaced.
        raise ValueError(f"{host!r} is not the name of a host")
    return _shorten_ipv4(name)


def _compress(address: ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped
    # Newer versions of Python write these with the dots of IPv4, browsers do not.
    return address.compressed if mapped is None else f"::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}"


def _to_ascii(host: str) -> str:
    # Imported here: its tables take memory that a start without an international name can do without.
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as problem:
        raise ValueError(
            f"{host!r} is not the name of a host ({problem}); if browsers take it, write the xn-- name that they show"
        ) from None


def _shorten_ipv4(name: str) -> str:
    last = name.rstrip(".").rpartition(".")[2]
    if not last.isdigit() and not last.startswith("0x"):
        return name
    try:
        return socket.inet_ntoa(socket.inet_aton(name.rstrip(".")))
    except OSError:
        raise ValueError(f"{name!r} is not an IP address") from None


class OriginRefusal(NamedTuple):
    """What an operator has to know of a page that was refused for its origin.

    Attributes:
        check: what was refused: `preflight`, `cookie` or `guest`.
        list_allowed: gives the origins that may. It is asked for a line of the log only, as there may be very many.
        setting: what to change if the page may call.
    """

    check: str
    origin: str
    list_allowed: Callable[[], Collection[str]]
    setting: str

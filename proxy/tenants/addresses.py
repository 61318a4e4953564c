"""Checks where a URL in an input leads. fal fetches it, so it must lead to a public address.

fal gets the same text that is checked here. A host that programs could read in two ways (an international name, an IPv4
address in octal, hexadecimal or short form) is sent in the one form that all of them read alike, and refused if it has
none. The proxy does not know the address of a name: fal resolves it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_URL_LENGTH = 8192
_MAX_HOST_LENGTH = 255
#: What is given out of IPv6 at all, and its translation of IPv4 (NAT64).
_UNICAST, _TRANSLATED = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96")
#: Names that lead to no public place, on whatever network they are looked up (RFC 6761, 6762, 8375, ICANN's .internal).
_LOCAL = ("localhost", "localdomain", "local", "internal", "home.arpa")
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
#: A host that ends so is an IPv4 address, or nothing (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_OWN_PATH = re.compile(r"(?:/[A-Za-z0-9._~+=&?,:;!*'()$@%-]*)+")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?:[/?]|$)", re.IGNORECASE)
_NO_URL = "This is not a URL"
_NOT_PUBLIC = "The URL must lead to a public address"


def is_below(url: str, base: str) -> bool:
    """Return whether a URL lies below another one, also after everything that a reader may do with dots in its path."""
    return (
        url.startswith(base)
        and _OWN_PATH.fullmatch(url, len(base)) is not None
        and _DOTS.search(url, len(base)) is None
    )


def public_url(url: str) -> str:
    """Return an http or https URL as it may be sent.

    Raises:
        ValueError: it is none, or leads to a place that is not public; says why.
    """
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(f"A URL may have {MAX_URL_LENGTH} characters")
    # What some would decode or cut off, and others not, means two places.
    if not url.isprintable() or "\\" in url or " " in url:
        raise ValueError(f"{_NO_URL}: it has a space, a backslash or an invisible character in it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(_NO_URL) from None
    if not host or "%" in host or len(host) > _MAX_HOST_LENGTH or ("[" in parts.netloc and ":" not in host):
        raise ValueError(_NO_URL)
    if "@" in parts.netloc:
        raise ValueError("The URL must not carry credentials")
    sent = _public_host(host)
    if sent == host:
        return url
    return parts._replace(netloc=sent if port is None else f"{sent}:{port}").geturl()


def comparable_host(host: str) -> str:
    """Return a host in the one form in which all of its spellings are equal.

    Raises:
        ValueError: it is none.
    """
    if ":" in host:
        return str(ipaddress.IPv6Address(host[1:-1] if host[0] + host[-1] == "[]" else host))
    name = (host if host.isascii() else _to_ascii(host)).lower().rstrip(".")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{host[:100]!r} is not a host")
    return str(_address(name)) if _NUMBER.fullmatch(name.rpartition(".")[2]) else name


def embedded_hosts(host: str) -> list[str]:
    """List the IPv4 addresses to which a comparable host leads as an IPv6 address."""
    return [str(one) for one in _embedded_addresses(ipaddress.IPv6Address(host))] if ":" in host else []


@lru_cache(maxsize=4096)
def _public_host(host: str) -> str:
    """Return the host in the form that all programs read alike, if it can be public; fal resolves names."""
    if ":" in host:
        _check_public(_address(host))
        return host
    name = (host if host.isascii() else _to_ascii(host)).lower()
    bare = name.rstrip(".")
    if not _NAME.fullmatch(bare):
        raise ValueError(_NO_URL)
    last = bare.rpartition(".")[2]
    if _NUMBER.fullmatch(last):
        address = _address(bare)
        _check_public(address)
        return str(address)
    if "." not in bare or any(f".{bare}".endswith(f".{local}") for local in _LOCAL):
        raise ValueError(_NOT_PUBLIC)
    return name


def _to_ascii(host: str) -> str:
    """Write an international name as resolvers look it up: mapped by UTS 46, which makes full-width digits plain."""
    # Imported here: its tables take memory that a start without an international name can do without.
    import idna

    try:
        mapped = idna.uts46_remap(host, std3_rules=False)
        return mapped if mapped.isascii() else idna.encode(mapped).decode("ascii")
    except idna.IDNAError:
        raise ValueError(f"{_NO_URL}: its host is not the name of one; give it in ASCII") from None


def _address(host: str) -> Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        # What C libraries take for an IPv4 address: 127.1, 0x7f000001, 2130706433, 0177.0.0.1.
        return ipaddress.ip_address(socket.inet_aton(host))
    except OSError:
        raise ValueError(_NO_URL) from None


def is_public(host: str) -> bool:
    """Return whether an address, in the form in which sockets give it, is a public one."""
    try:
        _check_public(ipaddress.ip_address(host))
    except ValueError:
        return False
    return True


def _check_public(address: Address) -> None:
    if isinstance(address, ipaddress.IPv6Address) and not (address in _UNICAST or address in _TRANSLATED):
        raise ValueError(_NOT_PUBLIC)
    if not all(one.is_global and not one.is_multicast for one in (address, *_embedded_addresses(address))):
        raise ValueError(_NOT_PUBLIC)


def _embedded_addresses(address: Address) -> list[Address]:
    """List the IPv4 addresses that an IPv6 address leads to, by translation or a tunnel."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    if address in _TRANSLATED:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [*filter(None, [address.sixtofour]), *(address.teredo or ())]

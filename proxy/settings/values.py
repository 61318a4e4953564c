"""Checks of single values. Each returns the value as the program uses it, or raises ValueError with what it must be."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from proxy import libpq
from proxy.origins import normalize_origin
from proxy.settings.secret import Secret

MIN_SECRET_BYTES = 32
#: https://github.com/standard-webhooks/standard-webhooks, "Signature scheme".
MIN_WEBHOOK_SECRET_BYTES, MAX_WEBHOOK_SECRET_BYTES = 24, 64
#: Of the name of a file, in an error.
MOST_SHOWN_CHARS = 200
#: What `Authorization: Bearer` can carry and the proxy takes.
_BEARER = re.compile(r"[!-+\--~]+")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
#: A name in DNS or in the hosts file, in letters that a resolver takes.
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
#: Schemes of addresses from which no browser loads a page.
_NO_PAGES = ("ws", "wss", "ftp", "ftps")
#: What a path in a URL has (RFC 3986, 3.3), without what ends an attribute of a cookie.
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,=:@%/-]*")
_RATE = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)")


def parse_rate(text: str) -> str:
    """Parse a rate in the words of plans; '' for none."""
    if text == "0":
        return ""
    if not _RATE.fullmatch(text):
        raise ValueError("must be a rate such as 600/minute (second, minute, hour or day), or 0 for no limit")
    return text


def parse_commit(text: str) -> str:
    if not _COMMIT.fullmatch(text):
        raise ValueError("must be a commit's id: 7 to 64 hexadecimal digits")
    return text


def split_url(text: str) -> SplitResult:
    """Split a URL whose host and port are those of one.

    Raises:
        ValueError: they are not; the text quotes nothing.
    """
    try:
        parts = urlsplit(text)
        if parts.port == 0:
            raise ValueError
    except ValueError:
        raise ValueError("has a port that is no number from 1 to 65535, or brackets without an IPv6 address") from None
    host = parts.hostname or ""
    try:
        host.encode("idna")
    except UnicodeError:
        # A resolver would fail with the same.
        raise ValueError("has a host with a label that is empty or longer than 63 characters") from None
    if any(character.isspace() for character in host):
        raise ValueError("has a space in its host")
    return parts


def parse_fal_url(text: str) -> str:
    parts = split_url(text)
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


def is_wildcard(host: str) -> bool:
    """Return whether a server can listen on a host and no caller can ask it: `0.0.0.0` and `::` in any spelling."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _is_short_wildcard(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_unspecified


def _is_short_wildcard(host: str) -> bool:
    """Return whether resolvers read a host that is no whole address as `0.0.0.0`, such as `0`."""
    try:
        return socket.inet_aton(host) == bytes(4)
    except OSError:
        return False


def parse_host(text: str) -> str:
    """Parse the host that a server listens on: a name, or an address without brackets and port."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not _is_host_name(text):
            raise ValueError("must be an IP address or a name to listen on, such as 127.0.0.1 or ::") from None
    return text


def _is_host_name(text: str) -> bool:
    """Return whether a resolver takes a text for a name, or for an address in another spelling, such as `127.1`."""
    if not _HOST_NAME.fullmatch(text) or not all(0 < len(label) < 64 for label in text.removesuffix(".").split(".")):
        return False
    try:
        return normalize_origin(f"http://{text}") != ""
    except ValueError:
        # Digits at the end make an address of it, and it is none.
        return False


def parse_public_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("must be the address that callers see, such as https://ai.example.com")
    origin = normalize_origin(text)
    if not _PATH.fullmatch(parts.path):
        raise ValueError("has a path with characters that no URL has; percent-encode them")
    return f"{origin}{parts.path}".rstrip("/")


def parse_console_url(text: str) -> str:
    """Parse the URL at which operators' browsers reach the console: its pages know no path before `/console`."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or parts.path.strip("/"):
        raise ValueError("must be an origin such as https://ops.example.com; the console is at /console below it")
    return check_origin(text.rstrip("/"))


def parse_collector(text: str) -> str:
    """Parse the address of an OpenTelemetry collector, to which `/v1/traces` is added."""
    parts = split_url(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("must be the address of a collector, such as http://localhost:4318, without user or query")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise ValueError(
            "needs packages that are not installed; install them with: pip install 'fal-proxy[otel]' "
            "(an image: build it with --build-arg OTEL=on)"
        )
    return text.rstrip("/")


def parse_webhook_url(text: str) -> str:
    """Parse the address of a receiver of webhooks.

    Raises:
        ValueError: it is no URL, or has a user or a fragment.
    """
    try:
        parts = urlsplit(text)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be a URL such as https://acme.example/hooks")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("must have no user, password or fragment")
    return text


def parse_webhook_secret(text: str) -> Secret:
    """Parse the secret that signs webhooks, as Standard Webhooks writes it: `whsec_` and 24 to 64 bytes in base64.

    Raises:
        ValueError: it is something else; does not quote it.
    """
    prefix, _, encoded = text.partition("_")
    try:
        size = len(base64.b64decode(encoded, validate=True)) if prefix == "whsec" else 0
    except ValueError:
        size = 0
    if not MIN_WEBHOOK_SECRET_BYTES <= size <= MAX_WEBHOOK_SECRET_BYTES:
        raise ValueError(
            "must be whsec_ and 24 to 64 bytes in base64; make one with: echo whsec_$(openssl rand -base64 32)"
        )
    return Secret(text)


def check_origin(text: str) -> str:
    """Check an origin as browsers send it: lower-case, without the default port, an international name in A-labels.

    Raises:
        ValueError: it has a path, a wildcard, or no host.
    """
    parts = urlsplit(text)
    if text.lower() == "null" or parts.scheme == "file":
        raise ValueError(
            f"{text!r} is no origin of one page: all pages from files and all sandboxed frames send null; "
            "serve the page from an address of its own"
        )
    if not parts.scheme or not parts.netloc or parts.path or parts.query or parts.fragment or set("*@%") & set(text):
        raise ValueError(f"{text!r} is not an origin such as https://app.example.com (no path, no wildcard)")
    if parts.scheme in _NO_PAGES:
        raise ValueError(f"{text!r} is not the origin of a page: write http or https instead of {parts.scheme}")
    return normalize_origin(text)


def parse_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(f"{text!r} is neither an IP address nor a network such as 10.0.0.0/8") from None


def parse_session_secret(text: str) -> Secret:
    if any(ord(character) < 32 for character in text):
        raise ValueError("a secret contains a line break or another control character; separate secrets with commas")
    if len(text.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"a secret has fewer than {MIN_SECRET_BYTES} bytes; make one with: openssl rand -base64 48")
    return Secret(text)


def check_bearer(text: str) -> str:
    """Check that `Authorization: Bearer` can carry a credential; a comma would mean that two headers were joined.

    Raises:
        ValueError: it cannot; does not quote it.
    """
    if not _BEARER.fullmatch(text):
        raise ValueError("contains a space, a comma or a character that no Authorization header holds")
    return text


def parse_admin_token(text: str) -> Secret:
    try:
        check_bearer(text)
    except ValueError as problem:
        raise ValueError(f"{problem}; make one with: openssl rand -base64 48") from None
    if len(text.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"has fewer than {MIN_SECRET_BYTES} bytes; make one with: openssl rand -base64 48")
    return Secret(text)


def parse_database_url(text: str) -> str:
    if not text.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("must begin with sqlite:/// or postgresql://, such as sqlite:///fal-proxy.db")
    if text in ("sqlite:///", "sqlite:///:memory:"):
        raise ValueError("must name a file: what is only in memory is lost at every start")
    if not text.startswith("sqlite:"):
        libpq.parse(text)
    elif os.path.exists(path := text.removeprefix("sqlite:///").partition("?")[0]) and not os.path.isfile(path):
        raise ValueError(
            "must name a file, and not a folder or a device, such as sqlite:////var/lib/fal-proxy/proxy.db"
        )
    return text


def existing_file(text: str) -> Path:
    # Not by Path, which raises errors for a name that is too long.
    if os.path.isdir(text):
        raise ValueError(
            f"{text[:MOST_SHOWN_CHARS]} is a folder, not a file; Docker makes one where the file to mount is missing"
        )
    if not os.path.isfile(text):
        raise ValueError(f"there is no file {text[:MOST_SHOWN_CHARS]}")
    return Path(text)


def readable_file(text: str) -> Path:
    """Check that a text names something to read once: a file, or a pipe."""
    if not os.path.exists(text) or os.path.isdir(text):
        raise ValueError(f"there is no file {text[:MOST_SHOWN_CHARS]}")
    return Path(text)


def existing_folder(text: str) -> Path:
    if not os.path.isdir(text):
        raise ValueError(f"there is no folder {text[:MOST_SHOWN_CHARS]}; make it, or leave the setting out")
    return Path(text)

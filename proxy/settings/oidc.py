"""The OpenID Connect provider with which operators sign in to the console: all of its settings, or none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from proxy.settings.reader import EnvironmentReader
from proxy.settings.secret import Secret

_NAME = "PROXY_CONSOLE_OIDC_"
_NEEDED = ("ISSUER", "CLIENT_ID", "CLIENT_SECRET", "ROLES")
#: Some providers name their claims by URLs.
_ROLE = re.compile(r"((?:https://)?[^:,=\s]{1,200}):([^,=]{1,200})=(viewer|operator|admin)")
_MOST_CHARACTERS = 500


class RoleRule(NamedTuple):
    """Who has a claim of this value has this role."""

    claim: str
    value: str
    role: str


@dataclass(frozen=True)
class OidcSettings:
    """A provider, and what it calls this proxy.

    Attributes:
        issuer: as its discovery document and its tokens spell it.
    """

    issuer: str
    client_id: str
    client_secret: Secret
    roles: tuple[RoleRule, ...]

    @property
    def host(self) -> str:
        """What a page calls the provider."""
        return urlsplit(self.issuer).netloc


def read_oidc(reader: EnvironmentReader) -> OidcSettings | None:
    """Read the provider; None if there is none."""
    given = [name for name in _NEEDED if reader.value(_NAME + name)]
    if not given:
        return None
    for name in _NEEDED:
        if name not in given:
            reader.complain(_NAME + name, f"is not set, but {_NAME}{given[0]} is; set all of {_NAME}*, or none")
    return OidcSettings(
        reader.get_required(f"{_NAME}ISSUER", parse_issuer),
        reader.get_required(f"{_NAME}CLIENT_ID", _parse_text),
        Secret(reader.get_required(f"{_NAME}CLIENT_SECRET", _parse_text)),
        tuple(reader.get_each(f"{_NAME}ROLES", parse_role)),
    )


def parse_issuer(text: str) -> str:
    """Parse the URL of an issuer, exactly as it spells itself.

    Raises:
        ValueError: it is not https, or has what an issuer cannot have (OpenID Connect Discovery 1.0, section 3).
    """
    try:
        parts = urlsplit(text)
        is_plain = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        is_plain = False
    if not is_plain or "?" in text or "#" in text or " " in text or not text.isascii() or not text.isprintable():
        raise ValueError("must be an https URL such as https://id.example.com, without user, query or fragment")
    return _parse_text(text)


def parse_role(text: str) -> RoleRule:
    """Parse a rule such as `groups:fal-admins=admin`.

    Raises:
        ValueError: it has another form.
    """
    match = _ROLE.fullmatch(text)
    if match is None:
        raise ValueError("must be claim:value=role such as groups:fal-admins=admin (viewer, operator or admin)")
    return RoleRule(match[1], match[2], match[3])


def _parse_text(text: str) -> str:
    if len(text) > _MOST_CHARACTERS or not text.isascii() or not text.isprintable():
        raise ValueError(f"must be at most {_MOST_CHARACTERS} characters of ASCII")
    return text

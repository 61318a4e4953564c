"""The hosts on which a plan lets the pictures of an input lie.

A pattern is a host, or `*.` and a host, which stands for every name below that host and not for the host itself.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from proxy.tenants.addresses import comparable_host, embedded_hosts
from proxy.tenants.strict import Several, Strict

MOST_PATTERNS = 1000
_BELOW = "*."
#: Below it fal keeps uploads and the pictures that its models make.
_FALS_HOST = "fal.media"


def check_pattern(text: str) -> str:
    """Return a pattern in the form in which hosts are compared.

    Raises:
        ValueError: it is none.
    """
    below = _BELOW if text.startswith(_BELOW) else ""
    try:
        host = comparable_host(text.removeprefix(_BELOW))
    except ValueError:
        host = ""
    if not host or (below and (":" in host or host.rpartition(".")[2].isdigit())):
        raise ValueError(
            f"{text[:100]!r} is not a host such as img.example.com or *.example.com (no scheme, no port, no path; "
            "a wildcard only as the whole first label)"
        )
    return below + host


HostPattern = Annotated[str, Field(max_length=253), AfterValidator(check_pattern)]


class ImageHosts(Strict):
    """The hosts of URLs in inputs: those that `allow` names, or all without it, but for those that `deny` names.

    Uploaded files, other files of fal's and data URIs are always allowed.
    """

    allow: Several[HostPattern] | None = Field(default=None, min_length=1, max_length=MOST_PATTERNS)
    deny: Several[HostPattern] = Field(default=frozenset(), max_length=MOST_PATTERNS)

    @model_validator(mode="after")
    def _check_that_one_is_named(self) -> ImageHosts:
        if self.allow is None and not self.deny:
            raise ValueError("names no host; list some under allow or deny, or leave image_hosts out")
        return self

    def check(self, url: str) -> None:
        """Check a URL that may be sent as it is.

        Raises:
            ValueError: its host is not allowed.
        """
        host = comparable_host(urlsplit(url).hostname or "")
        if not f".{host}".endswith(f".{_FALS_HOST}") and not self._permits(host):
            raise ValueError(f"This plan does not allow URLs on the host {host}; upload the file")

    def _permits(self, host: str) -> bool:
        if any(_has(self.deny, one) for one in (host, *embedded_hosts(host))):
            return False
        return self.allow is None or _has(self.allow, host)


def _has(patterns: frozenset[str], host: str) -> bool:
    """Return whether one of the patterns matches a host."""
    if host in patterns:
        return True
    rest = host
    while "." in rest:
        rest = rest.partition(".")[2]
        if f"{_BELOW}{rest}" in patterns:
            return True
    return False

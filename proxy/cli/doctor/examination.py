"""One examination: the checks in their order, each with what the ones before found out."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from proxy.cli.answers import bound_answer
from proxy.cli.doctor.checks import (
    check_bodies,
    check_clock,
    check_cors,
    check_headers,
    check_health,
    check_keep_alive,
    check_session,
)
from proxy.cli.doctor.findings import FAIL, OK, WARN, Finding
from proxy.cli.doctor.streaming import check_stream
from proxy.cli.doctor.tls import check_tls
from proxy.cli.doctor.visit import Visit

TIMEOUT_SECONDS = 30.0
_NO_CREDENTIAL = "Set FAL_PROXY_KEY to a tenant key, or FAL_PROXY_SESSION to a session."


@dataclass(frozen=True, repr=False)
class Examination:
    """What is to be examined, and with which credentials."""

    url: str
    key: str
    session: str
    origin: str | None
    call: str | None
    input: dict[str, Any]


def examine(examination: Examination) -> list[Finding]:
    """Do all checks. Without a trusted certificate, none that would send a credential."""
    parts = _split_address(examination.url)
    if parts is None:
        # Not quoted: it may have a password.
        what = "the address is no URL, or has a user or a password"
        return [Finding("address", FAIL, what, "Give it as https://ai.example.com.")]
    # SSL_CERT_FILE names more authorities.
    context = ssl.create_default_context()
    tls = check_tls(parts, context)
    if is_trusted := tls.level != FAIL:
        verify: ssl.SSLContext | bool = context
    else:
        verify = False
    headers = {"x-request-id": f"doctor-{secrets.token_hex(8)}"}
    hooks = {"response": [bound_answer]}
    options: dict[str, Any] = {"verify": verify, "timeout": TIMEOUT_SECONDS, "headers": headers, "event_hooks": hooks}
    with httpx.Client(base_url=examination.url, **options) as http:
        visit = Visit(http, examination.key, examination.session)
        health = _try("health", lambda: check_health(visit))
        if health.level == FAIL:
            return [tls, health]
        try:
            return [tls, health, *_examine_proxy(visit, examination, is_trusted=is_trusted)]
        finally:
            visit.end_session()


def _split_address(text: str) -> SplitResult | None:
    """Split an address that a client can ask; None if it is not one, or has a user or a password."""
    try:
        parts, address = urlsplit(text), httpx.URL(text)
        # A resolver takes no name with an empty part, or a long one.
        (parts.hostname or "").encode("idna")
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        return None
    return parts if is_complete and address.host and "@" not in text else None


def _examine_proxy(visit: Visit, examination: Examination, *, is_trusted: bool) -> list[Finding]:
    findings = [
        _try("headers", lambda: check_headers(visit)),
        _try("keep-alive", lambda: check_keep_alive(visit)),
    ]
    if (origin := examination.origin) is not None:
        findings.append(_try("cors", lambda: check_cors(visit, origin)))
    if not is_trusted:
        advice = "No credential is sent to a server whose certificate is not trusted."
        return [*findings, Finding("session", WARN, "not checked", advice)]
    if not visit.has_credential:
        return [
            *findings,
            _try("clock", lambda: check_clock(visit)),
            Finding("session", WARN, "not checked", _NO_CREDENTIAL),
        ]
    findings.append(_try("session", lambda: check_session(visit)))
    findings.append(_try("clock", lambda: check_clock(visit)))
    if findings[-2].level != OK:
        return findings
    findings.append(_try("bodies", lambda: check_bodies(visit)))
    if (endpoint := examination.call) is None:
        advice = "With --call ENDPOINT, one job is run, which costs what it costs."
        return [*findings, Finding("stream", WARN, "not checked", advice)]
    return [*findings, _try("stream", lambda: check_stream(visit, endpoint, examination.input))]


def _try(check: str, do: Callable[[], Finding]) -> Finding:
    try:
        return do()
    except httpx.HTTPError as problem:
        advice = "Check the address, and the timeouts and limits of what stands in between."
        return Finding(check, FAIL, f"no answer ({type(problem).__name__})", advice)

"""fal's refusals, classified by their status and words: the key, the account, a limit of fal's own, or the endpoint.

None of them ran anything. What a model answers in its own words is none of them, and passes on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import orjson

from proxy.errors import (
    BadUpstream,
    ProxyError,
    UpstreamAccountLocked,
    UpstreamAmbiguous,
    UpstreamBusy,
    UpstreamRefusedEndpoint,
    UpstreamRejectedKey,
)
from proxy.numbers import parse_whole
from proxy.targets import Kind
from proxy.upstream.headers import JSON, REQUEST_ID

#: A refusal is one sentence; what is longer is read up to here, and no further.
MOST_BYTES = 64 * 1024
#: fal's words decide by how they begin: what a refusal quotes further on decides nothing.
_MOST_CHARS = 300
#: The longest that a caller is asked to wait for fal, whatever fal says.
_MOST_WAIT_SECONDS = 3600
_BUSY_SECONDS = 1


class Reason(StrEnum):
    """Why fal refused or failed a call, as metrics and `/readyz` name it."""

    WRONG_KEY = "wrong_key"
    NO_PERMISSION = "no_permission"
    ACCOUNT_LOCKED = "account_locked"
    BALANCE_USED_UP = "balance_used_up"
    CONCURRENCY_LIMIT = "concurrency_limit"
    RATE_LIMIT = "rate_limit"
    ENDPOINT_REFUSED = "endpoint_refused"
    ENDPOINT_UNKNOWN = "endpoint_unknown"
    #: Not refusals, but counted with them: fal, or a machine in front of it, fails or cannot be reached.
    SERVER_ERROR = "server_error"
    UNREACHABLE = "unreachable"


_LOCKED = r"(?:user|account|team) is locked"
#: The first line whose status is the answer's, and whose words its detail has, tells the reason.
_TABLE = [
    (status, re.compile(words, re.IGNORECASE), reason)
    for status, words, reason in (
        (401, "", Reason.WRONG_KEY),
        (402, "", Reason.BALANCE_USED_UP),
        (403, rf"^(?:{_LOCKED}\W+reason\W+)?(?:exhausted balance|top.?up)", Reason.BALANCE_USED_UP),
        (403, rf"^{_LOCKED}", Reason.ACCOUNT_LOCKED),
        (403, r"\b(?:endpoints?|applications?|apps?|models?)\b", Reason.ENDPOINT_REFUSED),
        (403, r"\bpermissions?\b|\bscopes?\b", Reason.NO_PERMISSION),
        (403, r"\bkeys?\b|\bcredentials?\b|\bunauthori[sz]ed\b", Reason.WRONG_KEY),
        (403, "", Reason.ENDPOINT_REFUSED),
        (404, r"^application .*not found", Reason.ENDPOINT_UNKNOWN),
        (429, r"concurren", Reason.CONCURRENCY_LIMIT),
        (429, "", Reason.RATE_LIMIT),
    )
]
STATUSES = frozenset(status for status, _, _ in _TABLE)
LOCKS = frozenset({Reason.ACCOUNT_LOCKED, Reason.BALANCE_USED_UP})


def may_refuse(status: int, kind: Kind) -> bool:
    """Return whether an answer may be one of fal's refusals. A 404 for a job says that fal does not know that job."""
    return status in STATUSES and not (status == 404 and kind.names_job)


def reason_of(status: int, body: bytes) -> Reason | None:
    """Return why fal refused; None if the answer is no refusal of these."""
    words = _words(body)
    for given, pattern, reason in _TABLE:
        if given == status and pattern.search(words):
            return reason
    return None


def error_of(reason: Reason, headers: Mapping[str, str], locked_seconds: float) -> ProxyError:
    """Make the error for the caller. fal's own words stay here: they are about the operator's account.

    Args:
        locked_seconds: when to try again if it is the account that is locked.
    """
    match reason:
        case Reason.WRONG_KEY | Reason.NO_PERMISSION:
            return UpstreamRejectedKey("fal rejects this proxy's key; the operator must check it.")
        case Reason.ACCOUNT_LOCKED | Reason.BALANCE_USED_UP:
            return failure_of_lock(locked_seconds)
        case Reason.CONCURRENCY_LIMIT | Reason.RATE_LIMIT:
            wait = retry_after_of(headers) or _BUSY_SECONDS
            return UpstreamBusy("fal accepts no more calls for now; try again.", retry_after=wait, scope="upstream")
        case _:
            return UpstreamRefusedEndpoint(
                "fal does not know this endpoint, or refuses it to this proxy; the operator must check it.",
                scope="upstream",
            )


def retry_after_of(headers: Mapping[str, str]) -> int | None:
    """Return the seconds that fal asks to wait, if it does."""
    return parse_whole(headers.get("retry-after", ""), _MOST_WAIT_SECONDS)


def passes_on(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether an answer is a failure in fal's own words, not a redirect, nor one of a machine in front of it."""
    return status >= 400 and (headers.get("content-type", "").startswith(JSON) or REQUEST_ID in headers)


def not_fals(status: int, headers: Mapping[str, str], *, repeatable: bool) -> ProxyError:
    """Return the error for an answer that does not pass on."""
    if repeatable:
        message = f"fal answered with something that is not its own (status {status})."
        return BadUpstream(message, retry_after=retry_after_of(headers), scope="upstream")
    return UpstreamAmbiguous("The answer is not fal's; fal may have accepted the request. Check before you repeat it.")


def failure_of_lock(retry_after: float) -> UpstreamAccountLocked:
    return UpstreamAccountLocked(
        "fal accepts no calls of this proxy's account for now; the operator must check it.",
        retry_after=retry_after,
        scope="upstream",
    )


def _words(body: bytes) -> str:
    """Read the `detail` of a platform error and its type; '' for a model's own list."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(document, dict) or not isinstance(detail := document.get("detail"), str):
        return ""
    return f"{detail[:_MOST_CHARS]} {str(document.get('error_type', ''))[:_MOST_CHARS]}".strip()

"""The headers that may pass to fal and back: an allow-list each way, with checked values. No others pass."""

from __future__ import annotations

import re
from collections.abc import Sequence

from proxy import __version__
from proxy.errors import BadRequest
from proxy.numbers import parse_whole
from proxy.targets import is_request_id
from proxy.upstream.engine import ReplyHeaders

#: The headers of a request as ASGI has them: names in small letters.
RawHeaders = Sequence[tuple[bytes, bytes]]
USER_AGENT = f"fal-proxy/{__version__}"
REQUEST_ID = "x-fal-request-id"
JSON = "application/json"
_JSON = JSON.encode()
EVENT_STREAM = "text/event-stream"
_FROM_CALLERS = frozenset((b"x-fal-queue-priority", b"x-fal-request-timeout"))
_PRIORITIES = {b"normal": "normal", b"low": "low"}
#: fal wants more than a second; a day is more than any queue needs.
_MIN_TIMEOUT_SECONDS, _MAX_TIMEOUT_SECONDS = 1.0, 86_400.0
_MAX_RETRY_AFTER_SECONDS = 86_400
#: Clients send a number as their language prints it: a third has sixteen digits.
_NUMBER = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,64})?")
_BACK = {
    name.encode("ascii"): name
    for name in (
        REQUEST_ID,
        "x-fal-billable-units",
        "x-fal-error-type",
        "x-fal-request-timeout-type",
        "x-fal-needs-retry",
        "x-fal-retryable",
        "retry-after",
    )
}


def to_fal(caller: RawHeaders, *, streams: bool) -> dict[str, str]:
    """Make the headers of an upstream call, but for the key. Of the caller's own, only two are believed, and checked.

    Raises:
        BadRequest: one of them has a value fal does not know.
    """
    headers = {
        "accept": EVENT_STREAM if streams else JSON,
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
        "x-fal-client-proxy": USER_AGENT,
    }
    # One look at all of them, as most calls have one of the two: each `get` is another. Of two the first counts.
    given = {name: value for name, value in reversed(caller) if name in _FROM_CALLERS}
    if (priority := given.get(b"x-fal-queue-priority")) is not None:
        if priority not in _PRIORITIES:
            raise BadRequest(f"x-fal-queue-priority must be one of {', '.join(_PRIORITIES.values())}.")
        headers["x-fal-queue-priority"] = _PRIORITIES[priority]
    if (timeout := given.get(b"x-fal-request-timeout")) is not None:
        headers["x-fal-request-timeout"] = _seconds(timeout.decode("latin-1"))
    return headers


def _seconds(text: str) -> str:
    if not _NUMBER.fullmatch(text) or not _MIN_TIMEOUT_SECONDS < float(text) <= _MAX_TIMEOUT_SECONDS:
        raise BadRequest("x-fal-request-timeout must be a number of seconds above 1, up to 86400.")
    return str(float(text))


def _check_values(headers: dict[str, str]) -> None:
    """Leave out what a client would act on and fal cannot mean."""
    if (id_ := headers.get(REQUEST_ID)) is not None and not is_request_id(id_):
        del headers[REQUEST_ID]
    if (wait := headers.get("retry-after")) is not None and parse_whole(wait, _MAX_RETRY_AFTER_SECONDS) is None:
        del headers["retry-after"]


def to_caller(reply: ReplyHeaders) -> dict[str, str]:
    """Return the headers of fal's reply that a caller may see."""
    # What is not ASCII may not be sendable at all, and an answer must not be lost for it.
    headers = {name: reply[key].decode("ascii") for key, name in _BACK.items() if key in reply and reply[key].isascii()}
    if headers:
        _check_values(headers)
    content_type = reply.get(b"content-type", _JSON)
    if content_type == _JSON:
        headers["content-type"] = JSON
        return headers
    headers["content-type"] = content_type.decode("ascii") if content_type.isascii() else "application/octet-stream"
    # The whole media type counts: of `application/json, text/html` browsers take the last.
    if content_type.partition(b";")[0].strip() not in (_JSON, EVENT_STREAM.encode()):
        # A page that fal's answer might contain must not run on the proxy's own origin.
        headers["content-security-policy"] = "sandbox; default-src 'none'"
    return headers

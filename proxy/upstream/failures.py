"""What a broken exchange with fal means to the caller."""

from __future__ import annotations

import httpx

from proxy.errors import BadUpstream, ProxyError, UpstreamAmbiguous, UpstreamTimeout, UpstreamUnavailable
from proxy.upstream.engine import ReplyTooLarge

#: Raised by an engine before the first byte of a request has left.
_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def failure_of(error: httpx.HTTPError, *, repeatable: bool) -> ProxyError:
    """Return the error that the caller gets for one of the engine's.

    Args:
        repeatable: whether the call can be made again without harm.
    """
    if isinstance(error, _NOTHING_SENT):
        return UpstreamUnavailable("fal cannot be reached; nothing was sent to it.", scope="upstream")
    if isinstance(error, ReplyTooLarge):
        return _too_large(repeatable)
    if not repeatable:
        return UpstreamAmbiguous(
            "fal's answer was lost; fal may have accepted the request. Check before you repeat it."
        )
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout("fal did not answer in time; try again.", scope="upstream")
    return BadUpstream("The connection to fal broke; try again.", scope="upstream")


def _too_large(repeatable: bool) -> ProxyError:
    if repeatable:
        return BadUpstream("fal's answer is larger than this proxy passes on.", scope="upstream")
    return UpstreamAmbiguous("fal's answer is larger than this proxy passes on; a repetition would run it again.")

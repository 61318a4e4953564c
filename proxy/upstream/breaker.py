"""What a failed call says about fal, and a breaker that opens after enough of it."""

from __future__ import annotations

import logging
import random
from collections.abc import Hashable, Mapping
from enum import Enum

import httpx

from proxy.targets import Kind

#: A breaker opens at so many failures within the window, with no success between them.
FAILURES, WINDOW_SECONDS = 5, 30.0
#: The pause before the next probe doubles up to this; each is varied by this fraction of itself.
MOST_PAUSE_SECONDS, JITTER = 15.0, 0.2
#: How long the next probe is kept for the caller who was let in for it, whose call is yet to be booked, and when that
#: caller may be let in again: some calls are never booked, and must not keep the probe from others.
CLAIM_SECONDS, AGAIN_SECONDS = 1.0, 10.0
#: The caller of the last probe waits longer by this fraction of the pause: others have their turn first.
_TURN = 0.5
_RUNS_MODEL = frozenset({Kind.RUN, Kind.STREAM})
#: Failures of fal's machines, in its own words, that no input brings about.
_OF_MACHINES = frozenset(
    {
        "runner_scheduling_failure",
        "runner_connection_timeout",
        "runner_connection_refused",
        "runner_connection_error",
    }
)
#: A caller can set these times itself.
_OF_TIME = frozenset({"request_timeout", "startup_timeout"})
_log = logging.getLogger(__name__)


class Evidence(Enum):
    """What a failure tells.

    Attributes:
        HOST: fal's host cannot be reached, for no endpoint.
        ENDPOINT: fal fails at this endpoint.
        DOUBTFUL: it fails at this endpoint, or only at the input of this caller.
    """

    HOST = "host"
    ENDPOINT = "endpoint"
    DOUBTFUL = "doubtful"


def evidence_of_status(status: int, headers: Mapping[str, str], kind: Kind) -> Evidence | None:
    """Return what an answer of 500 or above tells; None if it tells nothing of fal.

    No model sees the input of a submit or an upload. In a run or a stream only what a model cannot say itself counts
    without a doubt.
    """
    named = headers.get("x-fal-error-type")
    if named in _OF_TIME:
        return None
    if kind not in _RUNS_MODEL or named in _OF_MACHINES:
        return Evidence.ENDPOINT
    is_models = named is not None or "x-fal-billable-units" in headers or status in (500, 504)
    return Evidence.DOUBTFUL if is_models else Evidence.ENDPOINT


def evidence_of_error(error: httpx.HTTPError, kind: Kind) -> Evidence | None:
    """Return what a broken exchange tells; None if it is a limit of ours, or a model that is silent for long."""
    match error:
        case httpx.PoolTimeout() | httpx.LocalProtocolError() | httpx.UnsupportedProtocol():
            return None
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return Evidence.HOST
        case httpx.ReadTimeout() if kind in _RUNS_MODEL:
            return None
        case _:
            return Evidence.DOUBTFUL if kind in _RUNS_MODEL else Evidence.ENDPOINT


class Breaker:
    """Closed while calls go through, open while only a probe does, now and then.

    Attributes:
        name: what it protects, for logs and operators.
        is_open: whether calls are refused.
    """

    def __init__(self, name: str, first_pause: float) -> None:
        self.name = name
        self.is_open = False
        self._first_pause = self._pause = first_pause
        self._probe_at = 0.0
        self._prober: Hashable = object()
        #: When callers were let in for the next probe.
        self._claims: dict[Hashable, float] = {}
        self._changed_at = 0.0
        #: When calls failed, each with the caller of whom it may be the fault.
        self._failures: list[tuple[float, Hashable]] = []

    def is_idle(self, now: float) -> bool:
        """Return whether it has nothing to remember."""
        return not self.is_open and not self._failures and not 0 <= now - self._changed_at < WINDOW_SECONDS

    def wait(self, now: float, caller: Hashable) -> float:
        """Return the seconds until this caller may send a probe; at most a pause, also if the clock was set back."""
        wait = min(self._probe_at - now, self._pause * (1 + JITTER))
        return wait + self._pause * _TURN if caller == self._prober else wait

    def claimed_seconds(self, now: float, caller: Hashable) -> float:
        """Return the seconds until this caller may be let in for the next probe: another one is, or it was itself."""
        self._claims = {who: at for who, at in self._claims.items() if 0 <= now - at < AGAIN_SECONDS}
        if caller in self._claims:
            return self._claims[caller] + AGAIN_SECONDS - now
        return max(self._claims.values(), default=now - CLAIM_SECONDS) + CLAIM_SECONDS - now

    def claim_probe(self, now: float, caller: Hashable) -> None:
        """Let a caller in for the next probe."""
        self._claims[caller] = now

    def take_probe(self, now: float, caller: Hashable) -> None:
        """Note that a probe leaves, and put the next one off."""
        self._prober = caller
        self._claims.clear()
        self._pause = min(self._pause * 2, MOST_PAUSE_SECONDS)
        self._put_off(now)
        _log.info(
            "upstream probe sent", extra={"log_fields": {"breaker": self.name, "next_seconds": round(self._pause, 1)}}
        )

    def fail(self, now: float, caller: Hashable = None) -> None:
        """Count a failure. With a caller, of whom it may be the fault, each of them counts once."""
        if self.is_open:
            return
        self._failures = [(at, who) for at, who in self._failures if 0 <= now - at < WINDOW_SECONDS]
        if caller is None or all(who != caller for _, who in self._failures):
            self._failures.append((now, caller))
        if len(self._failures) >= FAILURES:
            self.open(now, "failures")

    def open(self, now: float, reason: str) -> None:
        """Refuse calls from now on."""
        if self.is_open:
            return
        # What fails again soon after it recovered is not asked as often as at first: the pause stays as it was.
        if not 0 <= now - self._changed_at < WINDOW_SECONDS:
            self._pause = self._first_pause
        self.is_open, self._changed_at, self._prober = True, now, object()
        self._put_off(now)
        _log.warning("upstream breaker opened", extra={"log_fields": {"breaker": self.name, "reason": reason}})

    def succeed(self, now: float, *, is_probe: bool) -> None:
        """End a row of failures. A call that left before the breaker opened says nothing of what is now."""
        if self.is_open and not is_probe:
            return
        if self.is_open:
            seconds = round(now - self._changed_at, 1)
            self.is_open, self._changed_at = False, now
            _log.warning("upstream breaker closed", extra={"log_fields": {"breaker": self.name, "seconds": seconds}})
        self._failures.clear()

    def _put_off(self, now: float) -> None:
        self._probe_at = now + self._pause * random.uniform(1 - JITTER, 1 + JITTER)

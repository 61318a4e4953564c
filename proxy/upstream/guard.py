"""What this process knows of fal's health: which refusals it met, and when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from proxy.clock import Clock, SystemClock
from proxy.upstream.refusals import Reason


class Guard:
    """Remembers fal's refusals, for metrics and for whoever asks whether the proxy is ready."""

    def __init__(self, clock: Clock | None = None, count: Callable[[str], None] = lambda _: None) -> None:
        """`count` is called with the reason of each refusal."""
        self._clock = clock or SystemClock()
        self._count = count
        self._last: dict[Reason, float] = {}

    def saw(self, reason: Reason) -> None:
        """Note that fal refused a call, or failed."""
        self._last[reason] = self._clock.now()
        self._count(reason.value)

    def report(self) -> dict[str, Any]:
        """What operators are told: when each refusal was last met."""
        return {"last": {str(reason): _shown(at) for reason, at in self._last.items()}}


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")

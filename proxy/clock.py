"""Time as the program sees it, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

#: The last second that can be written as a date, in seconds since 1970 UTC.
LAST_SECOND = 253_402_300_799


class Clock(Protocol):
    """Seconds since 1970 UTC, used for every expiry, window and record; and seconds of a clock that no one sets."""

    def now(self) -> float: ...

    def monotonic(self) -> float:
        """Return seconds since any moment, for durations: `now` is set forward and back."""
        ...


class SystemClock:
    """The system's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def to_iso(seconds: float, timespec: str = "seconds") -> str:
    """Write a moment as ISO 8601 in UTC, with an offset and not a `Z`, which Python 3.10 cannot read.

    What lies behind the calendar is written as its last second.
    """
    return datetime.fromtimestamp(min(seconds, LAST_SECOND), UTC).isoformat(timespec=timespec)

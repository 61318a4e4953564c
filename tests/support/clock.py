"""A clock that tests move."""

from __future__ import annotations

import time
from datetime import datetime


class MovableClock:
    """Stands still, from the moment it was made, until it is moved."""

    def __init__(self) -> None:
        self._now = float(int(time.time()))

    def now(self) -> float:
        return self._now

    def set(self, moment: str) -> None:
        """Move to a moment that is still to come, such as 2028-02-29T23:59:30Z."""
        to = datetime.fromisoformat(moment).timestamp()
        assert to >= self._now, "this clock goes forward only"
        self._now = to

    def catch_up(self) -> None:
        """Move to the present, unless the clock is ahead of it."""
        self._now = max(self._now, float(int(time.time())))

    def advance(self, seconds: float) -> None:
        self._now += seconds

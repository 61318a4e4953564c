"""A clock that tests move."""

from __future__ import annotations

import time
from datetime import datetime


class MovableClock:
    """Stands still, from the moment it was made, until it is moved."""

    def __init__(self) -> None:
        self._now = float(int(time.time()))
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def set(self, moment: str) -> None:
        """Move to a moment that is still to come, such as 2028-02-29T23:59:30Z."""
        to = datetime.fromisoformat(moment).timestamp()
        assert to >= self._now, "this clock goes forward only"
        self.advance(to - self._now)

    def catch_up(self) -> None:
        """Move to the present, unless the clock is ahead of it."""
        self.advance(max(float(int(time.time())) - self._now, 0.0))

    def advance(self, seconds: float) -> None:
        """Let time pass, or set the clock back."""
        self._now += seconds
        self._monotonic += max(seconds, 0.0)

    def set_by(self, seconds: float) -> None:
        """Set the clock forward or back, while no time passes."""
        self._now += seconds

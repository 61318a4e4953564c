"""Time as the program sees it, so that tests can move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since 1970 UTC; used for every expiry, window and record."""

    def now(self) -> float: ...


class SystemClock:
    def now(self) -> float:
        return time.time()

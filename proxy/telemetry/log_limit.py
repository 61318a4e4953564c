"""A bound on log lines that strangers or an outage cause: one a minute of each kind, and some hundred in all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable

from cachetools import TTLCache

SECONDS = 60
#: The lines of a minute. Addresses are cheap, of IPv6 above all: neither memory nor the log grows with their number.
MAX_LINES = 256


class LogLimit:
    """Admits an event of each key once a minute, while there is room for it."""

    def __init__(self, most: int = MAX_LINES, timer: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._admitted: TTLCache[Hashable, bool] = TTLCache(most, SECONDS, timer)
        self._unlogged: Counter[Hashable] = Counter()

    def admits(self, key: Hashable) -> bool:
        """Return whether to log an event now. The next one of the same key is admitted when the minute is over."""
        self._admitted.expire()
        if key in self._admitted or len(self._admitted) >= self._most:
            return False
        self._admitted[key] = True
        return True

    def count(self, key: Hashable) -> int:
        """Count an event of a key that no stranger chooses; give the number to log now, or 0 to log nothing.

        The number is that of the events since the last one that was admitted, with this one.
        """
        self._unlogged[key] += 1
        return self._unlogged.pop(key) if self.admits(key) else 0

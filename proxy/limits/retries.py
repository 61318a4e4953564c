"""What uploads that break off may cost: so much is free, and the rest is booked like a file.

A client on a bad network sends a file several times until fal has it, and pays for it once. Without a bound, a caller
could move bytes through the proxy for nothing, as long as it never sends the last one.
"""

from __future__ import annotations

from cachetools import LRUCache

from proxy.clock import Clock

#: What a user may lose in an hour: this many files of the largest size of its plan.
FREE_FILES, HOUR = 5, 3600
#: Users whose losses are remembered.
MOST_REMEMBERED = 8_192


class RetryAllowance:
    """Counts the bytes of broken uploads in this process, by user and hour."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost: LRUCache[tuple[str, str, int], int] = LRUCache(MOST_REMEMBERED)

    def charge(self, tenant: str, subject: str, lost: int, largest: int) -> int:
        """Count the bytes of an upload that broke off; return how many of them have to be paid.

        Args:
            largest: the most bytes that a file of this user may have.
        """
        key = (tenant, subject, int(self._clock.now()) // HOUR)
        before = self._lost.get(key, 0)
        free = min(lost, max(0, FREE_FILES * largest - before))
        self._lost[key] = before + free
        return lost - free

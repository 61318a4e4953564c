"""The end of this process, for the parts that accept work and the parts that stream.

    started     a stop signal came: new work is refused, what runs goes on, a stream that can be resumed says goodbye
    over        the time for that is used up, or a second signal came: what still runs is cancelled

The server sets both (proxy/server/draining.py); all other parts only read them and wait.
"""

from __future__ import annotations

import asyncio

from proxy.errors import Draining

#: Another process can be asked at once: callers come back after this.
RETRY_SECONDS = 1
#: What the process keeps for its own end, at least and at most: to cut what still runs, book it, close the stores.
SETTLING_SECONDS = (0.5, 2.0)


class Drain:
    """The drain of one process. It belongs to one event loop, and cannot be undone.

    Attributes:
        started: set by `start`.
        over: set when no time is left, or by `end`.
        settling_seconds: the part of the drain that comes after `over`.
    """

    def __init__(self, seconds: float) -> None:
        """Allow `seconds` from the signal to the end of the process; running work gets most of them."""
        shortest, longest = SETTLING_SECONDS
        self.started = asyncio.Event()
        self.over = asyncio.Event()
        self.settling_seconds = min(max(seconds / 2, shortest), longest)
        self._seconds = max(0.0, seconds - self.settling_seconds)
        self._ends_at = 0.0

    def start(self) -> None:
        """Start the drain; a second call changes nothing."""
        if self.started.is_set():
            return
        loop = asyncio.get_running_loop()
        self._ends_at = loop.time() + self._seconds
        loop.call_at(self._ends_at, self.over.set)
        self.started.set()

    def end(self) -> None:
        """Leave no more time."""
        self.start()
        self.over.set()

    def seconds_left(self) -> float:
        """Return how many seconds running work may still take; all of them while the drain has not started."""
        if self.over.is_set():
            return 0.0
        if not self.started.is_set():
            return self._seconds
        return max(0.0, self._ends_at - asyncio.get_running_loop().time())

    def refuse_new_work(self) -> None:
        """Refuse a call that another process can take as well, if this process is stopping.

        Raises:
            Draining: this process is stopping.
        """
        if self.started.is_set():
            raise Draining("This server is stopping; try again.", retry_after=RETRY_SECONDS)

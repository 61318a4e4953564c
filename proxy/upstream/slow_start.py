"""How many calls may leave before fal is known to take them.

A breaker learns from answers. Two hundred callers can come at once to a fal that fails, and all their calls be sent
before the first answer is back. So only some calls leave with no success between them; the rest wait a moment for news.
"""

from __future__ import annotations

import asyncio

#: Calls that leave without a success between them. Each success admits as many again.
MOST_UNCONFIRMED = 25
#: The longest that a call waits for news: fal may just be slow, and then it is sent all the same.
PATIENCE_SECONDS = 3.0


class SlowStart:
    """Counts the calls to one endpoint that left since its last success and are not over.

    Attributes:
        is_full: whether the next call is to wait for news.
    """

    __slots__ = ("_news", "_unconfirmed", "is_full")

    def __init__(self) -> None:
        self.is_full = False
        self._unconfirmed = 0
        self._news: asyncio.Event | None = None

    async def news(self) -> None:
        """Return when one of the calls is over."""
        self._news = self._news or asyncio.Event()
        await self._news.wait()

    def leave(self) -> None:
        """Count a call that is sent."""
        self._unconfirmed += 1
        self.is_full = self._unconfirmed >= MOST_UNCONFIRMED

    def end(self, *, took: bool = False) -> None:
        """Count a call that is over; one that fal took confirms all others."""
        self._unconfirmed = 0 if took else max(0, self._unconfirmed - 1)
        self.is_full = self._unconfirmed >= MOST_UNCONFIRMED
        if self._news is not None:
            self._news.set()
            self._news = None

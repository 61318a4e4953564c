"""How many event streams are open: each holds a connection, so that one session cannot take them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from proxy.auth.callers import Caller
from proxy.errors import RateLimited

#: When a stream will end is not known; this is a moment to try again.
RETRY_SECONDS = 1.0


class OpenStreams:
    """Counts the open event streams of this process.

    Args:
        most: of all callers together.
        most_per_session: of one session, or of one tenant key.
    """

    def __init__(self, most: int, most_per_session: int) -> None:
        self._most = most
        self._most_per_session = most_per_session
        self._by_session: Counter[str] = Counter()
        self.total = 0

    def take(self, caller: Caller) -> Callable[[], None]:
        """Count one more stream; what is returned is to be called once, at its end.

        Raises:
            RateLimited: there are as many as may be.
        """
        session = caller.session.id if caller.session else f"key:{caller.key_id}"
        if self._by_session[session] >= self._most_per_session:
            raise RateLimited(
                f"This session has {self._most_per_session} streams open, which is all it may; close one.",
                retry_after=RETRY_SECONDS,
                scope="session",
            )
        if self.total >= self._most:
            raise RateLimited(
                f"This server has {self._most} streams open, which is all it may; come back.", retry_after=RETRY_SECONDS
            )
        self.total += 1
        self._by_session[session] += 1
        return lambda: self._give_back(session)

    def _give_back(self, session: str) -> None:
        self.total -= 1
        self._by_session[session] -= 1
        if not self._by_session[session]:
            del self._by_session[session]

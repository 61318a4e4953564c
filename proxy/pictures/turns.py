"""Turns: a limited number of pictures is processed at once, and waiting calls get their turns in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.errors import Overloaded

#: Pictures that wait in one process, and how many of them may be one party's.
MOST_WAITING, MOST_WAITING_OF_ONE = 32, 8
RETRY_SECONDS = 2.0


class Turns:
    """Gives turns to parties in rotation: one with many pictures delays another by one picture at most."""

    def __init__(self, most_at_once: int) -> None:
        self._free = most_at_once
        #: The party whose turn is next comes first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, party: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it.

        Raises:
            Overloaded: too many wait, or too many of this party.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait(party)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, party: str) -> None:
        own = len(self._waiting.get(party, ()))
        if own >= MOST_WAITING_OF_ONE or sum(map(len, self._waiting.values())) >= MOST_WAITING:
            scope = "tenant" if own >= MOST_WAITING_OF_ONE else None
            raise Overloaded(
                "Too many pictures are waiting for their metadata to be removed; send this one again shortly.",
                retry_after=RETRY_SECONDS,
                scope=scope,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(party, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            else:
                self._leave(party, turn)
            raise

    def _leave(self, party: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting[party]
        queue.remove(turn)
        if not queue:
            del self._waiting[party]

    def _pass_on(self) -> None:
        party = next(iter(self._waiting), None)
        if party is None:
            self._free += 1
            return
        queue = self._waiting.pop(party)
        turn = queue.popleft()
        if queue:
            self._waiting[party] = queue
        turn.set_result(None)

"""One connection to Redis that all callers share: commands go out as they come, and answers arrive in the same order.

A command costs a tenth of what it costs over a pool of connections, each of which waits for one answer at a time. The
commands of one turn of the event loop are written at once, as each call of the system takes longer than the rest of a
command's way, and Redis answers them at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import Reader
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError

#: How long Redis may take for an answer.
ANSWER_SECONDS = 1.0
_LATE, _LOST = "No answer came in time.", "The connection was lost."
_Answer = asyncio.Future[Any]
_parse_error: Callable[[str], Exception] = DefaultParser.parse_error


class Pipeline(asyncio.Protocol):
    """Sends commands, and matches the answers to them.

    Args:
        stream: a connection over which nothing is awaited. Its transport becomes this protocol's.
    """

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        #: Whether it takes commands.
        self.is_open = True
        #: A stream writer that is forgotten closes its transport.
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(protocolError=InvalidResponse, replyError=_parse_error)
        #: The answers that are due, with the times at which their commands were sent.
        self._due: deque[tuple[_Answer, float]] = deque()
        #: The commands of this turn of the event loop.
        self._unwritten: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        #: Done when the connection is closed.
        self.closed: asyncio.Future[None] = self._loop.create_future()
        stream.transport.set_protocol(self)

    def send(self, command: bytes) -> _Answer:
        """Send a command. Its answer may be cancelled.

        Raises, or gives as an answer:
            ConnectionError: the connection was lost, and the command may have been carried out.
            TimeoutError: no answer came in time.
            RedisError: this command failed; others are not affected.
        """
        if not self.is_open:
            # Since the caller was given it; a closed transport of uvloop raises errors of its own.
            raise ConnectionError(_LOST)
        answer, now = self._loop.create_future(), self._loop.time()
        self._due.append((answer, now))
        if self._timer is None:
            self._timer = self._loop.call_at(now + ANSWER_SECONDS, self._check_oldest)
        if not self._unwritten:
            self._loop.call_soon(self._flush)
        self._unwritten.append(command)
        return answer

    def _flush(self) -> None:
        """Write the commands of a turn of the event loop."""
        commands = b"".join(self._unwritten)
        self._unwritten.clear()
        if commands and not self._stream.transport.is_closing():
            self._stream.transport.write(commands)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (found := self._reader.gets()) is not False:
                answer, _ = self._due.popleft()
                if answer.done():
                    continue
                if isinstance(found, Exception):
                    answer.set_exception(found)
                else:
                    answer.set_result(found)
        except (InvalidResponse, IndexError):
            # Not the protocol, or an answer without a command: the next ones would be matched wrongly.
            self._abort()
        if not self.is_open and not self._due:
            self._stream.close()

    def connection_lost(self, _problem: Exception | None) -> None:
        self._fail()
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def retire(self) -> None:
        """Take no more commands, and close when those that were sent are answered."""
        self.is_open = False
        if not self._due:
            self._stream.close()

    async def close(self) -> None:
        self.is_open = False
        self._flush()
        self._stream.close()
        await self.closed

    def _check_oldest(self) -> None:
        """Give the connection up if an answer is overdue. Later commands can be sent again over another one."""
        self._timer = None
        if not self._due:
            return
        now, end = self._loop.time(), self._due[0][1] + ANSWER_SECONDS
        if now < end:
            self._timer = self._loop.call_at(end, self._check_oldest)
            return
        self._fail(now - ANSWER_SECONDS)
        self._abort()

    def _fail(self, sent_until: float = -math.inf) -> None:
        """Answer all that is due with problems: what was sent until then took too long, the rest lost its way."""
        self.is_open = False
        for answer, sent_at in self._due:
            if not answer.done():
                is_late = sent_at <= sent_until
                answer.set_exception(TimeoutError(_LATE) if is_late else ConnectionError(_LOST))
        self._due.clear()

    def _abort(self) -> None:
        self.is_open = False
        self._stream.transport.abort()

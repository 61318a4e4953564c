"""Work that ends when its caller hangs up.

The server reports a lost connection with a callback, which costs a call next to nothing and leaves nothing behind.
Where something else says that the caller is gone, as with the body of an upload, a task reads what ASGI's `receive`
gives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.types import Receive, Scope

#: Where the scope of a request has its `Disconnect` (ASGI, "Extensions").
EXTENSION = "proxy.disconnect"
#: Work that is done sooner has no task that reads.
READ_AFTER_SECONDS = 0.02
T = TypeVar("T")


class CallerGone(Exception):
    """The caller hung up before the answer was there."""


class Disconnect:
    """Whether the connection of a request is lost, and the task to cancel at that moment.

    It refers to neither the connection nor the request, so that neither outlives the other for its sake.
    """

    __slots__ = ("_task", "has_happened")

    def __init__(self) -> None:
        self.has_happened = False
        self._task: asyncio.Task[Any] | None = None

    def happen(self) -> None:
        """Report that the connection is lost."""
        self.has_happened = True
        if self._task is not None:
            self._task.cancel()

    def begin(self, task: asyncio.Task[Any]) -> bool:
        """Cancel this task if the connection is lost before `end`; False if it is lost already."""
        self._task = task
        return not self.has_happened

    def end(self) -> None:
        self._task = None

    def reason(self) -> Exception:
        """Return what the cancelled work raises instead."""
        return CallerGone()


class ReceivedDisconnect(Disconnect):
    """A disconnect that ASGI's `receive` reports."""

    __slots__ = ("_problem", "_reader", "_receive", "_timer")

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[None] | None = None
        self._problem: Exception | None = None

    def begin(self, task: asyncio.Task[Any]) -> bool:
        self._timer = asyncio.get_running_loop().call_later(READ_AFTER_SECONDS, self._start)
        return super().begin(task)

    def end(self) -> None:
        super().end()
        if self._timer is not None:
            self._timer.cancel()
        if self._reader is not None:
            self._reader.cancel()
        self._timer = self._reader = None

    def reason(self) -> Exception:
        # Kept by this object too, it and its frames would keep one another.
        problem, self._problem = self._problem, None
        return problem or super().reason()

    def _start(self) -> None:
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception as problem:
            # What the caller sent meanwhile may be too much.
            self._problem = problem.with_traceback(None)
        self.happen()


def disconnect_of(scope: Scope, receive: Receive) -> Disconnect:
    """Return the disconnect of a request. Servers other than this program's own only have `receive`."""
    found: Disconnect | None = scope.get("extensions", {}).get(EXTENSION)
    return found or ReceivedDisconnect(receive)


async def cancel_on_disconnect(disconnect: Disconnect | None, work: Awaitable[T]) -> T:
    """Do the work, unless the caller hangs up first: then it is cancelled, and what it holds upstream is freed.

    Args:
        disconnect: of the caller; None for work that is done whether or not the caller waits for it.

    Raises:
        CallerGone: the caller hung up.
        BodyTooLarge: it goes on sending.
    """
    if disconnect is None:
        return await work
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    if not disconnect.begin(task):
        # The work may cost something.
        disconnect.end()
        if asyncio.iscoroutine(work):
            work.close()
        raise CallerGone
    try:
        return await work
    except asyncio.CancelledError:
        if disconnect.has_happened and task.cancelling() == cancelled_before + 1:
            raise disconnect.reason() from None
        raise
    finally:
        disconnect.end()
        if disconnect.has_happened:
            task.uncancel()

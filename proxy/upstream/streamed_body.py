"""The body of a reply that comes in pieces. While it is not read, its connection is not read either."""

from __future__ import annotations

import asyncio
from typing import Protocol

import httpx

from proxy.upstream.engine import Body

#: With more unread bytes than this, the connection is not read.
MOST_UNREAD_BYTES = 64 * 1024


class Flow(Protocol):
    """Brings the pieces."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Owner(Protocol):
    """Gets the connection back."""

    def end_stream(self, body: StreamedBody, *, is_whole: bool) -> None: ...


class StreamedBody(Body):
    """A body that a connection pushes and one task reads.

    Args:
        flow: paused while too much of the body is unread.
        owner: called once, when the body has been read to its end or is not wanted any more.
    """

    __slots__ = ("_error", "_flow", "_is_broken", "_is_over", "_is_paused", "_owner", "_pieces", "_unread", "_waiter")

    def __init__(self, flow: Flow, owner: Owner) -> None:
        self._flow = flow
        self._owner: Owner | None = owner
        self._pieces: list[bytes] = []
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: httpx.TransportError | None = None
        self._is_over = self._is_broken = self._is_paused = False

    def push(self, piece: bytes) -> None:
        """Take a piece that arrived."""
        self._pieces.append(piece)
        self._unread += len(piece)
        if self._unread > MOST_UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._flow.pause()
        self._wake()

    def end(self, error: httpx.TransportError | None) -> None:
        """Take the end of the body; `error` says why it is not whole."""
        if self._is_over:
            return
        self._is_over, self._is_broken, self._error = True, error is not None, error
        self._resume()
        self._wake()

    async def read(self) -> bytes:
        while not self._pieces:
            if self._is_over:
                self._finish(is_whole=not self._is_broken)
                if self._is_broken:
                    raise self._failure()
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except BaseException:
                self._finish(is_whole=False)
                raise
            finally:
                self._waiter = None
        pieces, self._pieces, self._unread = self._pieces, [], 0
        self._resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def aclose(self) -> None:
        if not self._is_over:
            self.end(httpx.ReadError("The response was closed."))
        self._finish(is_whole=not self._is_broken)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._flow.resume()

    def _finish(self, *, is_whole: bool) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.end_stream(self, is_whole=is_whole)

    def _failure(self) -> httpx.TransportError:
        # Raised a second time, or kept, the error would keep the frames of its first reader.
        error, self._error = self._error, None
        return error or httpx.ReadError("The response was closed.")

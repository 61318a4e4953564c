"""Looks up the names of strangers' servers, apart from all other names.

A lookup takes a thread until the name's own servers answer, which may be never: then for half a minute. The threads of
the event loop are few, and the addresses of fal, PostgreSQL and Redis are looked up there.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

#: Lookups at the same time; more wait.
MOST_THREADS = 16
#: As `socket.getaddrinfo` gives them.
Found: TypeAlias = list[tuple[Any, Any, int, str, Any]]


class Resolver:
    """Looks names up in threads of its own, which hold up no end of the process.

    Args:
        look_up: what `socket.getaddrinfo` does.
    """

    def __init__(self, look_up: Callable[..., Found] = socket.getaddrinfo, most: int = MOST_THREADS) -> None:
        self._look_up = look_up
        self._free = asyncio.Semaphore(most)

    async def find(self, host: str, port: int) -> Found:
        """Find the addresses of a host.

        Raises:
            OSError: it has none, or cannot be looked up now.
            UnicodeError: it is no name of a host.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Found] = loop.create_future()
        try:
            threading.Thread(target=self._work, args=(loop, found, host, port), daemon=True).start()
        except RuntimeError:
            # The system has no thread left. The place is for the next caller.
            self._free.release()
            raise OSError(errno.EAGAIN, "there is no thread to look it up") from None
        return await found

    def _work(self, loop: asyncio.AbstractEventLoop, found: asyncio.Future[Found], host: str, port: int) -> None:
        result: Found | Exception
        try:
            result = self._look_up(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except Exception as problem:
            result = problem
        # RuntimeError: the loop is closed, and no one waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._finish, found, result)

    def _finish(self, found: asyncio.Future[Found], result: Found | Exception) -> None:
        self._free.release()
        if found.done():
            # The caller has given up.
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

"""Files in forms, whose size is known only at their end, while fal must know it before their first byte.

A small one is held until its end. Of a large one all is sent in parts that are known to be full, piece by piece. What
can then be left, which is no more than the end of a form may have, is held and sent as the last part.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from starlette.requests import Request

from proxy.http.body_memory import BodyMemory
from proxy.uploads.body import IncomingFile, check_size
from proxy.upstream import files
from proxy.upstream.client import Upstream

#: File stores of the S3 kind take no smaller part than this, but for the last. Files below it are held.
LEAST_PART_BYTES = 5 * 1024 * 1024
#: As the fal clients send them.
PART_BYTES = 10 * 1024 * 1024


async def hold(file: IncomingFile, request: Request, memory: BodyMemory) -> IncomingFile:
    """Hold a file until all of it is there, so that its size is known.

    Raises:
        Overloaded: the bodies that this process holds leave no room for it.
    """
    pieces = []
    async for piece in file.content:
        memory.hold(request.scope, len(piece))
        # A view would keep more than it shows.
        pieces.append(bytes(piece))
    size = sum(map(len, pieces))
    return replace(file, size=size, least=size, content=yield_each(pieces))


async def yield_each(pieces: list[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


async def put_in_parts(upstream: Upstream, url: str, least: int, most: int, content: AsyncIterator[bytes]) -> int:
    """Send a file of at least so many bytes; return how many it had.

    Raises:
        BodyTooLarge: it has more than `most`; fal does not join its parts.
        UpstreamUnavailable, BadUpstream, UpstreamTimeout: fal does not have it, and it can be sent again.
    """
    pieces, etags = _Pieces(content), list[tuple[int, str]]()
    for number, size in enumerate(_part_sizes(least), 1):
        etags.append((number, await files.put_part(upstream, url, number, size, pieces.take(size))))
    rest = await pieces.rest()
    check_size(least + len(rest), most)
    if rest:
        number = len(etags) + 1
        etags.append((number, await files.put_part(upstream, url, number, len(rest), yield_each([rest]))))
    await files.complete(upstream, url, etags)
    return least + len(rest)


def _part_sizes(total: int) -> list[int]:
    """Parts as equal as can be, of 10 to 20 MiB, or one if there is less."""
    count = max(1, total // PART_BYTES)
    return [total // count + (number < total % count) for number in range(count)]


class _Pieces:
    """A content from which so many bytes at a time are taken."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content = content
        self._left = b""

    async def take(self, size: int) -> AsyncGenerator[bytes, None]:
        while size:
            piece = self._left or await anext(self._content)
            taken, self._left = piece[:size], piece[size:]
            size -= len(taken)
            yield taken

    async def rest(self) -> bytes:
        return self._left + b"".join([piece async for piece in self._content])

"""The bytes of a file as they come from the caller: one piece at a time, and not slower than a bad network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from proxy.errors import BadRequest, BodyTooLarge
from proxy.http.bodies import check_encoding
from proxy.http.disconnect import CallerGone
from proxy.numbers import MOST, parse_whole


@dataclass(frozen=True)
class Patience:
    """How slow a caller may be. Only the time that it is waited for counts, not that in which fal takes the bytes.

    Attributes:
        silence_seconds: the longest silence.
        grace_seconds: how long it may be slower than `least_per_second` bytes, on the whole.
    """

    silence_seconds: float = 30.0
    grace_seconds: float = 60.0
    least_per_second: float = 1024.0


def length_of(request: Request, most: int) -> int:
    """How many bytes a body declares to have.

    Raises:
        BadRequest: it does not, or has none.
        BodyTooLarge: more than `most`.
        UnsupportedMediaType: it is packed.
    """
    check_encoding(request)
    declared = request.headers.get("content-length", "")
    size = parse_whole(declared, MOST)
    if size is None:
        raise BadRequest("Send the file with its content-length.")
    if size == 0:
        raise BadRequest("The file is empty.")
    check_size(size, most)
    return size


def announced_type(request: Request, otherwise: str) -> str:
    """The content-type of a request's body, or what stands in for one that is not given.

    Raises:
        BadRequest: there are several.
    """
    types = {value.strip() for value in request.headers.getlist("content-type")}
    if len(types) > 1:
        raise BadRequest("Send the file with one content-type.")
    return types.pop() if types else otherwise


def check_size(size: int, most: int) -> None:
    if size > most:
        raise BodyTooLarge(f"The file is larger than {most} bytes, which this plan allows.")


async def incoming(request: Request, patience: Patience = Patience()) -> AsyncGenerator[bytes, None]:
    """The body of a request, piece by piece; asking for the next only when the last went out keeps memory flat.

    Raises:
        BadRequest: it stopped coming, or comes too slowly.
        CallerGone: the caller hung up in the middle of it.
    """
    stream, loop = request.stream(), asyncio.get_running_loop()
    waited, received = 0.0, 0
    while True:
        asked_at = loop.time()
        try:
            async with asyncio.timeout(patience.silence_seconds):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BadRequest("The file stopped coming; send it again.") from None
        except ClientDisconnect:
            raise CallerGone from None
        waited += loop.time() - asked_at
        received += len(piece)
        if received < (waited - patience.grace_seconds) * patience.least_per_second:
            raise BadRequest("The file comes too slowly; send it again.")
        if piece:
            yield piece


async def peeked(content: AsyncGenerator[bytes, None], size: int) -> tuple[bytes, AsyncGenerator[bytes, None]]:
    """The first `size` bytes, or all if there are fewer, and the whole content, which still begins with them."""
    head: list[bytes] = []
    while sum(map(len, head)) < size and (piece := await anext(content, None)) is not None:
        head.append(piece)

    async def whole() -> AsyncGenerator[bytes, None]:
        while head:
            yield head.pop(0)
        async for piece in content:
            yield piece

    return b"".join(head)[:size], whole()


async def exactly(content: AsyncIterable[bytes], size: int, least: int | None = None) -> AsyncGenerator[bytes, None]:
    """The content, which must have the size that fal expects; or from `least` to `size`, where only these are known.

    Raises:
        BadRequest: it has another; fal does not get what would make it whole.
    """
    seen = 0
    async for piece in content:
        seen += len(piece)
        if seen > size:
            raise BadRequest("The file is longer than was announced.")
        yield piece
    if seen < (size if least is None else least):
        raise BadRequest("The file is shorter than was announced.")

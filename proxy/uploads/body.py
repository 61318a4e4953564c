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
from proxy.uploads.sniffing import OCTETS


@dataclass(frozen=True)
class IncomingFile:
    """A file on its way, in a form or as a body of its own.

    Attributes:
        size: its bytes, or the most that it can have.
        least: the fewest that it can have; as `size` where that is known.
    """

    name: str
    content_type: str
    size: int
    least: int
    content: AsyncGenerator[bytes, None]


@dataclass(frozen=True)
class BodyTimeouts:
    """How slow a caller may be. Only the time spent waiting for it counts, not that in which fal takes the bytes.

    Attributes:
        silence_seconds: the longest silence.
        grace_seconds: how long it may be slower than `least_per_second` bytes, on the whole.
    """

    silence_seconds: float = 30.0
    grace_seconds: float = 60.0
    least_per_second: float = 1024.0


def declared_size(request: Request, most: int) -> int:
    """Return how many bytes a body declares to have.

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


def check_is_whole(request: Request, size: int) -> None:
    """Refuse a piece of a file that says so: stored, it would pass for the file (RFC 9110, section 14.5).

    Raises:
        BadRequest: it is one.
    """
    given = request.headers.getlist("content-range")
    if given and given != [f"bytes 0-{size - 1}/{size}"]:
        raise BadRequest("content-range: send the whole file at once, or begin an upload in parts to send pieces.")


def announced_type(request: Request, otherwise: str) -> str:
    """Return the content-type of a request's body, or what stands in for one that is not given.

    Raises:
        BadRequest: there are several.
    """
    types = {value.strip() for value in request.headers.getlist("content-type")}
    if len(types) > 1:
        raise BadRequest("Send the file with one content-type.")
    return types.pop() if types else otherwise


def body_as_file(request: Request, name: str, most: int) -> IncomingFile:
    """Take a request's whole body as a file.

    Raises:
        BadRequest, BodyTooLarge: its length is missing, or more than `most`.
    """
    size = declared_size(request, most)
    return IncomingFile(name, announced_type(request, OCTETS), size, size, read_pieces(request))


def check_size(size: int, most: int) -> None:
    if size > most:
        raise BodyTooLarge(f"The file is larger than the {most} bytes that this plan allows.")


async def read_pieces(request: Request, timeouts: BodyTimeouts = BodyTimeouts()) -> AsyncGenerator[bytes, None]:
    """Read the body of a request, piece by piece; asking for the next only when the last went out keeps memory flat.

    Raises:
        BadRequest: it stopped coming, or comes too slowly.
        CallerGone: the caller hung up in the middle of it.
    """
    stream, loop = request.stream(), asyncio.get_running_loop()
    waited, received = 0.0, 0
    while True:
        asked_at = loop.time()
        try:
            async with asyncio.timeout(timeouts.silence_seconds):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BadRequest("The file stopped arriving; send it again.") from None
        except ClientDisconnect:
            raise CallerGone from None
        waited += loop.time() - asked_at
        received += len(piece)
        if received < (waited - timeouts.grace_seconds) * timeouts.least_per_second:
            raise BadRequest("The file arrives too slowly; send it again.")
        if piece:
            yield piece


async def enforce_size(
    content: AsyncIterable[bytes], size: int, least: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the content, which must be as long as fal expects; from `least` to `size`, where only these are known.

    Raises:
        BadRequest: it has another; fal does not get what would make it whole.
    """
    seen = 0
    async for piece in content:
        seen += len(piece)
        if seen > size:
            raise BadRequest("The file is longer than announced.")
        yield piece
    if seen < (size if least is None else least):
        raise BadRequest("The file is shorter than announced.")

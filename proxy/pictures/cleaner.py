"""Takes from pictures what they say beside their pixels: each in a process of its own, so many at once."""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import NamedTuple

from proxy.errors import Internal, Overloaded
from proxy.pictures.turns import RETRY_SECONDS, Turns
from proxy.tenants.caller import is_guest_name

#: The types that can be written again, each with Pillow's name of its format.
KINDS = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
}
#: What `decoding.py` exits with for a picture that cannot be written again.
_REFUSED = 3
_COMMAND = (sys.executable, "-I", "-m", "proxy.pictures.decoding")
_log = logging.getLogger(__name__)


class Bounds(NamedTuple):
    """What one picture may take: processor time, memory, and time on a machine that is busy.

    A JPEG or PNG of `decoding.MAX_PIXELS` fits into the memory.
    """

    cpu_seconds: int = 20
    memory_bytes: int = 768 * 1024 * 1024
    seconds: float = 60.0


ONE_PICTURE = Bounds()


class UncleanPicture(Exception):
    """The metadata of a picture cannot be removed. The text says why, to the caller."""


class Wanted(NamedTuple):
    """A picture as it is wanted.

    Attributes:
        form: how its bytes are written: `raw`, `base64` or `percent`; the result is raw, or else in base64.
        max_bytes: the most that the result may have, raw.
        max_pixels: None for any number.
    """

    media_type: str
    form: str
    max_bytes: int
    max_pixels: int | None


class PictureCleaner:
    """Writes pictures again, with their pixels and nothing else.

    Args:
        recognise: gives the media types whose signature the first bytes of a file bear.
    """

    def __init__(
        self, most_at_once: int, recognise: Callable[[bytes], frozenset[str]], bounds: Bounds = ONE_PICTURE
    ) -> None:
        self._bounds = bounds
        self._turns = Turns(most_at_once)
        self._recognise = recognise

    def find_type(self, head: bytes, announced: str) -> str | None:
        """Find the type of the picture that begins so; None for what is no picture.

        Raises:
            UncleanPicture: a picture of this type cannot be written again.
        """
        found = {name for name in self._recognise(head) if name.startswith("image/")}
        if not found and not announced.startswith("image/"):
            return None
        return check_type(announced if announced in found else min(found & KINDS.keys() or found, default=announced))

    async def clean(self, tenant: str, subject: str, data: bytes, wanted: Wanted) -> bytes:
        """Write a picture again. Guests of a tenant get their turns apart from its users.

        Raises:
            UncleanPicture: it cannot be.
            Overloaded: too many pictures are waiting, or the machine is too busy.
            Internal: the process failed.
        """
        async with self._turns.take(f"{tenant}/guests" if is_guest_name(subject) else tenant):
            return await _run(self._bounds, data, wanted)


async def _run(bounds: Bounds, data: bytes, wanted: Wanted) -> bytes:
    order = (KINDS[wanted.media_type], wanted.form, wanted.max_bytes, wanted.max_pixels or 0)
    arguments = map(str, (bounds.cpu_seconds, bounds.memory_bytes, *order))
    # It gets nothing of the environment, which holds secrets.
    process = await asyncio.create_subprocess_exec(*_COMMAND, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={})
    try:
        async with asyncio.timeout(bounds.seconds):
            written, said = await process.communicate(data)
    except TimeoutError:
        raise Overloaded("The picture took too long; send it again.", retry_after=RETRY_SECONDS) from None
    finally:
        await _end(process)
    if process.returncode:
        raise _failure(process.returncode, said)
    return written


def check_type(media_type: str) -> str:
    """Return the type of a picture that can be written again.

    Raises:
        UncleanPicture: it cannot be.
    """
    if media_type not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise UncleanPicture(
            f"This plan removes the metadata of pictures, which is not possible for this type; send one of {known}."
        )
    return media_type


async def _end(process: Process) -> None:
    """Kill a process that still runs, and wait for it."""
    if process.returncode is None:
        process.kill()
        await asyncio.shield(process.wait())


def _failure(code: int, said: bytes) -> Exception:
    if code == _REFUSED:
        return UncleanPicture(f"The metadata of the picture cannot be removed: {said.decode().strip()}.")
    _log.error(
        "picture process failed",
        extra={"log_fields": {"exit_code": code, "said": said.decode(errors="replace")[-300:]}},
    )
    if code < 0:
        # By a signal: for its processor time, or for an error in a decoder.
        return UncleanPicture("The metadata of the picture cannot be removed: it takes too long, or is broken.")
    return Internal("The metadata of the picture could not be removed.")

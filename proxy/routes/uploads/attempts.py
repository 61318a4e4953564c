"""Attempts at a part: the latest one counts, so that a client whose last attempt broke off can try again at once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from proxy.errors import BadRequest, BodyTooLarge, ProxyError
from proxy.stores.base import Part, UploadStore

_log = logging.getLogger(__name__)
Land = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def attempt(uploads: UploadStore, upload_id: str, number: int, size: int) -> AsyncIterator[Land]:
    """The time of one attempt. The block calls what it is given, with fal's etag, once fal has the part.

    Raises:
        BodyTooLarge: with the parts that are there the file would be too large.
        BadRequest: the upload is over, or the part was begun again meanwhile: this attempt counts for nothing.
    """
    part = Part(upload_id, number, secrets.token_hex(16), size)
    fits = await uploads.begin(part)
    if fits is None:
        raise BadRequest("This upload is complete; ask for a new one.")
    if not fits:
        raise BodyTooLarge("With this part the file is larger than this plan allows.")

    async def land(etag: str) -> None:
        if not await uploads.land(part, etag):
            raise BadRequest("This was sent again meanwhile; the later one counts.")

    try:
        yield land
    except BaseException:
        await asyncio.shield(_drop(uploads, part))
        raise


async def _drop(uploads: UploadStore, part: Part) -> None:
    try:
        await uploads.drop(part)
    except ProxyError as problem:
        # The next attempt takes its place.
        _log.warning("a failed attempt at an upload stays noted: %s", problem.code)

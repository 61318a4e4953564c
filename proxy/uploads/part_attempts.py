"""Attempts at a part: the latest one counts, so that a client whose last attempt broke off can try again at once.

An earlier one may still be there, waiting for bytes from a connection that the client has given up. It gives fal no
whole file any more: otherwise it could put its bytes in the place of those whose arrival the client knows.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.auth.authenticator import has_lost_owner
from proxy.errors import BadRequest, BodyTooLarge, NotFound, ProxyError
from proxy.stores.uploads import Part, Upload, UploadStore
from proxy.tenants.directory import Directory

_log = logging.getLogger(__name__)


class PartAttempts:
    """Begins attempts at parts, and ends those that failed."""

    def __init__(self, uploads: UploadStore, directory: Directory) -> None:
        self._uploads = uploads
        self._directory = directory

    @asynccontextmanager
    async def begin(self, upload: Upload, number: int, size: int) -> AsyncIterator[PartAttempt]:
        """Begin an attempt. The block lands it, or it failed.

        Raises:
            BodyTooLarge: with the parts that are there the file would be too large.
            BadRequest: the upload is over.
        """
        part = Part(upload.id, number, secrets.token_hex(16), size)
        fits = await self._uploads.begin(part)
        if fits is None:
            raise BadRequest("This upload is complete; ask for a new one.")
        if not fits:
            raise BodyTooLarge("This part makes the file larger than this plan allows.")
        attempt = PartAttempt(self._uploads, self._directory, upload, part)
        try:
            yield attempt
        except BaseException:
            await asyncio.shield(attempt.drop())
            raise

    async def check_owner(self, upload: Upload) -> None:
        """Make sure that what asked for an upload still counts.

        Raises:
            NotFound: it was revoked meanwhile.
            TenantSuspended: its tenant was suspended meanwhile.
        """
        await _check_owner(upload, self._directory)


class PartAttempt:
    """One attempt that has begun."""

    def __init__(self, uploads: UploadStore, directory: Directory, upload: Upload, part: Part) -> None:
        self._uploads = uploads
        self._directory = directory
        self._upload = upload
        self._part = part

    async def confirm(self) -> None:
        """Make sure that it still counts.

        Raises:
            NotFound: what asked for the upload was revoked meanwhile.
            TenantSuspended: its tenant was suspended meanwhile.
            BadRequest: the upload is over, or the part was begun again.
        """
        await _check_owner(self._upload, self._directory)
        if not await self._uploads.is_current(self._part):
            raise _overtaken_error()

    async def land(self, etag: str) -> None:
        """Note that fal has the part.

        Raises:
            BadRequest: as `confirm`; then this attempt counts for nothing.
        """
        if not await self._uploads.land(self._part, etag):
            raise _overtaken_error()

    async def drop(self) -> None:
        """Note that the attempt failed."""
        try:
            await self._uploads.drop(self._part)
        except ProxyError as problem:
            # The next attempt takes its place.
            _log.warning("failed attempt at an upload not removed", extra={"log_fields": {"problem": problem.code}})


async def _check_owner(upload: Upload, directory: Directory) -> None:
    snapshot = await directory.snapshot()
    snapshot.check_active(upload.tenant)
    if has_lost_owner(upload, snapshot):
        raise no_such_upload()


def no_such_upload() -> NotFound:
    return NotFound("There is no such upload, or it has expired; ask for a new one.")


def _overtaken_error() -> BadRequest:
    return BadRequest("This was sent again meanwhile; the later attempt counts.")

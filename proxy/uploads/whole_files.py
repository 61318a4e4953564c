"""A file that comes to its slot at once."""

from __future__ import annotations

import hashlib
import hmac
from typing import Protocol

from starlette.requests import Request

from proxy.errors import BadRequest, UnsupportedMediaType
from proxy.limits.retries import RetryAllowance
from proxy.stores.uploads import WHOLE, Upload, UploadStore
from proxy.tenants.terms import Terms
from proxy.uploads.body import IncomingFile, announced_type, check_is_whole, declared_size, enforce_size, read_pieces
from proxy.uploads.part_attempts import PartAttempts
from proxy.uploads.sniffing import media_type, sniff
from proxy.uploads.transfer import Content, Transfers, transfer_of
from proxy.uploads.uploaded_pictures import UploadedPictures
from proxy.upstream import files
from proxy.upstream.client import Upstream
from proxy.upstream.relay import BufferedResponse, buffer_response

#: A file up to this size can be sent again when its answer was lost. SHA-256 takes 0.7 ms of processor time a megabyte,
#: as long as passing the bytes on does, so larger files go without.
MAX_REPEATABLE_BYTES = 16 * 1024 * 1024
#: What a file is answered with that fal has already.
_STORED_BEFORE = BufferedResponse(200, {"content-type": "application/json"}, b"{}")


class WholeFiles:
    """Takes files to fal that come at once."""

    def __init__(
        self,
        upstream: Upstream,
        uploads: UploadStore,
        attempts: PartAttempts,
        transfers: Transfers,
        retries: RetryAllowance,
        pictures: UploadedPictures,
    ) -> None:
        self._upstream = upstream
        self._uploads = uploads
        self._attempts = attempts
        self._transfers = transfers
        self._retries = retries
        self._pictures = pictures

    async def receive(self, request: Request, upload: Upload, terms: Terms) -> BufferedResponse:
        """Send the file on, and return the answer of fal's store. A file that fal has already is not sent again.

        Raises:
            BadRequest: the slot is used up, or the body is not as long as it says.
            BodyTooLarge, UnsupportedMediaType, QuotaExceeded: the plan does not allow it.
        """
        size = declared_size(request, upload.max_bytes)
        check_is_whole(request, size)
        if media_type(announced_type(request, upload.content_type)) != media_type(upload.content_type):
            raise UnsupportedMediaType(f"This upload was announced as {upload.content_type}.")
        if upload.size is not None:
            await self._receive_again(request, upload, size, terms.plan.uploads.max_bytes)
            return _STORED_BEFORE
        content = await sniff(read_pieces(request), upload.content_type)
        digest = hashlib.sha256() if size <= MAX_REPEATABLE_BYTES else None
        if digest is not None:
            content = _update(digest, content)
        file = IncomingFile("", upload.content_type, size, size, content)
        # Size and digest are those of what the caller sends, as it may send that again.
        async with self._attempts.begin(upload, WHOLE, size) as attempt:
            file = await self._pictures.clean(request, upload.tenant, upload.subject, terms.plan, file)

            async def send(flow: Content) -> BufferedResponse:
                response = await files.put(self._upstream, upload.upstream_url, upload.content_type, file.size, flow)
                return await buffer_response(response, repeatable=True)

            transfer = transfer_of(request, upload, terms, file.size)
            reply = await self._transfers.run(request, transfer, file.content, send, attempt.confirm)
            await attempt.land(digest.hexdigest() if digest is not None else "")
        return reply

    async def _receive_again(self, request: Request, upload: Upload, size: int, largest: int) -> None:
        """Read a file that fal has already: clients repeat a PUT by themselves (RFC 9110, section 9.2.2).

        Its bytes cost nothing, as often as those of an upload that breaks off.

        Raises:
            BadRequest: it is another file.
        """
        stored = await self._uploads.list_parts(upload.id)
        if size != upload.size or not stored or not stored[0].etag:
            raise _is_complete()
        if self._retries.charge(upload.tenant, upload.subject, size, largest):
            raise _is_complete()
        digest = hashlib.sha256()
        async for _ in _update(digest, enforce_size(read_pieces(request), size)):
            pass
        if not hmac.compare_digest(digest.hexdigest(), stored[0].etag):
            raise _is_complete()


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


async def _update(digest: _Digest, content: Content) -> Content:
    """Yield the content, each piece after it was added to the digest."""
    async for piece in content:
        digest.update(piece)
        yield piece


def _is_complete() -> BadRequest:
    return BadRequest("This upload is complete, with another file; ask for a new one.")

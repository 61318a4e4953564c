"""A file that comes to its slot at once."""

from __future__ import annotations

import hashlib
import hmac
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from proxy.errors import BadRequest, UnsupportedMediaType
from proxy.limits.contents import media_type
from proxy.routes.services import Services
from proxy.routes.uploads.attempts import attempt
from proxy.routes.uploads.incoming import announced_type, exactly, incoming, length_of
from proxy.routes.uploads.relay import Content, Transfer, checked, relay
from proxy.stores.uploads import WHOLE, Upload
from proxy.tenants.terms import Terms
from proxy.upstream import files
from proxy.upstream.relay import pass_on

#: A file up to this size can be sent again when its answer was lost. SHA-256 takes 0.7 ms of processor time a megabyte,
#: as long as passing the bytes on does, so larger files go without.
MAX_REPEATABLE_BYTES = 16 * 1024 * 1024


async def receive_whole(services: Services, request: Request, upload: Upload, terms: Terms) -> Response:
    """Pass the file on; the answer is that of fal's store. The same file again is answered without a second way there.

    Raises:
        BadRequest: the slot is used up, or the body is not as long as it says.
        BodyTooLarge, UnsupportedMediaType, QuotaExceeded: the plan does not allow it.
    """
    size = length_of(request, upload.max_bytes)
    if media_type(announced_type(request, upload.content_type)) != media_type(upload.content_type):
        raise UnsupportedMediaType(f"This upload was announced as {upload.content_type}.")
    if upload.size is not None:
        return await _receive_again(services, request, upload, size, terms.plan.uploads.max_bytes)
    content = await checked(incoming(request), upload.content_type)
    digest = hashlib.sha256() if size <= MAX_REPEATABLE_BYTES else None
    if digest is not None:
        content = _hashed(content, digest)

    async def send(flow: Content) -> Response:
        response = await files.put(services.upstream, upload.upstream_url, upload.content_type, size, flow)
        return await pass_on(response, repeatable=True)

    transfer = Transfer(upload.tenant, upload.subject, terms, size)
    async with attempt(services, upload, WHOLE, size) as begun:
        answer = await relay(services, request, transfer, content, send, begun.confirm)
        await begun.land(digest.hexdigest() if digest is not None else "")
    return answer


async def _receive_again(services: Services, request: Request, upload: Upload, size: int, largest: int) -> Response:
    """Read a file that fal has already, as clients and browsers repeat a PUT by themselves (RFC 9110, section 9.2.2).

    Its bytes cost nothing, as often as those of an upload that breaks off.

    Raises:
        BadRequest: it is another file.
    """
    (part,) = await services.stores.uploads.landed(upload.id)
    if size != upload.size or not part.etag or services.retries.charge(upload.tenant, upload.subject, size, largest):
        raise _is_complete()
    digest = hashlib.sha256()
    async for _ in _hashed(exactly(incoming(request), size), digest):
        pass
    if not hmac.compare_digest(digest.hexdigest(), part.etag):
        raise _is_complete()
    return JSONResponse({})


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


async def _hashed(content: Content, digest: _Digest) -> Content:
    async for piece in content:
        digest.update(piece)
        yield piece


def _is_complete() -> BadRequest:
    return BadRequest("This upload is complete, and this is not the file that was sent; ask for a new one.")

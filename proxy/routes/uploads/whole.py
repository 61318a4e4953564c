"""A file that comes to its slot at once."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from proxy.errors import BadRequest, UnsupportedMediaType
from proxy.policy.contents import media_type
from proxy.policy.terms import Terms
from proxy.routes.services import Services
from proxy.routes.uploads.attempts import attempt
from proxy.routes.uploads.incoming import announced_type, incoming, length_of
from proxy.routes.uploads.relay import Content, Transfer, checked, relay
from proxy.stores.base import WHOLE, Upload
from proxy.upstream import files
from proxy.upstream.relay import pass_on


async def receive_whole(services: Services, request: Request, upload: Upload, terms: Terms) -> Response:
    """Pass the file on; the answer is that of fal's store.

    Raises:
        BadRequest: the slot is used up, or the body is not as long as it says.
        BodyTooLarge, UnsupportedMediaType, QuotaExceeded: the plan does not allow it.
    """
    if upload.size is not None:
        raise BadRequest("This upload is complete; ask for a new one.")
    size = length_of(request, upload.max_bytes)
    if media_type(announced_type(request, upload.content_type)) != media_type(upload.content_type):
        raise UnsupportedMediaType(f"This upload was announced as {upload.content_type}.")
    content = await checked(incoming(request), upload.content_type)

    async def send(flow: Content) -> Response:
        response = await files.put(services.upstream, upload.upstream_url, upload.content_type, size, flow)
        return await pass_on(response, repeatable=True)

    transfer = Transfer(upload.tenant, upload.subject, terms, size)
    async with attempt(services, upload, WHOLE, size) as begun:
        answer = await relay(services, request, transfer, content, send, begun.confirm)
        await begun.land("")
    return answer

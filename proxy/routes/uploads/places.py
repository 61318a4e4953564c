"""A place for one file at fal, asked for with the key and with the operator's wishes."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from proxy.errors import BadUpstream
from proxy.limits.contents import clean_name
from proxy.routes.services import Services
from proxy.targets import Kind, Target
from proxy.tenants.plans import Uploads
from proxy.upstream import headers, wishes
from proxy.upstream.files import UploadDestination
from proxy.upstream.relay import pass_on, read_body


def headers_of_place(request: Request, uploads: Uploads) -> dict[str, str]:
    """What fal gets to know of a file beside its type and name: the plan's wishes, narrowed by the caller's.

    Raises:
        BadRequest: the caller's cannot be read.
    """
    return headers.to_fal(request.headers, streams=False) | wishes.of_upload(request.headers, uploads.expire_seconds)


async def ask_for_place(
    services: Services, sent: dict[str, str], content_type: str, name: str, *, in_parts: bool = False
) -> UploadDestination | Response:
    """A place for a file of this type and name; fal's own answer where it refuses one.

    Args:
        sent: what `headers_of_place` gave.

    Raises:
        BadUpstream: fal's answer names no place that files may go to.
        UpstreamUnavailable, UpstreamTimeout, UpstreamRejectedKey: as for any call.
    """
    target = Target(Kind.UPLOAD_INITIATE_PARTS if in_parts else Kind.UPLOAD_INITIATE)
    document = {"content_type": content_type, "file_name": clean_name(name)}
    response = await services.upstream.call(target, sent, document)
    if not response.is_success:
        return await pass_on(response, repeatable=True)
    return _place(await read_body(response, repeatable=True), services)


def _place(body: bytes, services: Services) -> UploadDestination:
    try:
        document = orjson.loads(body)
        place = UploadDestination(document["file_url"], document["upload_url"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise BadUpstream("fal's answer names no place for the file.", scope="upstream") from None
    if not (services.files.is_fal_url(place.file_url) and services.files.is_fal_url(place.upload_url)):
        raise BadUpstream("fal named a place for the file that is not its own.", scope="upstream")
    return place

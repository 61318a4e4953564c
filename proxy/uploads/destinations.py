"""A destination for one file at fal, asked for with the key and with the operator's wishes."""

from __future__ import annotations

import orjson
from starlette.requests import Request

from proxy.errors import BadUpstream
from proxy.targets import Kind, Target
from proxy.tenants.plans import Uploads
from proxy.uploads.sniffing import clean_name
from proxy.upstream import headers, wishes
from proxy.upstream.client import Upstream
from proxy.upstream.file_urls import FileUrls
from proxy.upstream.files import UploadDestination
from proxy.upstream.relay import BufferedResponse


class DestinationRefused(Exception):
    """fal refuses a destination for a file.

    Attributes:
        reply: fal's own answer.
    """

    def __init__(self, reply: BufferedResponse) -> None:
        super().__init__()
        self.reply = reply


class Destinations:
    """Asks fal where a file may go."""

    def __init__(self, upstream: Upstream, files: FileUrls) -> None:
        self._upstream = upstream
        self._files = files

    async def ask(
        self, sent: dict[str, str], content_type: str, name: str, *, in_parts: bool = False
    ) -> UploadDestination:
        """Ask for the destination of a file of this type and name.

        Args:
            sent: what `destination_headers` gave.

        Raises:
            DestinationRefused: fal refuses one.
            BadUpstream: fal's answer names no destination that files may go to.
            UpstreamUnavailable, UpstreamTimeout, UpstreamRejectedKey: as for any call.
        """
        target = Target(Kind.UPLOAD_INITIATE_PARTS if in_parts else Kind.UPLOAD_INITIATE)
        document = {"content_type": content_type, "file_name": clean_name(name)}
        reply = await self._upstream.fetch(target, sent, document)
        if not 200 <= reply.status < 300:
            raise DestinationRefused(reply)
        return self._parse(reply.body)

    def _parse(self, body: bytes) -> UploadDestination:
        try:
            document = orjson.loads(body)
            found = UploadDestination(document["file_url"], document["upload_url"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise BadUpstream("fal's answer has no URL for the file.", scope="upstream") from None
        if not (self._files.is_fal_url(found.file_url) and self._files.is_fal_url(found.upload_url)):
            raise BadUpstream("fal returned a URL for the file that is not fal's own.", scope="upstream")
        return found


def destination_headers(request: Request, uploads: Uploads) -> dict[str, str]:
    """Return what fal gets to know of a file beside its type and name: the plan's wishes, narrowed by the caller's.

    Raises:
        BadRequest: the caller's cannot be read.
    """
    given = request.scope["headers"]
    return headers.to_fal(given, streams=False) | wishes.of_upload(given, uploads.expire_seconds)

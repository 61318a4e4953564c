"""A file that comes without a slot: its destination is asked for when its first bytes are there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request

from proxy.auth.authenticator import Authenticator
from proxy.http.body_memory import BodyMemory
from proxy.limits.accounts import payer_of
from proxy.tenants.caller import Caller
from proxy.tenants.plans import Uploads
from proxy.uploads.body import IncomingFile, check_size
from proxy.uploads.destinations import Destinations, destination_headers
from proxy.uploads.sniffing import HEAD_BYTES, allowed_type, guess_type, is_unspecific, peek, sniff
from proxy.uploads.transfer import Content, Transfer, Transfers
from proxy.uploads.unmeasured import LEAST_PART_BYTES, hold, put_in_parts
from proxy.uploads.uploaded_pictures import UploadedPictures
from proxy.upstream import files
from proxy.upstream.client import Upstream
from proxy.upstream.relay import read_body


@dataclass(frozen=True)
class StoredFile:
    """A file that fal has."""

    url: str
    content_type: str
    size: int


class NewFiles:
    """Takes files to destinations of their own."""

    def __init__(
        self,
        upstream: Upstream,
        destinations: Destinations,
        transfers: Transfers,
        authenticator: Authenticator,
        body_memory: BodyMemory,
        pictures: UploadedPictures,
    ) -> None:
        self._upstream = upstream
        self._destinations = destinations
        self._transfers = transfers
        self._authenticator = authenticator
        self._body_memory = body_memory
        self._pictures = pictures

    async def store(self, request: Request, caller: Caller, file: IncomingFile) -> StoredFile:
        """Send a file to a destination of its own.

        Raises:
            DestinationRefused: fal refuses a destination.
            UnsupportedMediaType, BodyTooLarge, QuotaExceeded: the plan does not allow it.
            BadRequest: it is not as long as was said, or a wish for it cannot be read.
            Unauthenticated: the caller's credential was revoked while the file came; fal does not get the end of it.
        """
        uploads = caller.plan.uploads
        sent = destination_headers(request, uploads)
        file = await _find_type(file, uploads)
        content_type = allowed_type(file.content_type, uploads)
        file = replace(file, content=await sniff(file.content, content_type))
        file = await self._pictures.clean(request, caller.tenant.id, caller.subject, caller.plan, file)
        if file.least < min(file.size, LEAST_PART_BYTES):
            file = await hold(file, request, self._body_memory)
        check_size(file.least, uploads.max_bytes)
        is_measured = file.least == file.size

        async def send(flow: Content) -> StoredFile:
            destination = await self._destinations.ask(sent, content_type, file.name, in_parts=not is_measured)
            url = destination.upload_url
            if is_measured:
                response = await files.put(self._upstream, url, content_type, file.size, flow)
                await read_body(response, repeatable=True)
                return StoredFile(destination.file_url, content_type, file.size)
            size = await put_in_parts(self._upstream, url, file.least, uploads.max_bytes, flow)
            return StoredFile(destination.file_url, content_type, size)

        transfer = Transfer(payer_of(caller, request.scope["client"]), caller.terms, file.size, file.least)
        confirm = partial(self._authenticator.confirm, caller)
        return await self._transfers.run(request, transfer, file.content, send, confirm)


async def _find_type(file: IncomingFile, uploads: Uploads) -> IncomingFile:
    """Give a file that came without a type that of its first bytes: browsers know no type for many files."""
    if not is_unspecific(file.content_type):
        return file
    head, content = await peek(file.content, HEAD_BYTES)
    return replace(file, content_type=guess_type(head, uploads) or file.content_type, content=content)

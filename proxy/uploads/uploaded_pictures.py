"""Uploaded pictures: held until they are whole, and sent on without their metadata."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request

from proxy.errors import UnsupportedMediaType
from proxy.http.body_memory import BodyMemory
from proxy.http.disconnect import cancel_on_disconnect, disconnect_of
from proxy.pictures.cleaner import PictureCleaner, UncleanPicture, Wanted, check_type
from proxy.tenants.plans import Plan
from proxy.uploads.body import IncomingFile, check_size, enforce_size
from proxy.uploads.sniffing import HEAD_BYTES, OCTETS, media_type, peek
from proxy.uploads.unmeasured import hold, yield_each


class UploadedPictures:
    """Removes the metadata of pictures on their way to fal."""

    def __init__(self, cleaner: PictureCleaner, memory: BodyMemory) -> None:
        self._cleaner = cleaner
        self._memory = memory

    async def clean(self, request: Request, tenant: str, subject: str, plan: Plan, file: IncomingFile) -> IncomingFile:
        """Return the file as fal is to get it. What is no picture stays as it is, and is not held.

        Raises:
            UnsupportedMediaType: its metadata cannot be removed.
            BodyTooLarge, BadRequest: it is too large, or not as long as was said.
            Overloaded, Internal: as `PictureCleaner.clean`; or the process holds too many bytes.
            CallerGone: the caller hung up.
        """
        if not plan.strip_metadata:
            return file
        head, content = await peek(file.content, HEAD_BYTES)
        try:
            found = self._cleaner.find_type(head, media_type(file.content_type))
            if found is None:
                return replace(file, content=content)
            whole = replace(file, content=enforce_size(content, file.size, file.least))
            held = await hold(whole, request, self._memory)
            check_size(held.size, plan.uploads.max_bytes)
            data = b"".join([piece async for piece in held.content])
            wanted = Wanted(found, "raw", plan.uploads.max_bytes, plan.max_pixels)
            cleaning = self._cleaner.clean(tenant, subject, data, wanted)
            written = await cancel_on_disconnect(disconnect_of(request.scope, request.receive), cleaning)
        except UncleanPicture as problem:
            raise UnsupportedMediaType(str(problem)) from None
        return replace(file, size=len(written), least=len(written), content=yield_each([written]))


def check_can_be_cleaned(plan: Plan, content_type: str, *, in_parts: bool = False) -> None:
    """Make sure, before a file comes, that what its plan says of pictures can be done.

    Raises:
        UnsupportedMediaType: the metadata of pictures of this type, or of any in parts, cannot be removed.
    """
    if not plan.strip_metadata:
        return
    if in_parts and (content_type.startswith("image/") or content_type == OCTETS):
        raise UnsupportedMediaType("This plan removes the metadata of pictures: send this file at once, not in parts.")
    try:
        if content_type.startswith("image/"):
            check_type(content_type)
    except UncleanPicture as problem:
        raise UnsupportedMediaType(str(problem)) from None

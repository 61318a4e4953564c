"""A file that comes to its slot in parts, in any order, and is joined when they are all there."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from proxy.errors import BadRequest
from proxy.http.bodies import read_form
from proxy.numbers import parse_whole
from proxy.stores.uploads import Upload, UploadStore
from proxy.tenants.strict import WITHOUT_POINT
from proxy.tenants.terms import Terms
from proxy.uploads.body import declared_size, read_pieces
from proxy.uploads.part_attempts import PartAttempts
from proxy.uploads.sniffing import sniff
from proxy.uploads.transfer import Content, Transfers, transfer_of
from proxy.uploads.uploaded_pictures import check_can_be_cleaned
from proxy.upstream import files
from proxy.upstream.client import Upstream

MOST_PARTS = 10_000
#: The list of all parts, each with its number and etag.
MOST_LIST_BYTES = 4 * 1024 * 1024
#: The clients send 10 MiB.
MAX_PART_BYTES = 100 * 1024 * 1024
Number = Annotated[int, Field(ge=1, le=MOST_PARTS), WITHOUT_POINT]


class NamedPart(BaseModel):
    """A part as clients name it when they complete an upload."""

    model_config = ConfigDict(extra="ignore", strict=True)
    partNumber: Number
    etag: str = Field(min_length=1, max_length=files.MAX_ETAG_LENGTH)


class Complete(BaseModel):
    """What the clients send to have the parts joined."""

    model_config = ConfigDict(extra="ignore")
    parts: list[NamedPart] = Field(min_length=1, max_length=MOST_PARTS)


class Parts:
    """Takes the parts of files to fal, and has them joined."""

    def __init__(self, upstream: Upstream, uploads: UploadStore, attempts: PartAttempts, transfers: Transfers) -> None:
        self._upstream = upstream
        self._uploads = uploads
        self._attempts = attempts
        self._transfers = transfers

    async def receive(self, request: Request, upload: Upload, terms: Terms, number: int) -> str:
        """Send one part on; return its etag.

        Raises:
            BadRequest: the upload is complete, or the body is not as long as it says.
            BodyTooLarge, UnsupportedMediaType, QuotaExceeded: the plan does not allow it.
        """
        if upload.size is not None:
            raise BadRequest("This upload is complete; ask for a new one.")
        # The plan may have changed since the upload began.
        check_can_be_cleaned(terms.plan, upload.content_type, in_parts=True)
        size = declared_size(request, min(upload.max_bytes, MAX_PART_BYTES))
        content: Content = read_pieces(request)
        if number == 1:
            # The first part begins as the file does, and without it there is no file.
            content = await sniff(content, upload.content_type)

        async def send(flow: Content) -> str:
            return await files.put_part(self._upstream, upload.upstream_url, number, size, flow)

        transfer = transfer_of(request, upload, terms, size)
        async with self._attempts.begin(upload, number, size) as attempt:
            etag = await self._transfers.run(request, transfer, content, send, attempt.confirm)
            await attempt.land(etag)
        return etag

    async def complete(self, request: Request, upload: Upload) -> None:
        """Have fal join the parts that a request names. Asked again, it does nothing.

        Raises:
            BadRequest: the parts that are named are not those that were sent.
            NotFound, TenantSuspended: what asked for the upload ended while the request came.
        """
        named = {part.partNumber: part.etag for part in await _read_named(request)}
        await self._attempts.check_owner(upload)
        landed = await self._uploads.list_parts(upload.id)
        _compare(named, {part.number: part.etag or "" for part in landed})
        if upload.size is None:
            await files.complete(self._upstream, upload.upstream_url, sorted(named.items()))
            await self._uploads.finish(upload.id, sum(part.size for part in landed))


def part_number(text: str) -> int:
    """Read the number in a part's path.

    Raises:
        BadRequest: no part has that number.
    """
    number = parse_whole(text, MOST_PARTS, least=1)
    if number is None or len(text) > len(str(MOST_PARTS)):
        raise BadRequest(f"Number the parts from 1 to {MOST_PARTS}.")
    return number


async def _read_named(request: Request) -> list[NamedPart]:
    parts = (await read_form(request, Complete, MOST_LIST_BYTES)).parts
    if len({part.partNumber for part in parts}) != len(parts):
        raise BadRequest("parts: a part is listed twice.")
    return parts


def _compare(named: dict[int, str], landed: dict[int, str]) -> None:
    for number in range(1, max(*named, *landed, 1) + 1):
        if number not in landed:
            raise BadRequest(f"Part {number} has not arrived; send it, then complete the upload.")
        if named.get(number) != landed[number]:
            what = "is not listed" if number not in named else "has another etag"
            raise BadRequest(f"parts: part {number} {what}; list every part with the etag of its own answer.")

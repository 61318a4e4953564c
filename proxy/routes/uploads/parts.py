"""A file that comes to its slot in parts, in any order, and is joined when they are all there."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from proxy.errors import BadRequest
from proxy.http.bodies import read_form
from proxy.numbers import parse_whole
from proxy.routes.services import Services
from proxy.routes.uploads.attempts import attempt
from proxy.routes.uploads.incoming import incoming, length_of
from proxy.routes.uploads.relay import Content, Transfer, checked, relay
from proxy.stores.uploads import Upload
from proxy.tenants.terms import Terms
from proxy.upstream import files

MOST_PARTS = 10_000
#: The list of all parts, each with its number and etag.
MOST_LIST_BYTES = 4 * 1024 * 1024
#: The clients send 10 MiB.
MAX_PART_BYTES = 100 * 1024 * 1024
Number = Annotated[int, Field(ge=1, le=MOST_PARTS)]


class NamedPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    partNumber: Number
    etag: str = Field(min_length=1, max_length=files.MAX_ETAG_LENGTH)


class Complete(BaseModel):
    """What the clients send to have the parts joined."""

    model_config = ConfigDict(extra="ignore")
    parts: list[NamedPart] = Field(min_length=1, max_length=MOST_PARTS)


async def receive_part(services: Services, request: Request, upload: Upload, terms: Terms) -> Response:
    """Pass one part on. Its etag is in the answer's body, for the JavaScript client, and a header, for Python's.

    Raises:
        BadRequest: no such part can be, the upload is complete, or the body is not as long as it says.
        BodyTooLarge, UnsupportedMediaType, QuotaExceeded: the plan does not allow it.
    """
    number = part_number(request.path_params["part"])
    if upload.size is not None:
        raise BadRequest("This upload is complete; ask for a new one.")
    size = length_of(request, min(upload.max_bytes, MAX_PART_BYTES))
    content: Content = incoming(request)
    if number == 1:
        # The first part begins as the file does, and without it there is no file.
        content = await checked(content, upload.content_type)

    async def send(flow: Content) -> str:
        return await files.put_part(services.upstream, upload.upstream_url, number, size, flow)

    transfer = Transfer(upload.tenant, upload.subject, terms, size)
    async with attempt(services, upload, number, size) as begun:
        etag = await relay(services, request, transfer, content, send, begun.confirm)
        await begun.land(etag)
    return JSONResponse({"partNumber": number, "etag": etag}, headers={"etag": etag})


def part_number(text: str) -> int:
    """The number in a part's path.

    Raises:
        BadRequest: no part has that number.
    """
    number = parse_whole(text, MOST_PARTS, least=1)
    if number is None or len(text) > len(str(MOST_PARTS)):
        raise BadRequest(f"Parts are numbered from 1 to {MOST_PARTS}.")
    return number


async def complete(services: Services, request: Request, upload: Upload, url: str) -> Response:
    """Have fal join the parts; the answer names the file by `url`. Asked again, it says the same again.

    Raises:
        BadRequest: the parts that are named are not those that were sent.
    """
    named = {part.partNumber: part.etag for part in await _named(request)}
    landed = await services.stores.uploads.landed(upload.id)
    _compare(named, {part.number: part.etag or "" for part in landed})
    if upload.size is None:
        await files.complete(services.upstream, upload.upstream_url, sorted(named.items()))
        await services.stores.uploads.finish(upload.id, sum(part.size for part in landed))
    return JSONResponse({"access_url": url})


async def _named(request: Request) -> list[NamedPart]:
    parts = (await read_form(request, Complete, MOST_LIST_BYTES)).parts
    if len({part.partNumber for part in parts}) != len(parts):
        raise BadRequest("parts: a part is named twice.")
    return parts


def _compare(named: dict[int, str], landed: dict[int, str]) -> None:
    for number in range(1, max(*named, *landed, 1) + 1):
        if number not in landed:
            raise BadRequest(f"Part {number} has not arrived; send it, then complete the upload.")
        if named.get(number) != landed[number]:
            what = "is not named" if number not in named else "has another etag"
            raise BadRequest(f"parts: part {number} {what}; name every part with the etag of its own answer.")

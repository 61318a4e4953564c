"""`POST /v1/uploads`: one call that takes a file, as the body or as the field `file` of a form, and tells its URL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.errors import BadRequest
from proxy.limits.contents import OCTETS, allowed_type, media_type
from proxy.routes.queries import known_query
from proxy.routes.services import Services
from proxy.routes.uploads.endpoints import file_route, note_owner
from proxy.routes.uploads.forms import FormFile, file_of
from proxy.routes.uploads.incoming import announced_type, check_size, incoming, length_of
from proxy.routes.uploads.places import ask_for_place, headers_of_place
from proxy.routes.uploads.relay import Content, Transfer, checked, relay
from proxy.routes.uploads.unmeasured import LEAST_PART_BYTES, hold, put_in_parts
from proxy.tenants.caller import Caller
from proxy.upstream import files
from proxy.upstream.relay import read_body

PATH = "/v1/uploads"
#: What a form has beside its file.
_FORM_BYTES = 64 * 1024


def routes(services: Services) -> list[Route]:
    async def upload(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        note_owner(request, caller.tenant.id, caller.subject)
        query = known_query(request, "file_name")
        await services.admission.admit_upload(caller, request.scope)
        most = caller.plan.uploads.max_bytes
        announced = announced_type(request, OCTETS)
        if media_type(announced) == "multipart/form-data":
            if query:
                raise BadRequest("In a form the file's name stands with the file, not in the query.")
            length = length_of(request, most + _FORM_BYTES)
            file = await file_of(incoming(request), announced, length)
        else:
            file = raw_file(request, query.get("file_name", "file"), most)
        stored = await send_new(services, request, caller, file)
        if isinstance(stored, Response):
            return stored
        document = {"url": stored.url, "content_type": media_type(file.content_type), "size": stored.size}
        return JSONResponse(document, 201)

    return [file_route(PATH, upload, "POST")]


def raw_file(request: Request, name: str, most: int) -> FormFile:
    """The file that is a request's whole body.

    Raises:
        BadRequest, BodyTooLarge: its length is missing, or more than `most`.
    """
    size = length_of(request, most)
    return FormFile(name, announced_type(request, OCTETS), size, size, incoming(request))


@dataclass(frozen=True)
class StoredFile:
    """A file that fal has."""

    url: str
    size: int


async def send_new(services: Services, request: Request, caller: Caller, file: FormFile) -> StoredFile | Response:
    """Send a file to a place of its own; fal's own answer where it refuses a place.

    Raises:
        UnsupportedMediaType, BodyTooLarge, QuotaExceeded: the plan does not allow it.
        BadRequest: it is not as long as was said, or a wish for it cannot be read.
        Unauthenticated: the caller's credential was revoked while the file came; fal does not get the end of it.
    """
    uploads = caller.plan.uploads
    sent = headers_of_place(request, uploads)
    content_type = allowed_type(file.content_type, uploads)
    file = replace(file, content=await checked(file.content, content_type))
    if file.least < min(file.size, LEAST_PART_BYTES):
        file = await hold(file, request, services.body_memory)
    check_size(file.least, uploads.max_bytes)
    is_measured = file.least == file.size

    async def send(flow: Content) -> StoredFile:
        place = await ask_for_place(services, sent, content_type, file.name, in_parts=not is_measured)
        if isinstance(place, Response):
            raise _NoPlace(place)
        if is_measured:
            response = await files.put(services.upstream, place.upload_url, content_type, file.size, flow)
            await read_body(response, repeatable=True)
            return StoredFile(place.file_url, file.size)
        size = await put_in_parts(services.upstream, place.upload_url, file.least, uploads.max_bytes, flow)
        return StoredFile(place.file_url, size)

    transfer = Transfer(caller.tenant.id, caller.subject, caller.terms, file.size, file.least)
    try:
        confirm = partial(services.authenticator.confirm, caller)
        return await relay(services, request, transfer, file.content, send, confirm)
    except _NoPlace as refusal:
        return refusal.answer


class _NoPlace(Exception):
    """fal refused a place for the file."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer

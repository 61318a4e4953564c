"""`POST /v1/uploads`: one call that takes a file, as the body or as the field `file` of a form, and tells its URL."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.callers import Caller
from proxy.errors import BadRequest
from proxy.policy.contents import OCTETS, allowed_type, media_type
from proxy.policy.ratelimit import network_of
from proxy.routes.queries import known_query
from proxy.routes.services import Services
from proxy.routes.uploads.endpoints import file_route, note_owner
from proxy.routes.uploads.forms import FormFile, file_of
from proxy.routes.uploads.incoming import check_size, incoming, length_of
from proxy.routes.uploads.places import ask_for_place
from proxy.routes.uploads.relay import Content, Transfer, checked, relay
from proxy.targets import Kind, Target
from proxy.upstream import files
from proxy.upstream.relay import read_whole

PATH = "/v1/uploads"
#: What a form has beside its file.
_FORM_BYTES = 64 * 1024


def routes(services: Services) -> list[Route]:
    async def upload(request: Request) -> Response:
        caller = await services.authenticator.authenticate(request)
        note_owner(request, caller.tenant.id, caller.subject)
        query = known_query(request, "file_name")
        admission = await services.gate.admit(caller, Target(Kind.UPLOAD_INITIATE), network_of(request), no_input)
        most = caller.plan.uploads.max_bytes
        if media_type(request.headers.get("content-type", "")) == "multipart/form-data":
            if query:
                raise BadRequest("In a form the file's name stands with the file, not in the query.")
            length = length_of(request, most + _FORM_BYTES)
            file = await file_of(incoming(request), request.headers["content-type"], length)
            check_size(file.size, most)
        else:
            file = raw_file(request, query.get("file_name", "file"), most)
        url = await send_new(services, request, caller, file)
        if isinstance(url, Response):
            return url
        told = {"url": url, "content_type": media_type(file.content_type), "size": file.size}
        return JSONResponse(told, 201, admission.allowance.headers())

    return [file_route(PATH, upload, "POST")]


def raw_file(request: Request, name: str, most: int) -> FormFile:
    """The file that is a request's whole body.

    Raises:
        BadRequest, BodyTooLarge: its length is missing, or more than `most`.
    """
    return FormFile(name, request.headers.get("content-type", OCTETS), length_of(request, most), incoming(request))


async def send_new(services: Services, request: Request, caller: Caller, file: FormFile) -> str | Response:
    """Send a file to a place of its own: its URL at fal, or fal's own answer where it refuses a place.

    Raises:
        UnsupportedMediaType, QuotaExceeded: the plan does not allow it.
        BadRequest: it is not as long as was said.
    """
    uploads = caller.plan.uploads
    content_type = allowed_type(file.content_type, uploads)
    content = await checked(file.content, content_type)

    async def send(flow: Content) -> str:
        place = await ask_for_place(services, request, uploads, content_type, file.name)
        if isinstance(place, Response):
            raise _NoPlace(place)
        response = await files.put(services.upstream, place.upload_url, content_type, file.size, flow)
        await read_whole(response, repeatable=True)
        return place.file_url

    transfer = Transfer(caller.tenant.id, caller.subject, caller.terms, file.size)
    try:
        return await relay(services, request, transfer, content, send)
    except _NoPlace as refusal:
        return refusal.answer


class _NoPlace(Exception):
    """fal refused a place for the file."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


async def no_input() -> None:
    """An upload has none: its file is read later."""

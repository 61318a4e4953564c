"""`POST /v1/uploads`: one call that takes a file, as the body or as the field `file` of a form, and returns its URL."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.calls.admission import Admission
from proxy.errors import BadRequest
from proxy.routes.queries import known_query
from proxy.routes.uploads.file_route import file_route, note_caller
from proxy.uploads.body import IncomingFile, announced_type, body_as_file, declared_size, read_pieces
from proxy.uploads.multipart import parse_form
from proxy.uploads.new_files import NewFiles
from proxy.uploads.sniffing import OCTETS, media_type

PATH = "/v1/uploads"
#: What a form has beside its file.
_FORM_BYTES = 64 * 1024


class NativeUploads:
    """The upload of the native API."""

    def __init__(self, authenticator: Authenticator, admission: Admission, new_files: NewFiles) -> None:
        self._authenticator = authenticator
        self._admission = admission
        self._new_files = new_files

    def routes(self) -> list[Route]:
        return [file_route(PATH, self.upload, "POST")]

    async def upload(self, request: Request) -> Response:
        caller = await self._authenticator.authenticate(request)
        note_caller(request, caller)
        query = known_query(request, "file_name")
        await self._admission.admit_upload(caller, request.scope)
        file = await _read_file(request, query, caller.plan.uploads.max_bytes)
        stored = await self._new_files.store(request, caller, file)
        document = {"url": stored.url, "content_type": stored.content_type, "size": stored.size}
        return JSONResponse(document, 201)


async def _read_file(request: Request, query: dict[str, str], most: int) -> IncomingFile:
    """Take the file of a request, from its body or from a form."""
    announced = announced_type(request, OCTETS)
    if media_type(announced) != "multipart/form-data":
        return body_as_file(request, query.get("file_name", "file"), most)
    if query:
        raise BadRequest("In a form, give the file's name with the file, not in the query.")
    length = declared_size(request, most + _FORM_BYTES)
    return await parse_form(read_pieces(request), announced, length)

"""The host form of fal's CDN, as the Python client uploads: with a short token, at once or in parts.

The token is one of our own: fal's would open every file of the account. What comes in goes to signed URLs, as with
every other upload.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.calls.admission import Admission
from proxy.http.bodies import check_encoding
from proxy.http.cdn_targets import IS_CDN_TARGET
from proxy.limits.rates import RateLimiter
from proxy.routes.uploads.file_route import file_route, note_caller, reply_of
from proxy.routes.uploads.slots import part_reply
from proxy.stores.uploads import Upload
from proxy.tenants.caller import Caller
from proxy.tenants.terms import Terms
from proxy.uploads.body import announced_type, body_as_file
from proxy.uploads.destinations import DestinationRefused, Destinations, destination_headers
from proxy.uploads.new_files import NewFiles
from proxy.uploads.part_attempts import no_such_upload
from proxy.uploads.parts import Parts, part_number
from proxy.uploads.slots import Slots
from proxy.uploads.sniffing import OCTETS, allowed_type
from proxy.uploads.uploaded_pictures import check_can_be_cleaned
from proxy.upstream.file_urls import CDN_PATH, FileUrls

NAME_HEADER = "x-fal-file-name"
_SLOT = CDN_PATH + "/{path:path}/multipart/{slot}"


class CdnRoutes:
    """Take files as fal's CDN does. The credential is an upload token."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        admission: Admission,
        limiter: RateLimiter,
        destinations: Destinations,
        slots: Slots,
        parts: Parts,
        new_files: NewFiles,
        files: FileUrls,
        public_url: str,
    ) -> None:
        self._authenticator = authenticator
        self._admission = admission
        self._limiter = limiter
        self._destinations = destinations
        self._slots = slots
        self._parts = parts
        self._new_files = new_files
        self._files = files
        self._public_url = public_url

    def routes(self) -> list[Route]:
        return [
            file_route(f"{CDN_PATH}/files/upload", self.upload, "POST"),
            Route(f"{CDN_PATH}/files/upload/multipart", self.begin, methods=["POST"]),
            Route(f"{_SLOT}/complete", self.complete, methods=["POST"]),
            file_route(f"{_SLOT}/{{part}}", self.put_part, "PUT"),
        ]

    async def upload(self, request: Request) -> Response:
        caller = await self._admit(request)
        file = body_as_file(request, _name(request), caller.plan.uploads.max_bytes)
        stored = await self._new_files.store(request, caller, file)
        return JSONResponse({"access_url": stored.url})

    async def begin(self, request: Request) -> Response:
        """Open a slot for a file in parts."""
        caller = await self._admit(request)
        check_encoding(request)
        uploads = caller.plan.uploads
        content_type = allowed_type(announced_type(request, OCTETS), uploads)
        check_can_be_cleaned(caller.plan, content_type, in_parts=True)
        sent = destination_headers(request, uploads)
        try:
            destination = await self._destinations.ask(sent, content_type, _name(request), in_parts=True)
        except DestinationRefused as refusal:
            return reply_of(refusal.reply)
        slot = await self._slots.open(caller, destination, content_type, in_parts=True)
        is_target = request.scope["state"].get(IS_CDN_TARGET)
        url = destination.file_url if is_target else self._files.to_proxy(destination.file_url)
        return JSONResponse({"access_url": url, "uploadId": slot})

    async def put_part(self, request: Request) -> Response:
        upload, terms, _ = await self._find(request)
        number = part_number(request.path_params["part"])
        return part_reply(number, await self._parts.receive(request, upload, terms, number))

    async def complete(self, request: Request) -> Response:
        upload, _, url = await self._find(request)
        await self._parts.complete(request, upload)
        return JSONResponse({"access_url": url})

    async def _admit(self, request: Request) -> Caller:
        caller = await self._authenticator.authenticate_upload(request)
        note_caller(request, caller)
        await self._admission.admit_upload(caller, request.scope)
        return caller

    async def _find(self, request: Request) -> tuple[Upload, Terms, str]:
        """Find the caller's own upload that a path names, its terms, and the URL of its file for this caller."""
        caller = await self._authenticator.authenticate_upload(request)
        note_caller(request, caller)
        upload, terms = await self._slots.find(request.path_params["slot"])
        url = f"{self._public_url}{CDN_PATH}/{request.path_params['path']}"
        is_own = (caller.tenant.id, caller.subject) == (upload.tenant, upload.subject)
        if not is_own or not upload.in_parts or url != self._files.to_proxy(upload.file_url):
            raise no_such_upload()
        await self._limiter.hit_slot(upload, terms, request.scope)
        return upload, terms, url


def _name(request: Request) -> str:
    return request.headers.get(NAME_HEADER, "file")

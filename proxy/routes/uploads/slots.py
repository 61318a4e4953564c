"""`/uploads/{slot}`: where clients send a file for which they asked for an upload slot."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.authenticator import Authenticator
from proxy.errors import BadRequest
from proxy.limits.rates import RateLimiter
from proxy.routes.uploads.file_route import file_route, note_owner, reply_of
from proxy.stores.uploads import Upload
from proxy.tenants.terms import Terms
from proxy.uploads.part_attempts import no_such_upload
from proxy.uploads.parts import Parts, part_number
from proxy.uploads.slots import Slots
from proxy.uploads.whole_files import WholeFiles

PREFIX = "/uploads/"


class SlotRoutes:
    """Take files to their slots. The slot's id in the path is the credential."""

    def __init__(
        self,
        authenticator: Authenticator,
        limiter: RateLimiter,
        slots: Slots,
        whole_files: WholeFiles,
        parts: Parts,
    ) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._slots = slots
        self._whole_files = whole_files
        self._parts = parts

    def routes(self) -> list[Route]:
        return [
            file_route(PREFIX + "{slot}", self.put, "PUT"),
            Route(PREFIX + "{slot}/complete", self.complete, methods=["POST"]),
            file_route(PREFIX + "{slot}/{part}", self.put_part, "PUT"),
        ]

    async def put(self, request: Request) -> Response:
        upload, terms = await self._find(request, in_parts=False)
        return reply_of(await self._whole_files.receive(request, upload, terms))

    async def put_part(self, request: Request) -> Response:
        upload, terms = await self._find(request, in_parts=True)
        number = part_number(request.path_params["part"])
        return part_reply(number, await self._parts.receive(request, upload, terms, number))

    async def complete(self, request: Request) -> Response:
        upload, _ = await self._find(request, in_parts=True)
        await self._parts.complete(request, upload)
        return JSONResponse({"access_url": upload.file_url})

    async def _find(self, request: Request, *, in_parts: bool) -> tuple[Upload, Terms]:
        upload, terms = await self._slots.find(request.path_params["slot"])
        note_owner(request, upload)
        if not await self._authenticator.may_send(request, upload):
            raise no_such_upload()
        await self._limiter.hit_slot(upload, terms, request.scope)
        if upload.in_parts is not in_parts:
            way = "in parts: PUT {upload_url}/1 and so on" if upload.in_parts else "at once: PUT {upload_url}"
            raise BadRequest(f"This upload was begun to be sent {way}.")
        return upload, terms


def part_reply(number: int, etag: str) -> JSONResponse:
    """Make the answer to a part: its etag in the body, for the JavaScript client, and in a header, for Python's."""
    return JSONResponse({"partNumber": number, "etag": etag}, headers={"etag": etag})

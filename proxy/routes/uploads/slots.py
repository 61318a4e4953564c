"""Slots: what a client asks for and then sends its file to, at once or in parts.

Clients send the file without any credential, as they would to fal's signed URL; so the slot's id is the credential. It
is kept only as a hash, and never logged; fal's signed URL is kept sealed by it.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.errors import BadRequest
from proxy.http.bodies import read_form
from proxy.limits.contents import allowed_type
from proxy.routes.services import Services
from proxy.routes.uploads import parts
from proxy.routes.uploads.endpoints import file_route, no_such_upload, note_owner
from proxy.routes.uploads.places import ask_for_place, headers_of_place
from proxy.routes.uploads.sealing import seal, unseal
from proxy.routes.uploads.whole import receive_whole
from proxy.stores.uploads import Upload
from proxy.tenants.caller import Caller, is_guest_name
from proxy.tenants.terms import Terms
from proxy.upstream.files import UploadDestination

PREFIX = "/uploads/"
SLOT_SECONDS = 900.0
#: Many parts take longer.
PARTS_SECONDS = 3600.0
_log = logging.getLogger(__name__)


class Initiate(BaseModel):
    """What the fal clients send to ask for a slot."""

    model_config = ConfigDict(extra="ignore")
    content_type: str = Field(min_length=1, max_length=200)
    file_name: str = Field(default="file", max_length=1000)


async def initiate(services: Services, request: Request, caller: Caller, *, in_parts: bool) -> Response:
    """Open a slot at fal and give the caller one of our own that leads there.

    Raises:
        UnsupportedMediaType: the plan does not allow such files.
        BadUpstream: fal's answer names no place that files may go to.
    """
    wanted = await read_form(request, Initiate)
    uploads = caller.plan.uploads
    content_type = allowed_type(wanted.content_type, uploads)
    sent = headers_of_place(request, uploads)
    place = await ask_for_place(services, sent, content_type, wanted.file_name, in_parts=in_parts)
    if isinstance(place, Response):
        return place
    slot = await open_slot(services, caller, place, content_type, in_parts=in_parts)
    upload_url = f"{services.settings.server.public_url}{PREFIX}{slot}"
    return JSONResponse({"file_url": place.file_url, "upload_url": upload_url})


async def open_slot(
    services: Services, caller: Caller, place: UploadDestination, content_type: str, *, in_parts: bool
) -> str:
    """A slot that leads to a place: its id."""
    slot, session = secrets.token_urlsafe(32), caller.session
    expires_at = services.clock.now() + (PARTS_SECONDS if in_parts else SLOT_SECONDS)
    if session is not None:
        expires_at = min(expires_at, session.owner_expires_at or session.expires_at)
    await services.stores.uploads.add(
        Upload(
            id=_hash(slot),
            tenant=caller.tenant.id,
            subject=caller.subject,
            content_type=content_type,
            file_url=place.file_url,
            upstream_url=seal(place.upload_url, slot),
            max_bytes=caller.plan.uploads.max_bytes,
            expires_at=expires_at,
            plan=caller.plan_name,
            in_parts=in_parts,
            session_id=session.id if session else caller.key_id,
            issued_at=session.issued_at if session else None,
        )
    )
    return slot


async def find(services: Services, slot: str) -> tuple[Upload, Terms]:
    """The upload behind a slot, with its signed URL, and the terms that bind its owner.

    Raises:
        NotFound: there is none, or its time is over.
    """
    upload = await services.stores.uploads.get(_hash(slot))
    snapshot = await services.directory.snapshot()
    tenant = snapshot.tenants.get(upload.tenant) if upload else None
    if upload is None or tenant is None or upload.plan not in snapshot.plans:
        raise no_such_upload()
    if upload.expires_at <= services.clock.now():
        raise no_such_upload()
    try:
        opened = replace(upload, upstream_url=unseal(upload.upstream_url, slot))
    except ValueError:
        _log.error("an upload's URL in the database is damaged")
        raise no_such_upload() from None
    return opened, snapshot.terms_of(tenant, upload.plan, is_guest=is_guest_name(upload.subject))


def routes(services: Services) -> list[Route]:
    async def opened(request: Request, *, in_parts: bool) -> tuple[Upload, Terms]:
        upload, terms = await find(services, request.path_params["slot"])
        note_owner(request, upload.tenant, upload.subject)
        if not await services.authenticator.may_send(request, upload):
            raise no_such_upload()
        if upload.in_parts is not in_parts:
            way = "in parts: PUT {upload_url}/1 and so on" if upload.in_parts else "at once: PUT {upload_url}"
            raise BadRequest(f"This upload was begun to be sent {way}.")
        return upload, terms

    async def put(request: Request) -> Response:
        return await receive_whole(services, request, *await opened(request, in_parts=False))

    async def put_part(request: Request) -> Response:
        return await parts.receive_part(services, request, *await opened(request, in_parts=True))

    async def complete(request: Request) -> Response:
        upload, _ = await opened(request, in_parts=True)
        return await parts.complete(services, request, upload, upload.file_url)

    return [
        file_route(PREFIX + "{slot}", put, "PUT"),
        Route(PREFIX + "{slot}/complete", complete, methods=["POST"]),
        file_route(PREFIX + "{slot}/{part}", put_part, "PUT"),
    ]


def _hash(slot: str) -> str:
    return hashlib.sha256(slot.encode()).hexdigest()

"""Files on their way to fal: the slot that a client asks for, and the relay that its `upload_url` points at.

Clients send the file without any credential, as they would to fal's signed URL; so the slot's id is the credential. It
is kept only as a hash, and never logged. fal's own signed URL stays here.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncGenerator, Mapping

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.callers import Caller
from proxy.errors import BadRequest, BadUpstream, BodyTooLarge, NotFound, UnsupportedMediaType
from proxy.policy.plans import Uploads
from proxy.policy.quota import MILLION, UPLOAD, new_job
from proxy.routes.bodies import SILENCE_SECONDS, read_form
from proxy.routes.services import Services
from proxy.stores.base import Job, Upload
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.relay import CallerGone, pass_on, read_whole

PREFIX = "/uploads/"
SLOT_SECONDS = 900.0
_UNSAFE_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Initiate(BaseModel):
    """What the fal clients send to ask for a slot."""

    model_config = ConfigDict(extra="ignore")
    content_type: str = Field(min_length=1, max_length=200)
    file_name: str = Field(default="file", max_length=1000)


async def initiate(services: Services, request: Request, caller: Caller) -> Response:
    """Open a slot at fal and give the caller one of our own that leads there.

    Raises:
        UnsupportedMediaType: the plan does not allow such files.
        BadUpstream: fal's answer names no place that files may go to.
    """
    wanted = await read_form(request, Initiate)
    content_type = _allowed_type(wanted.content_type, caller.plan.uploads)
    document = {"content_type": content_type, "file_name": clean_name(wanted.file_name)}
    sent = headers.to_fal(request.headers, streams=False)
    response = await services.upstream.call(Target(Kind.UPLOAD_INITIATE), sent, document)
    if not response.is_success:
        return await pass_on(response, repeatable=True)
    file_url, upstream_url = _urls(await read_whole(response, repeatable=True), services)
    slot = secrets.token_urlsafe(32)
    await services.stores.uploads.add(
        Upload(
            id=_hash(slot),
            tenant=caller.tenant.id,
            subject=caller.subject,
            content_type=content_type,
            file_url=file_url,
            upstream_url=upstream_url,
            max_bytes=caller.plan.uploads.max_bytes,
            expires_at=services.clock.now() + SLOT_SECONDS,
            plan=caller.plan_name,
        )
    )
    upload_url = f"{services.settings.server.public_url}{PREFIX}{slot}"
    return JSONResponse({"file_url": file_url, "upload_url": upload_url})


def clean_name(name: str) -> str:
    """The last part of a file's name, without anything that could mean something to a path or a URL."""
    last = re.split(r"[/\\]", name)[-1]
    return _UNSAFE_IN_NAMES.sub("_", last).lstrip(".")[-128:] or "file"


def _allowed_type(content_type: str, uploads: Uploads) -> str:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in uploads.content_types:
        allowed = ", ".join(sorted(uploads.content_types))
        raise UnsupportedMediaType(f"Files of this type may not be uploaded; allowed are {allowed}.")
    return media_type


def _urls(body: bytes, services: Services) -> tuple[str, str]:
    try:
        document = orjson.loads(body)
        file_url, upstream_url = document["file_url"], document["upload_url"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise BadUpstream("fal's answer names no place for the file.", scope="upstream") from None
    for url in (file_url, upstream_url):
        if not isinstance(url, str) or not services.upstream.may_upload_to(url):
            raise BadUpstream("fal named a place for the file that is not its own.", scope="upstream")
    return file_url, upstream_url


def routes(services: Services) -> list[Route]:
    async def put(request: Request) -> Response:
        upload = await _slot(services, request)
        length = _length(request, upload)
        given = request.headers.get("content-type", upload.content_type).partition(";")[0].strip().lower()
        if given != upload.content_type:
            raise UnsupportedMediaType(f"This upload was announced as {upload.content_type}.")
        job = await _reserved(services, upload, length)
        used: Mapping[str, int] | None = None
        try:
            response = await services.upstream.put_file(
                upload.upstream_url, upload.content_type, length, _content(request)
            )
            answer = await pass_on(response, repeatable=True)
            if response.is_success:
                used = job.used
                await services.stores.uploads.finish(upload.id, length)
        finally:
            # A file that did not arrive is not counted, and can be sent again.
            await asyncio.shield(services.bookkeeper.settle(job.id, used))
        return answer

    return [Route(PREFIX + "{slot}", put, methods=["PUT"])]


async def _reserved(services: Services, upload: Upload, length: int) -> Job:
    """The bytes of an upload, reserved from its plan's quotas.

    Raises:
        QuotaExceeded: so many are not left.
    """
    plan = (await services.directory.snapshot()).plans.get(upload.plan)
    if plan is None:
        raise NotFound("There is no such upload, or its time is over; ask for a new one.")
    amounts = {"upload_bytes": length * MILLION}
    job = new_job(plan, upload.tenant, upload.subject, UPLOAD, UPLOAD, amounts, services.clock.now())
    await services.bookkeeper.reserve(job)
    return job


async def _slot(services: Services, request: Request) -> Upload:
    upload = await services.stores.uploads.get(_hash(request.path_params["slot"]))
    if upload is None or upload.expires_at <= services.clock.now():
        raise NotFound("There is no such upload, or its time is over; ask for a new one.")
    if upload.size is not None:
        raise BadRequest("This upload is complete; ask for a new one.")
    return upload


def _length(request: Request, upload: Upload) -> int:
    declared = request.headers.get("content-length", "")
    if not declared.isdigit():
        raise BadRequest("Send the file with its content-length.")
    if int(declared) > upload.max_bytes:
        raise BodyTooLarge(
            f"The file is larger than {upload.max_bytes} bytes, which this plan allows.",
            headers={"connection": "close"},
        )
    return int(declared)


async def _content(request: Request) -> AsyncGenerator[bytes, None]:
    """The file as it comes; asking for the next piece only when the last one went out keeps memory flat."""
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(stream)
            if chunk:
                yield chunk
    except StopAsyncIteration:
        return
    except (ClientDisconnect, TimeoutError):
        raise CallerGone from None


def _hash(slot: str) -> str:
    return hashlib.sha256(slot.encode()).hexdigest()

"""The host form of fal's CDN, as the Python client uploads: with a short token, at once or in parts.

The token is one of our own: fal's would open every file of the account. What comes in goes to signed URLs, as with
every other upload.
"""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.http.bodies import check_encoding
from proxy.http.cdn_targets import IS_CDN_TARGET
from proxy.limits.contents import OCTETS, allowed_type
from proxy.routes.services import Services
from proxy.routes.uploads import parts
from proxy.routes.uploads.endpoints import file_route, no_such_upload, note_owner
from proxy.routes.uploads.incoming import announced_type
from proxy.routes.uploads.native import raw_file, send_new
from proxy.routes.uploads.places import ask_for_place, headers_of_place
from proxy.routes.uploads.slots import find, open_slot
from proxy.stores.uploads import Upload
from proxy.targets import CDN_HOST
from proxy.tenants.caller import Caller
from proxy.tenants.terms import Terms
from proxy.upstream.file_urls import CDN_PATH

#: Where fal's hosts are paths of the proxy.
HOST_FORM = "/fal/"
NAME_HEADER = "x-fal-file-name"
_SLOT = CDN_PATH + "/{path:path}/multipart/{slot}"


def token(services: Services, request: Request, caller: Caller) -> Response:
    """What the Python and Swift clients take for a token of fal's CDN, and where they are to go with it.

    Swift goes to its proxy anyway, and to no other host than fal's.
    """
    is_host_form = request.scope["path"].startswith(HOST_FORM)
    base_url = f"{services.settings.server.public_url}{CDN_PATH}" if is_host_form else f"https://{CDN_HOST}"
    text, expires_at = services.authenticator.upload_token(caller)
    return JSONResponse(
        {
            "token": text,
            "token_type": "Bearer",
            "base_url": base_url,
            # With an offset, not a Z: Python 3.10 cannot read that.
            "expires_at": datetime.fromtimestamp(int(expires_at), UTC).isoformat(),
        }
    )


def routes(services: Services) -> list[Route]:
    async def admitted(request: Request) -> Caller:
        caller = await services.authenticator.authenticate_upload(request)
        note_owner(request, caller.tenant.id, caller.subject)
        await services.admission.admit_upload(caller, request.scope)
        return caller

    async def upload(request: Request) -> Response:
        caller = await admitted(request)
        file = raw_file(request, _name(request), caller.plan.uploads.max_bytes)
        stored = await send_new(services, request, caller, file)
        if isinstance(stored, Response):
            return stored
        return JSONResponse({"access_url": stored.url})

    async def begin(request: Request) -> Response:
        caller = await admitted(request)
        check_encoding(request)
        uploads = caller.plan.uploads
        content_type = allowed_type(announced_type(request, OCTETS), uploads)
        sent = headers_of_place(request, uploads)
        place = await ask_for_place(services, sent, content_type, _name(request), in_parts=True)
        if isinstance(place, Response):
            return place
        slot = await open_slot(services, caller, place, content_type, in_parts=True)
        is_target = request.scope["state"].get(IS_CDN_TARGET)
        url = place.file_url if is_target else services.files.to_proxy(place.file_url)
        begun = {"access_url": url, "uploadId": slot}
        return JSONResponse(begun)

    async def opened(request: Request) -> tuple[Upload, Terms, str]:
        caller = await services.authenticator.authenticate_upload(request)
        note_owner(request, caller.tenant.id, caller.subject)
        upload, terms = await find(services, request.path_params["slot"])
        url = f"{services.settings.server.public_url}{CDN_PATH}/{request.path_params['path']}"
        is_own = (caller.tenant.id, caller.subject) == (upload.tenant, upload.subject)
        if not is_own or not upload.in_parts or url != services.files.to_proxy(upload.file_url):
            raise no_such_upload()
        return upload, terms, url

    async def put_part(request: Request) -> Response:
        upload, terms, _ = await opened(request)
        return await parts.receive_part(services, request, upload, terms)

    async def complete(request: Request) -> Response:
        upload, _, url = await opened(request)
        return await parts.complete(services, request, upload, url)

    return [
        file_route(f"{CDN_PATH}/files/upload", upload, "POST"),
        Route(f"{CDN_PATH}/files/upload/multipart", begin, methods=["POST"]),
        Route(f"{_SLOT}/complete", complete, methods=["POST"]),
        file_route(f"{_SLOT}/{{part}}", put_part, "PUT"),
    ]


def _name(request: Request) -> str:
    return request.headers.get(NAME_HEADER, "file")

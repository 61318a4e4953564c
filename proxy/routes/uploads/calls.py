"""fal's calls that begin an upload: for a slot, or for a token of fal's CDN."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from proxy.auth.authenticator import Authenticator
from proxy.calls.admission import Admission
from proxy.clock import to_iso
from proxy.http.bodies import read_form
from proxy.routes.uploads.file_route import reply_of
from proxy.routes.uploads.slots import PREFIX
from proxy.targets import CDN_HOST, Kind
from proxy.tenants.caller import Caller
from proxy.uploads.destinations import DestinationRefused, Destinations, destination_headers
from proxy.uploads.slots import Slots
from proxy.uploads.sniffing import allowed_type
from proxy.uploads.uploaded_pictures import check_can_be_cleaned
from proxy.upstream.file_urls import CDN_PATH

#: Where fal's hosts are paths of the proxy.
_HOST_FORM = "/fal/"


class Initiate(BaseModel):
    """What the fal clients send to ask for a slot."""

    model_config = ConfigDict(extra="ignore")
    content_type: str = Field(min_length=1, max_length=200)
    file_name: str = Field(default="file", max_length=1000)


class UploadCalls:
    """Answers fal's calls that begin an upload."""

    def __init__(
        self,
        authenticator: Authenticator,
        admission: Admission,
        destinations: Destinations,
        slots: Slots,
        public_url: str,
    ) -> None:
        self._authenticator = authenticator
        self._admission = admission
        self._destinations = destinations
        self._slots = slots
        self._public_url = public_url

    async def begin(self, request: Request, caller: Caller, kind: Kind) -> Response:
        """Answer one of the calls that `Kind.is_upload` names."""
        await self._admission.admit_upload(caller, request.scope)
        if kind is Kind.UPLOAD_TOKEN:
            return self._give_token(request, caller)
        return await self._open_slot(request, caller, in_parts=kind is Kind.UPLOAD_INITIATE_PARTS)

    async def _open_slot(self, request: Request, caller: Caller, *, in_parts: bool) -> Response:
        """Get a destination from fal, and give the caller a slot of our own that leads there.

        Raises:
            UnsupportedMediaType: the plan does not allow such files.
            BadUpstream: fal's answer names no destination that files may go to.
        """
        wanted = await read_form(request, Initiate)
        uploads = caller.plan.uploads
        content_type = allowed_type(wanted.content_type, uploads)
        check_can_be_cleaned(caller.plan, content_type, in_parts=in_parts)
        sent = destination_headers(request, uploads)
        try:
            destination = await self._destinations.ask(sent, content_type, wanted.file_name, in_parts=in_parts)
        except DestinationRefused as refusal:
            return reply_of(refusal.reply)
        slot = await self._slots.open(caller, destination, content_type, in_parts=in_parts)
        upload_url = f"{self._public_url}{PREFIX}{slot}"
        return JSONResponse({"file_url": destination.file_url, "upload_url": upload_url})

    def _give_token(self, request: Request, caller: Caller) -> Response:
        """Give the Python and Swift clients a token in the place of fal's CDN's, and the address to use it at.

        Swift goes to its proxy anyway, and to no other host than fal's.
        """
        is_host_form = request.scope["path"].startswith(_HOST_FORM)
        base_url = f"{self._public_url}{CDN_PATH}" if is_host_form else f"https://{CDN_HOST}"
        text, expires_at = self._authenticator.upload_token(caller)
        return JSONResponse(
            {
                "token": text,
                "token_type": "Bearer",
                "base_url": base_url,
                "expires_at": to_iso(expires_at),
            }
        )

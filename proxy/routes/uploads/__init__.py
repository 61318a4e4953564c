"""Files on their way to fal, by every way that a client knows. fal's signed URLs stay here."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.routes.services import Services
from proxy.routes.uploads import cdn, native, slots
from proxy.targets import Kind
from proxy.tenants.caller import Caller
from proxy.upstream.file_urls import CDN_PATH


def routes(services: Services) -> list[Route]:
    return [*slots.routes(services), *native.routes(services), *cdn.routes(services)]


def carries_file(path: str) -> bool:
    """Whether requests to a path bring a file: the bound of other bodies is not theirs."""
    return path.startswith((slots.PREFIX, native.PATH, f"{CDN_PATH}/")) and not path.endswith("/complete")


async def begin(services: Services, request: Request, caller: Caller, kind: Kind) -> Response:
    """Answer one of fal's calls that begin an upload."""
    if kind is Kind.UPLOAD_TOKEN:
        return cdn.token(services, request, caller)
    return await slots.initiate(services, request, caller, in_parts=kind is Kind.UPLOAD_INITIATE_PARTS)

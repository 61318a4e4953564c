"""v3.fal.media: files come in by signed URL or by token, whole or in parts, and go out to anyone."""

from __future__ import annotations

import secrets

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from proxy.sandbox.replies import reply
from proxy.sandbox.state import SandboxState

_OCTETS = "application/octet-stream"
_MOST_PARTS = 10_000
LIFECYCLE = "x-fal-object-lifecycle"
_FILE = "/files/b/{store}/{name}"


class Cdn:
    """The routes of the CDN. Everything that writes carries its own proof: a signature or a bearer token."""

    def __init__(self, sandbox: SandboxState) -> None:
        self.sandbox = sandbox

    def routes(self) -> list[Route]:
        return [
            Route("/files/upload", self.upload, methods=["POST"]),
            Route("/files/upload/multipart", self.begin, methods=["POST"]),
            Route(f"{_FILE}/multipart/{{upload}}/complete", self.complete, methods=["POST"]),
            Route(f"{_FILE}/multipart/{{upload}}/{{number:int}}", self.part, methods=["PUT"]),
            Route(f"{_FILE}/complete", self.complete, methods=["POST"]),
            Route(f"{_FILE}/{{number:int}}", self.part, methods=["PUT"]),
            Route(_FILE, self.put, methods=["PUT"]),
            Route(_FILE, self.get, methods=["GET"]),
        ]

    async def upload(self, request: Request) -> Response:
        if not self._has_token(request):
            return _forbidden(401)
        path = self._new_path(request)
        await self.sandbox.files.put(path, request.stream())
        return reply({"access_url": self.sandbox.url(request, f"/cdn/files{path}")})

    async def begin(self, request: Request) -> Response:
        if not self._has_token(request):
            return _forbidden(401)
        path = self._new_path(request)
        return reply({"access_url": self.sandbox.url(request, f"/cdn/files{path}"), "uploadId": secrets.token_hex(8)})

    async def put(self, request: Request) -> Response:
        if not self._may_write(request):
            return _forbidden(403)
        await self.sandbox.files.put(_path(request), request.stream(), _type(request))
        return reply({})

    async def part(self, request: Request) -> Response:
        """Take a part. The JSON is for the JavaScript client, the header for the Python client."""
        if not self._may_write(request):
            return _forbidden(403)
        number = request.path_params["number"]
        if not 1 <= number <= _MOST_PARTS:
            return reply({"detail": f"Part numbers lie between 1 and {_MOST_PARTS}"}, 400)
        part = await self.sandbox.files.put_part(_upload(request), number, request.stream())
        return reply({"partNumber": number, "etag": part.etag}, headers={"etag": part.etag})

    async def complete(self, request: Request) -> Response:
        if not self._may_write(request):
            return _forbidden(403)
        try:
            parts = orjson.loads(await request.body())["parts"]
            await self.sandbox.files.complete(_upload(request), _path(request), parts)
        except (ValueError, TypeError, KeyError) as error:
            return reply({"detail": f"Cannot complete the upload: {error}"}, 400)
        return reply({"access_url": self.sandbox.url(request, f"/cdn/files{_path(request)}")})

    async def get(self, request: Request) -> Response:
        file = self.sandbox.files.at("/files" + _path(request))
        if file is None or file.decision == "hide":
            return reply({"detail": "File not found"}, 404)
        if file.decision == "forbid":
            return reply({"detail": "Access to this file is forbidden"}, 403)
        if not file.is_kept and request.method != "HEAD":
            return reply({"detail": f"sandbox: too large to keep; sha256 {file.sha256}"}, 507)
        headers = {"content-length": str(file.size), "etag": file.etag}
        return StreamingResponse(file.blocks(), 200, headers, file.content_type)

    def _new_path(self, request: Request) -> str:
        name = request.headers.get("x-fal-file-name", "file")
        return self.sandbox.files.new_path(name, _type(request), lives_seconds(request), decision_of(request))

    def _may_write(self, request: Request) -> bool:
        """Check the right to write: a token for the parts of an upload that the path names, else a signature."""
        if "upload" in request.path_params:
            return self._has_token(request)
        return self.sandbox.signer.allows(_path(request), request.url.query)

    def _has_token(self, request: Request) -> bool:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return kind == "Bearer" and self.sandbox.signer.accepts("cdn", token)


def lives_seconds(request: Request) -> float:
    """Return how long the object lifecycle that is asked for lets a file live: for ever if it does not say."""
    try:
        return float(orjson.loads(request.headers.get(LIFECYCLE, ""))["expiration_duration_seconds"])
    except (ValueError, TypeError, KeyError):
        return float("inf")


def decision_of(request: Request) -> str:
    """Return what the access list that is asked for says of strangers, who see a file unless it says otherwise."""
    try:
        return str(orjson.loads(request.headers.get(LIFECYCLE, ""))["initial_acl"]["default"])
    except (ValueError, TypeError, KeyError):
        return "allow"


def _type(request: Request) -> str:
    return request.headers.get("content-type", _OCTETS)


def _path(request: Request) -> str:
    return "/b/{store}/{name}".format(**request.path_params)


def _upload(request: Request) -> str:
    return f"{_path(request)}#{request.path_params.get('upload', '')}"


def _forbidden(status: int) -> Response:
    return reply({"detail": "The signature or token is wrong or has expired"}, status)

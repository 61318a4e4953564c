"""An application that shows what reached it, behind the server under test."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from proxy.server.connections import ConnectionLimits
from proxy.server.factory import ProtocolFactory
from tests.support.servers import running


@dataclass
class Echo:
    """A server whose answers say which request they are the answers to.

    Attributes:
        requests: what reached the application, in order: method, path, headers and body.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def echo(self, request: Request) -> Response:
        """Answer with the request itself, after its body."""
        try:
            body = await request.body()
        except ClientDisconnect:
            return PlainTextResponse("gone", 499)
        seen = {
            "method": request.method,
            "path": request.scope["raw_path"].decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.scope["headers"]],
            "body": body.decode("latin-1"),
        }
        self.requests.append(seen)
        return JSONResponse(seen)

    async def refuse(self, _request: Request) -> Response:
        """Answer without reading the body."""
        return PlainTextResponse("no", 401)

    async def pieces(self, request: Request) -> Response:
        """Keep the pieces of the body as they come, and describe them when the last is there."""
        pieces = [piece async for piece in request.stream()]
        kinds = sorted({type(piece).__name__ for piece in pieces})
        return JSONResponse({"kinds": kinds, "digest": hashlib.sha256(b"".join(pieces)).hexdigest()})

    async def stream(self, _request: Request) -> Response:
        """Answer in pieces whose sum is not known at first."""

        async def pieces() -> Any:
            for number in range(3):
                yield f"piece {number}\n"
                await asyncio.sleep(0)

        return StreamingResponse(pieces(), media_type="text/plain")


@contextmanager
def echo_server(limits: ConnectionLimits | None = None, loop: str = "uvloop") -> Iterator[Echo]:
    """A server of this program; `loop` as uvicorn takes it."""
    echo = Echo("")
    every = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
    routes = [
        Route("/refuse", echo.refuse, methods=every),
        Route("/pieces", echo.pieces, methods=every),
        Route("/stream", echo.stream, methods=every),
        Route("/{path:path}", echo.echo, methods=every),
    ]
    with running(Starlette(routes=routes), http=ProtocolFactory(limits), loop=loop) as url:
        echo.url = url
        yield echo


def parse_answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """The answers in the bytes of a connection: status, headers and body.

    Raises:
        ValueError: the bytes are not a sequence of whole answers.
    """
    answers = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        if not end:
            raise ValueError(f"a head that does not end: {head[:200]!r}")
        status_line, *lines = head.split(b"\r\n")
        pairs = (line.decode("latin-1").partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        status = int(status_line.split(b" ")[1])
        if status == 100:
            continue
        body, data = _split_body(headers, data)
        answers.append((status, headers, body))
    return answers


def _split_body(headers: dict[str, str], data: bytes) -> tuple[bytes, bytes]:
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size, _, data = data.partition(b"\r\n")
            length = int(size, 16)
            body, data = body + data[:length], data[length + 2 :]
            if length == 0:
                return body, data
    if "content-length" in headers:
        length = int(headers["content-length"])
        if len(data) < length:
            raise ValueError("a body that is cut off")
        return data[:length], data[length:]
    return data, b""


def bodies_of(answers: list[tuple[int, dict[str, str], bytes]]) -> list[Any]:
    """What the application saw of each request that it answered."""
    return [json.loads(body) for status, _, body in answers if status == 200]

"""The record of every request that arrived, and the outermost layer of the sandbox that writes it.

An `Exchange` travels in `scope["sandbox"]`: what has been read of the request, and the way to hang up on the caller.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections import deque
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.sandbox.directives import NO_DIRECTIVES

RECORDED_REQUESTS = 10_000
#: How much of recorded JSON bodies is kept, over all requests: data URIs are big.
RECORDED_JSON_BYTES = 256 * 2**20
MAX_JSON_BYTES = 32 * 2**20
HOSTS = ("run", "queue", "rest", "cdn", "api")


class Exchange:
    """One request as it arrived, and how its answer ended.

    Attributes:
        body: the whole body, read before anything else happens; empty for the CDN, where it flows.
        answered: the status that was sent, if any.
        directives: what the prompt asks of the sandbox; `later` are its faults for the job's coming requests.
        fail: the failure that the model's run is to end in, if any.
        ended: `complete`, `dropped` (the sandbox hung up) or `left` (the caller did); None while it lasts.
    """

    def __init__(self, id: int, scope: Scope, receive: Receive) -> None:
        self.id = id
        self.at = time.time()
        raw_path = scope.get("raw_path") or scope["path"].encode()
        self.host, self.path = _split(raw_path.decode("latin-1"))
        self.method: str = scope["method"]
        self.query: str = scope["query_string"].decode("latin-1")
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.body = b""
        self.body_size = 0
        self.digest = hashlib.sha256()
        self.json: Any = None
        self.answered: int | None = None
        self.ended: str | None = None
        self.directives = NO_DIRECTIVES
        self.later: tuple[Any, ...] = ()
        self.fail: str | None = None
        self._receive = receive

    def read(self, chunk: bytes) -> None:
        self.body_size += len(chunk)
        self.digest.update(chunk)

    async def wait_for_end(self) -> None:
        """Wait until the connection is closed, by either side."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.ended = self.ended or "left"

    async def hang_up(self) -> None:
        """Close the connection as it is, with what has been written, and return when it is closed.

        ASGI has no word for this: an application that returns early is answered for with a 500 or logged as broken. So
        this asks the server's own transport, which uvicorn's request cycle, whose method `receive` is, holds for both
        of its HTTP parsers. Once the connection is lost uvicorn expects no answer any more.
        """
        self.ended = "dropped"
        self._receive.__self__.transport.close()  # type: ignore[attr-defined]
        await self.wait_for_end()

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "at": self.at,
            "host": self.host,
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "headers": self.headers,
            "body_size": self.body_size,
            "body_sha256": self.digest.hexdigest(),
            "json": self.json,
            "answered": self.answered,
            "ended": self.ended,
        }


class RequestLog:
    """The latest requests, oldest first; what is older than the ring is forgotten."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=RECORDED_REQUESTS)
        self._ids = itertools.count(1)
        self._json_bytes = 0

    def open(self, scope: Scope, receive: Receive) -> Exchange:
        exchange = Exchange(next(self._ids), scope, receive)
        self._exchanges.append(exchange)
        return exchange

    def keep_json(self, exchange: Exchange) -> None:
        """Parse the body into the record, as long as all recorded bodies together stay within bounds."""
        self._json_bytes += exchange.body_size
        if self._json_bytes > RECORDED_JSON_BYTES:
            for old in self._exchanges:
                if old.ended is not None:  # else it is still being worked on
                    old.json = None
            self._json_bytes = exchange.body_size
        exchange.json = parse_body(exchange.body)

    def forget(self) -> None:
        self._exchanges.clear()
        self._json_bytes = 0

    def as_json(self) -> list[dict[str, Any]]:
        return [exchange.as_json() for exchange in self._exchanges]


class Recording:
    """ASGI layer: records what arrives on fal's hosts, reads JSON bodies ahead, notes how the answer ended."""

    def __init__(self, app: ASGIApp, request_log: RequestLog) -> None:
        self.app = app
        self.request_log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/_sandbox"):
            return await self.app(scope, receive, send)
        exchange = scope["sandbox"] = self.request_log.open(scope, receive)
        if exchange.host != "cdn":
            exchange.body = await _body(exchange, receive)
            self.request_log.keep_json(exchange)
            if exchange.ended:
                return None
            if exchange.body_size > MAX_JSON_BYTES:
                too_large = JSONResponse({"detail": "Request body too large"}, 413)
                return await too_large(scope, receive, _record_sent(exchange, send))
        # A caller that left in the middle of a file is no fault of the sandbox's.
        with contextlib.suppress(ClientDisconnect):
            await self.app(scope, _record_received(exchange, receive), _record_sent(exchange, send))
        exchange.body = b""
        exchange.ended = exchange.ended or "left"
        return None


def parse_body(body: bytes) -> Any:
    """Parse the JSON value of a body; None if it has none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _split(path: str) -> tuple[str, str]:
    _, host, *rest = path.split("/", 2)
    return (host, "/" + "/".join(rest)) if host in HOSTS else ("", path)


async def _body(exchange: Exchange, receive: Receive) -> bytes:
    body = bytearray()
    while (message := await receive())["type"] == "http.request":
        chunk = message.get("body", b"")
        exchange.read(chunk)
        if exchange.body_size <= MAX_JSON_BYTES:
            body += chunk
        if not message.get("more_body"):
            return bytes(body)
    exchange.ended = "left"
    return b""


def _record_received(exchange: Exchange, receive: Receive) -> Receive:
    """Make the application's `receive`: it gives the body that was read ahead, or counts the one that flows."""
    ahead = [exchange.body] if exchange.host != "cdn" else []

    async def read() -> Message:
        if ahead:
            return {"type": "http.request", "body": ahead.pop(), "more_body": False}
        message = await receive()
        exchange.read(message.get("body", b""))
        return message

    return read


def _record_sent(exchange: Exchange, send: Send) -> Send:
    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.answered = message["status"]
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            exchange.ended = exchange.ended or "complete"

    return note

"""A fal whose one job a test moves, behind httpx's transport interface, and whose bytes a test damages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson

ID = "job-of-the-script"
APP = "fal-ai/llava-next"
ANSWER = b'{"output":"\xc3\xa9 \xf0\x9f\x90\x88"}'
#: What happens to the bytes of one stream: gets its number, from 0, and the pieces as fal would send them.
Wire = Callable[[int, AsyncIterator[bytes]], AsyncIterator[bytes]]


def log_line(text: str) -> dict[str, Any]:
    return {"timestamp": f"2026-01-01T00:00:00.{len(text):06d}", "message": text, "labels": {}}


def whole_life() -> list[dict[str, Any]]:
    """A job's documents from its queue to its end; their logs hold the lines that are new."""
    return [
        {"status": "IN_QUEUE", "queue_position": 1, "logs": []},
        {"status": "IN_QUEUE", "queue_position": 0, "logs": []},
        {"status": "IN_PROGRESS", "logs": [log_line("ünï")]},
        {"status": "IN_PROGRESS", "logs": [log_line("— 🐈"), log_line("two at once")]},
        {"status": "COMPLETED", "logs": [log_line("Done, and it is well")], "metrics": {"inference_time": 1.5}},
    ]


class ScriptedFal(httpx.AsyncBaseTransport):
    """Attributes:
    documents: the job's documents so far; `add` appends one, and every open stream sends it.
    calls: what was asked for: `stream`, `status`, `result`.
    wire: damages streams.
    knows: whether the job exists.
    refuses: whether `status` is answered with a 503.
    """

    def __init__(self, documents: list[dict[str, Any]] | None = None, wire: Wire | None = None) -> None:
        self.documents = [{"request_id": ID, **document} for document in documents or ()]
        self.calls: list[str] = []
        self.open = 0
        self.wire = wire or (lambda _, pieces: pieces)
        self.knows = True
        self.refuses = False
        self._moved = asyncio.Event()

    def add(self, **document: Any) -> None:
        self.documents.append({"request_id": ID, "logs": [], **document})
        self._moved.set()
        self._moved = asyncio.Event()

    def lines(self) -> list[str]:
        return [line["message"] for document in self.documents for line in document["logs"]]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.extensions["target"].decode().partition("?")[0]
        kind = {"stream": "stream", "status": "status"}.get(path.rpartition("/")[2], "result")
        number = self.calls.count("stream")
        self.calls.append(kind)
        if not self.knows:
            return _json(404, {"status": "NOT_FOUND"})
        if kind == "stream":
            limit: float = request.extensions["timeout"]["read"]
            return httpx.Response(
                200,
                headers={"content-type": "text/event-stream"},
                stream=_Body(self, self.wire(number, self._pieces()), limit),
            )
        is_over = self.documents[-1]["status"] == "COMPLETED"
        if kind == "status":
            if self.refuses:
                return _json(503, {"detail": "not now"})
            return _json(200 if is_over else 202, self._cumulative())
        body = ANSWER if is_over else b'{"detail":"Request is still in progress"}'
        return httpx.Response(200 if is_over else 400, headers={"content-type": "application/json"}, content=body)

    def _cumulative(self) -> dict[str, Any]:
        return {**self.documents[-1], "logs": [line for document in self.documents for line in document["logs"]]}

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The events from now on: the first one has all lines, each of the others those that are new."""
        while not self.documents:
            await self._moved.wait()
        sent = len(self.documents)
        document = self._cumulative()
        while True:
            yield b"data: " + orjson.dumps(document) + b"\n\n"
            if document["status"] == "COMPLETED":
                return
            while sent == len(self.documents):
                await self._moved.wait()
            document = self.documents[sent]
            sent += 1


class _Body(httpx.AsyncByteStream):
    def __init__(self, fal: ScriptedFal, pieces: AsyncIterator[bytes], limit: float) -> None:
        self._fal = fal
        self._pieces = pieces
        self._limit = limit
        fal.open += 1
        self._is_open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._limit):
                    piece = await anext(self._pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise httpx.ReadTimeout("silence") from None
            yield piece

    async def aclose(self) -> None:
        self._fal.open -= self._is_open
        self._is_open = False


def _json(status: int, document: dict[str, Any]) -> httpx.Response:
    return httpx.Response(status, headers={"content-type": "application/json"}, content=orjson.dumps(document))

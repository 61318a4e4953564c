"""A static fal: canned answers straight from an asyncio protocol, so that what is measured is the client in front.

    python -m tests.bench.static_upstream PORT [DELAY_MS]

It speaks plain http/1.1, keeps connections alive, and answers by method and path alone: each submit gets a new request
id, every id is a running job, and its result is always available. A status stream says that the job
runs and stays open, with a comment now and then; fetching a job's result, or `POST /finish/{id}`, makes its
streams say that it is completed. Files are read and dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import defaultdict
from typing import ClassVar, cast

import httptools
import orjson
import uvloop

REQUEST_ID = "764cabcf-b745-4b3e-ae38-1200304cf45b"
ANSWER = {"output": "A tabby cat looks past the camera, its face half in shadow.", "partial": False}
STREAMED_EVENTS = 10
#: fal's own.
PING_SECONDS = 15.0


def _job_urls(endpoint: str) -> dict[str, str]:
    base = f"https://queue.fal.run/{endpoint}/requests/{REQUEST_ID}"
    return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}


def _message(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\n"
        "date: Fri, 20 Nov 2026 12:00:00 GMT\r\n"
        f"content-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-fal-request-id: {REQUEST_ID}\r\n"
        "x-fal-billable-units: 1\r\n"
        "x-frame-options: DENY\r\n"
        "strict-transport-security: max-age=31536000\r\n"
        "access-control-allow-origin: *\r\n\r\n"
    )
    return head.encode() + body


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def _kind(method: bytes, url: bytes) -> str:
    path = url.partition(b"?")[0]
    if path.startswith((b"/rest/", b"/cdn/")):
        return "initiate" if method == b"POST" else "file"
    if path.endswith((b"/status", b"/cancel")):
        return path.rpartition(b"/")[2].decode()
    return "submit" if method == b"POST" and not path.startswith(b"/run/") else "result"


def _states(endpoint: str) -> dict[str, dict[str, object]]:
    job = {"request_id": REQUEST_ID, "logs": None} | _job_urls(endpoint)
    return {
        "queued": job | {"status": "IN_QUEUE", "queue_position": 0, "metrics": {}},
        "running": job | {"status": "IN_PROGRESS", "metrics": {}},
        "completed": job | {"status": "COMPLETED", "metrics": {"inference_time": 1.5}},
    }


STATES = _states("fal-ai/llava-next")
#: Kind -> canned message, all about REQUEST_ID.
TEMPLATES = {
    "submit": _message("200 OK", orjson.dumps(STATES["queued"])),
    "status": _message("202 Accepted", orjson.dumps(STATES["running"])),
    "cancel": _message("202 Accepted", orjson.dumps({"status": "CANCELLATION_REQUESTED"})),
    "result": _message("200 OK", orjson.dumps(ANSWER)),
    "finish": _message("200 OK", b"{}"),
    "file": _message("200 OK", b"{}"),
}
RUNNING, COMPLETED = (_chunk(b"data: %b\r\n\r\n" % orjson.dumps(STATES[name])) for name in ("running", "completed"))
PING = _chunk(b": ping\r\n\r\n")
_serial = itertools.count()


def _request_id(kind: str, url: bytes) -> bytes:
    """The id in the path; a new one for what is submitted. Always as long as the one in the templates."""
    _, found, rest = url.partition(b"/requests/")
    if found:
        return rest[: len(REQUEST_ID)]
    return b"%08x%b" % (next(_serial), REQUEST_ID[8:].encode()) if kind == "submit" else REQUEST_ID.encode()


class StaticFal(asyncio.Protocol):
    """One connection: parse with httptools, answer from a template."""

    #: How long each answer takes.
    delay_seconds: ClassVar[float] = 0.0
    #: Job -> the connections on which its status is streamed.
    watching: ClassVar[defaultdict[bytes, set[StaticFal]]] = defaultdict(set)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.job = b""

    def connection_lost(self, _error: Exception | None) -> None:
        self.watching[self.job].discard(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_message_complete(self) -> None:
        path = self.url.partition(b"?")[0]
        if path.endswith(b"/status/stream"):
            self._stream_status()
        elif path.endswith(b"/stream"):
            self.transport.write(STREAM_HEAD)
            self.loop.call_soon(self._send_event, 1)
        elif path.startswith(b"/finish/"):
            self._finish(path.removeprefix(b"/finish/"))
        else:
            kind = _kind(self.parser.get_method(), self.url)
            id_ = _request_id(kind, self.url)
            self._answer(TEMPLATES[kind].replace(REQUEST_ID.encode(), id_))
            if kind == "result":
                self._end_streams(id_)

    def _answer(self, message: bytes) -> None:
        if self.delay_seconds:
            self.loop.call_later(self.delay_seconds, self.transport.write, message)
        else:
            self.transport.write(message)

    def _send_event(self, number: int) -> None:
        if self.transport.is_closing():
            return
        if number > STREAMED_EVENTS:
            self.transport.write(LAST_CHUNK)
            return
        event = {"output": "A tabby cat looks past " * number, "partial": True}
        self.transport.write(_chunk(b"data: %b\r\n\r\n" % orjson.dumps(event)))
        self.loop.call_soon(self._send_event, number + 1)

    def _stream_status(self) -> None:
        self.job = _request_id("status", self.url)
        self.watching[self.job].add(self)
        self.transport.write(STREAM_HEAD + RUNNING.replace(REQUEST_ID.encode(), self.job))
        self.loop.call_later(PING_SECONDS, self._ping)

    def _ping(self) -> None:
        if self in self.watching[self.job] and not self.transport.is_closing():
            self.transport.write(PING)
            self.loop.call_later(PING_SECONDS, self._ping)

    def _finish(self, job: bytes) -> None:
        self._end_streams(job)
        self.transport.write(TEMPLATES["finish"])

    def _end_streams(self, job: bytes) -> None:
        for one in self.watching.pop(job, ()):
            one.transport.write(COMPLETED.replace(REQUEST_ID.encode(), job) + LAST_CHUNK)


async def serve(port: int, delay_ms: float) -> None:
    StaticFal.delay_seconds = delay_ms / 1000
    place = f"http://127.0.0.1:{port}/cdn/files/a.png"
    TEMPLATES["initiate"] = _message("200 OK", orjson.dumps({"file_url": place, "upload_url": place}))
    server = await asyncio.get_running_loop().create_server(StaticFal, "127.0.0.1", port, backlog=4096)
    print(f"listening on {port}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))

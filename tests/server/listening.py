"""The server of this program in a thread, in front of a small application, and raw sockets to speak to it with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from proxy.drain import Drain
from proxy.http.repetition import ANSWER_AGAIN, EXTENSION, AnswerAgain, WholeRequest
from proxy.server.connections import ConnectionLimits
from proxy.server.draining import DrainingServer
from proxy.server.factory import ProtocolFactory
from proxy.telemetry.metrics import Metrics
from tests.support.waiting import wait_until

LARGE_BYTES = 32 * 1024 * 1024


class MovableLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test moves on."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead

    async def pass_time(self, seconds: float) -> None:
        """Move the clock on; read what has arrived, and run everything that is then due."""
        self.ahead += seconds
        for _ in range(10):
            await asyncio.sleep(0)


class Application:
    """Answers by path.

    `/read` reads the body first, `/hold` waits for `released`, `/late` does both, `/large` sends 32 MiB.

    Attributes:
        whole: what the server handed over as the bytes of each request; None for one that came in pieces.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.released = threading.Event()
        self.paths: list[str] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.whole: list[WholeRequest | None] = []
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.loop = asyncio.get_running_loop()
            scope["state"].update(self._state)
            for event in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{event}"
                await send({"type": f"lifespan.{event}.complete"})
            return
        path = scope["path"]
        self.paths.append(path)
        self.whole.append(scope["extensions"].get(EXTENSION))
        body = path.encode()
        if path in ("/hold", "/late"):
            await asyncio.to_thread(self.released.wait, 60)
        if path in ("/read", "/late"):
            while (await receive()).get("more_body"):
                pass
        elif path == "/large":
            body = bytes(LARGE_BYTES)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Listening:
    """A server that listens on the loopback."""

    port: int
    application: Application
    metrics: Metrics

    def connect(self, data: bytes = b"", *, source: str = "127.0.0.1", host: str = "127.0.0.1") -> socket.socket:
        """A connection from an address of the loopback, over which `data` was sent."""
        wire = socket.create_connection((host, self.port), timeout=60, source_address=(source, 0))
        wire.sendall(data)
        return wire

    def count(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 while nothing was counted."""
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def wait_for(self, connections: int) -> None:
        """Wait until there are so many connections."""
        wait_until(lambda: self.count("fal_proxy_connections") == connections, "other connections are open")

    def hold_up(self, until: threading.Event) -> None:
        """Keep the server from doing anything."""
        assert self.application.loop is not None
        self.application.loop.call_soon_threadsafe(until.wait, 60)

    def pass_time(self, seconds: float) -> None:
        """Move the clock of a server with a loop for that."""
        loop = self.application.loop
        assert isinstance(loop, MovableLoop)
        asyncio.run_coroutine_threadsafe(loop.pass_time(seconds), loop).result(60)


@contextlib.contextmanager
def listening(
    limits: ConnectionLimits, host: str = "127.0.0.1", loop: str = "uvloop", answer_again: AnswerAgain | None = None
) -> Iterator[Listening]:
    """A server with these limits, until the block ends; `loop` as uvicorn takes it."""
    metrics = Metrics()
    application = Application({"drain": Drain(1), "metrics": metrics, ANSWER_AGAIN: answer_again})
    options: dict[str, Any] = {"loop": loop, "ws": "none", "lifespan": "on", "log_config": None}
    config = uvicorn.Config(application, host=host, port=0, http=ProtocolFactory(limits), **options)
    server = DrainingServer(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server does not start")
        yield Listening(server.servers[0].sockets[0].getsockname()[1], application, metrics)
    finally:
        application.released.set()
        server.should_exit = True
        thread.join(timeout=180)
        assert not thread.is_alive()


def read_to_end(wire: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    while chunk := wire.recv(1 << 20):
        received += chunk
    return received


def read_answer(wire: socket.socket) -> tuple[bytes, bytes]:
    """The head and the body of one answer, on a connection that may stay open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(wire)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += _some(wire)
    return head, body


def _some(wire: socket.socket) -> bytes:
    chunk = wire.recv(1 << 20)
    assert chunk, "the connection was closed in the middle of an answer"
    return chunk


def refusal(answer: bytes) -> tuple[int, str]:
    """The status and the code of a refusal, which has the shape of all errors and closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    document = json.loads(body)
    assert b"\r\nconnection: close" in head and b"\r\ncontent-type: application/json" in head
    assert document["detail"] == document["message"] and document["request_id"].encode() in head
    return int(head.split(b" ")[1]), document["error_type"]


def trickle(server: Listening, wire: socket.socket, data: bytes, every_seconds: float, most_seconds: float) -> bool:
    """Send `data` repeatedly, moving the server's clock; whether it closes before `most_seconds` have passed."""
    wire.settimeout(0.1)
    passed = 0.0
    with contextlib.suppress(ConnectionError):
        while passed < most_seconds:
            wire.sendall(data)
            server.pass_time(every_seconds)
            passed += every_seconds
            with contextlib.suppress(TimeoutError):
                if not wire.recv(1 << 16):
                    return True
        return False
    return True

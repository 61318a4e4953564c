"""A draining server closes its socket at the moment in which callers connect."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import Receive, Scope, Send

from proxy.drain import Drain
from proxy.server.draining import DrainingServer
from tests.support.servers import free_port
from tests.support.waiting import wait_until

CALLERS = 100
REQUEST = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n"
ANSWER = b"HTTP/1.1 204"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        scope["state"]["drain"] = Drain(600)
        for event in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{event}"
            await send({"type": f"lifespan.{event}.complete"})
        return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


class Holding(DrainingServer):
    """Blocks its event loop before it stops listening, until a test lets it go on."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.holds = threading.Event()
        self.may_go_on = threading.Event()

    async def _stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        self.holds.set()
        assert self.may_go_on.wait(60)
        await super()._stop_listening(sockets)


@contextlib.contextmanager
def serving(port: int) -> Iterator[Holding]:
    options = {"port": port, "loop": "uvloop", "log_config": None, "lifespan": "on", "ws": "none"}
    server = Holding(uvicorn.Config(application, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server does not start")
        yield server
    finally:
        server.should_exit = True
        server.may_go_on.set()
        thread.join(timeout=180)
        assert not thread.is_alive()


def test_connections_in_the_backlog_are_answered() -> None:
    port = free_port()
    with serving(port) as server, contextlib.ExitStack() as callers:
        server.should_exit = True
        assert server.holds.wait(60)
        waiting = [callers.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(CALLERS)]
        for caller in waiting:
            caller.sendall(REQUEST)
        server.may_go_on.set()
        for caller in waiting:
            assert caller.recv(len(ANSWER)) == ANSWER


def test_a_request_on_a_connection_kept_open_is_answered_then_too() -> None:
    port = free_port()
    with contextlib.ExitStack() as open_:
        server = open_.enter_context(serving(port))
        caller = open_.enter_context(socket.create_connection(("127.0.0.1", port), 60))
        answers = open_.enter_context(caller.makefile("rb"))
        caller.sendall(REQUEST)
        assert answers.readline().startswith(ANSWER)
        while answers.readline() != b"\r\n":
            pass
        server.should_exit = True
        assert server.holds.wait(60)
        caller.sendall(REQUEST)
        server.may_go_on.set()
        assert answers.readline().startswith(ANSWER)

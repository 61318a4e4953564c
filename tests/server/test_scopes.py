"""The application gets the same scope as from uvicorn, also for a repeated target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from starlette.types import Receive, Scope, Send

from proxy.http.scope import HAS_BODY
from proxy.server.asgi import MAX_REMEMBERED_BYTES
from proxy.server.factory import ProtocolFactory
from tests.server.talk import talk
from tests.support.servers import running

LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
LONG = b"/" + b"a" * MAX_REMEMBERED_BYTES
TARGETS = [
    b"/",
    b"/plain/path",
    b"/with?a=query&b=%20",
    b"/empty/query?",
    b"/two?questions?here",
    b"/a%20space%2Fand%25",
    b"/not%FFutf8",
    b"/half%2",
    b"/fragment#part",
    b"//double//slash",
    b"/./dots/..",
    b"/s/a;b=c/@x:y",
    b"http://other.example/absolute?x=1",
    LONG,
    LONG + b"?" + LONG,
    b"/\xc3\xa9",
    b"no-slash",
    b"/%",
]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with its scope."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    # What the server adds is the program's own.
    scope["state"].pop(HAS_BODY, None)
    shown = {name: repr(value) for name, value in scope.items() if name not in ("client", "server", "extensions")}
    scope["state"]["seen"] = True
    body = json.dumps(shown, sort_keys=True).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module", params=["", "/below"], ids=["at the root", "below a path"])
def ports(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Of this program's server, and of uvicorn as it is, before the same application."""
    with ExitStack() as stack:
        servers = (
            running(application, http=http, root_path=request.param) for http in (ProtocolFactory(), "httptools")
        )
        ours, theirs = (int(stack.enter_context(server).rpartition(":")[2]) for server in servers)
        yield ours, theirs


def scopes(port: int, request: bytes) -> list[dict[str, str]]:
    """The scopes of the same request twice on one connection; nothing for what is refused."""
    received, _ = talk(port, request + request + LAST)
    parts = received.split(b"HTTP/1.1 200 ")[1:]
    shown = [json.loads(part[part.index(b"{") : part.rindex(b"}") + 1]) for part in parts]
    return [scope for scope in shown if scope["path"] != "'/last'" and scope["path"] != "'/below/last'"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", [b"GET", b"M-SEARCH"])
def test_a_scope_is_the_same_as_uvicorns(ports: tuple[int, int], method: bytes, target: bytes) -> None:
    request = b"%b %b HTTP/1.1\r\nHost: x\r\nX-Name: a\r\nx-name: \xff b\r\n\r\n" % (method, target)
    ours, theirs = (scopes(port, request) for port in ports)
    assert ours == theirs


def test_a_scope_of_an_old_request_is_the_same_as_uvicorns(ports: tuple[int, int]) -> None:
    ours, theirs = (scopes(port, b"GET /old?x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n") for port in ports)
    assert ours == theirs and len(ours) == 1 and ours[0]["http_version"] == "'1.0'"


def test_each_request_has_a_state_of_its_own(ports: tuple[int, int]) -> None:
    first, second = scopes(ports[0], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert first == second and first["state"] == "{}"

"""The server behind a balancer whose connections to it all callers share: both read the same requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.server.echo import Echo, bodies_of, echo_server, parse_answers
from tests.server.fronts.servers import go_proxy, nginx
from tests.server.fronts.streams import HOST, LAST, SMUGGLED, Stream, every_stream
from tests.server.talk import talk

pytestmark = pytest.mark.tools
FRONTS = {"nginx": nginx, "go": go_proxy}
STREAMS = every_stream()


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with echo_server() as echo:
        yield echo


@pytest.fixture(scope="module")
def ports(echo: Echo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        folders: dict[str, Path] = {name: tmp_path_factory.mktemp(name) for name in FRONTS}
        fronts = {name: stack.enter_context(front(echo.port, folders[name])) for name, front in FRONTS.items()}
        yield {"bare": echo.port, **{name: front.port for name, front in fronts.items()}}


def summaries_of(requests: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(one["method"], one["path"], one["body"]) for one in requests]


def exchange(echo: Echo, port: int, stream: Stream) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """The requests that reached the application, and the requests whose answers the caller got."""
    echo.requests.clear()
    received, _ = talk(port, *stream.pieces)
    return summaries_of(echo.requests), summaries_of(bodies_of(parse_answers(received)))


def test_there_are_enough_streams() -> None:
    assert len(STREAMS) >= 200 and len({stream.name for stream in STREAMS}) == len(STREAMS)


@pytest.mark.parametrize("front", FRONTS)
def test_a_front_and_the_server_agree_on_every_request(echo: Echo, ports: dict[str, int], front: str) -> None:
    for number, stream in enumerate(STREAMS):
        bare_reached, bare_answered = exchange(echo, ports["bare"], stream)
        assert bare_reached == bare_answered, stream.name
        reached, answered = exchange(echo, ports[front], stream)
        # One answer to each request that reached the server, in order, and to nothing else.
        assert reached == answered, stream.name
        if any(path == "/first" for _, path, _ in bare_reached) and any(path == "/first" for _, path, _ in reached):
            assert reached[0] == bare_reached[0], stream.name
        # The next caller of the shared connection gets the answer to its own request.
        own = f"/own-{number}"
        mine = Stream("own", (f"GET {own} HTTP/1.1\r\n{HOST}\r\nConnection: close\r\n\r\n".encode(),))
        assert exchange(echo, ports[front], mine) == ([("GET", own, "")], [("GET", own, "")]), stream.name


@pytest.mark.parametrize("front", FRONTS)
def test_a_body_behind_an_upgrade_is_never_the_request_of_another_caller(
    echo: Echo, ports: dict[str, int], front: str
) -> None:
    framing = f"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n"
    attack = f"POST /attack HTTP/1.1\r\n{HOST}\r\n{framing}{SMUGGLED}".encode()
    for number in range(30):
        echo.requests.clear()
        talk(ports[front], attack + LAST)
        lines = (f"GET /victim-{number} HTTP/1.1", HOST, "Authorization: Bearer own", "Connection: close", "", "")
        victim = "\r\n".join(lines).encode()
        received, _ = talk(ports[front], victim)
        (answer,) = bodies_of(parse_answers(received))
        assert answer["path"] == f"/victim-{number}" and ["authorization", "Bearer own"] in answer["headers"]
        assert not any(one["path"] == "/smuggled" for one in echo.requests)

"""The bound on the size of bodies: declared, or not."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from proxy.errors import BodyTooLarge
from proxy.http.body_memory import FREE_BYTES, BodyMemory
from proxy.http.middleware import BodyLimit
from proxy.http.scope import HAS_BODY

pytestmark = pytest.mark.anyio


class Reader:
    """An application that reads a body to its end."""

    def __init__(self) -> None:
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            self.body += message["body"]
            more = message["more_body"]


class Caller:
    """Sends a body of so many bytes, all at once or in pieces of a hundred, and counts how often it is asked for."""

    def __init__(self, size: int, *, at_once: bool) -> None:
        self._pieces = [b"x" * size] if at_once else [b"x" * min(100, size - at) for at in range(0, size, 100)]
        self.asked = 0

    async def receive(self) -> Message:
        self.asked += 1
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": bool(self._pieces)}

    async def send(self, message: Message) -> None:
        raise AssertionError(message)


async def read_through(most: int, caller: Caller, declared: int | None, **state: Any) -> bytes:
    """What an application reads of a body behind the bound."""
    headers = [] if declared is None else [(b"content-length", b"%d" % declared)]
    scope = {"type": "http", "path": "/", "client": ("192.0.2.1", 1), "headers": headers, "state": state}
    reader = Reader()
    limit = BodyLimit(reader, most, lambda path: False, BodyMemory(10**6))
    await limit(scope, caller.receive, caller.send)
    return reader.body


@pytest.mark.parametrize("most", [1000, 2 * FREE_BYTES])
async def test_a_body_that_is_declared_too_large_is_not_read(most: int) -> None:
    caller = Caller(most + 1, at_once=False)
    with pytest.raises(BodyTooLarge):
        await read_through(most, caller, most + 1)
    assert not caller.asked


@pytest.mark.parametrize("most", [1000, 2 * FREE_BYTES])
@pytest.mark.parametrize("declares", [True, False])
async def test_a_body_that_has_arrived_whole_is_bounded_too(most: int, declares: bool) -> None:
    for size in (most, most + 1):
        caller, declared = Caller(size, at_once=True), size if declares else None
        reading = read_through(most, caller, declared, **{HAS_BODY: True})
        if size > most:
            with pytest.raises(BodyTooLarge):
                await reading
        else:
            assert len(await reading) == size


@pytest.mark.parametrize("most", [1000, 2 * FREE_BYTES])
async def test_a_body_that_does_not_say_its_length_is_cut_off(most: int) -> None:
    assert len(await read_through(most, Caller(most, at_once=False), None)) == most
    with pytest.raises(BodyTooLarge):
        await read_through(most, Caller(10 * most, at_once=False), None)

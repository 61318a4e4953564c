"""Bodies that do not come to an end: how long a request may keep its place for one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator

import pytest
from starlette.requests import Request
from starlette.types import Message

from proxy.errors import BadRequest
from proxy.http.bodies import SILENCE_SECONDS, TOTAL_SECONDS, read_body
from proxy.http.disconnect import CallerGone
from proxy.http.scope import HAS_BODY


class AheadLoop(asyncio.SelectorEventLoop):
    """An event loop whose time can be moved.

    Attributes:
        ahead: seconds that it is before the clock.
    """

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.fixture
def loop() -> Iterator[AheadLoop]:
    made = AheadLoop()
    yield made
    made.close()


def request_of(*pieces: tuple[float, Message], loop: AheadLoop, **state: bool) -> Request:
    """A request whose messages come each so many seconds after the one before; after the last, nothing comes."""
    waiting = iter(pieces)

    async def receive() -> Message:
        seconds, message = next(waiting, (SILENCE_SECONDS + 1, None))
        loop.ahead += seconds
        # A timer that is over ends the wait here.
        await asyncio.sleep(0.001 if message else 60)
        assert message is not None
        return message

    return Request({"type": "http", "headers": [], "state": state}, receive)


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def done(loop: AheadLoop, work: Awaitable[bytearray]) -> bytearray:
    return loop.run_until_complete(asyncio.wait_for(work, None))


def test_a_body_that_stops_is_refused(loop: AheadLoop) -> None:
    with pytest.raises(BadRequest, match="stopped arriving"):
        done(loop, read_body(request_of((0, part(b"{")), loop=loop)))


def test_a_body_in_pieces_may_be_silent_between_them(loop: AheadLoop) -> None:
    pieces = [(SILENCE_SECONDS - 1, part(b"x")) for _ in range(4)]
    last = (SILENCE_SECONDS - 1, part(b"y", more=False))
    assert done(loop, read_body(request_of(*pieces, last, loop=loop))) == b"xxxxy"


def test_a_body_that_trickles_has_an_end(loop: AheadLoop) -> None:
    often = round(TOTAL_SECONDS / (SILENCE_SECONDS - 1)) + 2
    with pytest.raises(BadRequest, match="stopped arriving"):
        done(loop, read_body(request_of(*[(SILENCE_SECONDS - 1, part(b"x"))] * often, loop=loop)))


def test_pieces_without_content_do_not_lengthen_the_wait(loop: AheadLoop) -> None:
    with pytest.raises(BadRequest, match="stopped arriving"):
        done(loop, read_body(request_of(*[(SILENCE_SECONDS / 2, part(b""))] * 3, loop=loop)))


def test_a_caller_that_hangs_up_in_the_middle_is_gone(loop: AheadLoop) -> None:
    with pytest.raises(CallerGone):
        done(loop, read_body(request_of((0, part(b"{")), (0, {"type": "http.disconnect"}), loop=loop)))


def test_a_body_that_has_arrived_is_read_whole(loop: AheadLoop) -> None:
    request = request_of((0, part(b"{}", more=False)), loop=loop, **{HAS_BODY: True})
    assert done(loop, read_body(request)) == b"{}"

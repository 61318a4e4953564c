"""Limits on a file's body while it arrives: its speed and its size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive

from proxy.errors import BadRequest
from proxy.http.disconnect import CallerGone
from proxy.uploads.body import BodyTimeouts, enforce_size, read_pieces
from proxy.uploads.sniffing import peek

pytestmark = pytest.mark.anyio
BRIEF = BodyTimeouts(silence_seconds=0.05, grace_seconds=60, least_per_second=1)


def receive_from(messages: Iterable[Message]) -> Receive:
    """A caller that sends these messages, and then nothing more."""
    left = list(messages)

    async def receive() -> Message:
        if left:
            return left.pop(0)
        await asyncio.get_running_loop().create_future()
        raise AssertionError("the future is never set")

    return receive


def piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def request(receive: Receive) -> Request:
    return Request({"type": "http", "method": "PUT", "path": "/", "headers": []}, receive)


async def all_of(content: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([piece async for piece in content])


async def test_a_whole_body_is_read() -> None:
    caller = request(receive_from([piece(b"ab"), piece(b""), piece(b"c", more=False)]))
    assert await all_of(read_pieces(caller, BRIEF)) == b"abc"


async def test_a_caller_silent_for_too_long_times_out() -> None:
    with pytest.raises(BadRequest, match="stopped arriving"):
        await all_of(read_pieces(request(receive_from([piece(b"ab")])), BRIEF))


async def test_a_caller_that_trickles_times_out() -> None:
    """A slow loris: it is never silent for long and never finishes."""
    seen = 0

    async def trickle() -> Message:
        nonlocal seen
        seen += 1
        await asyncio.sleep(0.05)
        return piece(b"x")

    patience = BodyTimeouts(silence_seconds=60, grace_seconds=1, least_per_second=10**6)
    with pytest.raises(BadRequest, match="too slowly"):
        await all_of(read_pieces(request(trickle), patience))
    assert 2 <= seen <= 30


async def test_time_spent_on_fal_does_not_count_against_the_caller() -> None:
    patience = BodyTimeouts(silence_seconds=60, grace_seconds=0.5, least_per_second=10**6)
    content = read_pieces(request(receive_from([piece(b"x") for _ in range(3)] + [piece(b"x", more=False)])), patience)
    received = 0
    async for one in content:
        received += len(one)
        await asyncio.sleep(0.2)
    assert received == 4


async def test_a_caller_that_hangs_up_is_noticed() -> None:
    with pytest.raises(CallerGone):
        await all_of(read_pieces(request(receive_from([piece(b"ab"), {"type": "http.disconnect"}])), BRIEF))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 6, 9])
async def test_peeking_at_the_first_bytes_does_not_consume_them(size: int) -> None:
    head, whole = await peek(_pieces(b"abc", b"def"), size)
    assert head == b"abcdef"[:size]
    assert await all_of(whole) == b"abcdef"


async def test_a_file_must_have_its_announced_size() -> None:
    assert await all_of(enforce_size(_pieces(b"abc", b"def"), 6)) == b"abcdef"
    with pytest.raises(BadRequest, match="shorter"):
        await all_of(enforce_size(_pieces(b"abc", b"def"), 7))
    seen = []
    with pytest.raises(BadRequest, match="longer"):
        async for one in enforce_size(_pieces(b"abc", b"def"), 5):
            seen.append(one)
    assert seen == [b"abc"]


async def _pieces(*pieces: bytes) -> AsyncGenerator[bytes, None]:
    for one in pieces:
        yield one

"""Replies to requests that leave whole or in pieces, read whole or streamed: the same, and the same failures."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import httpx
import pytest

from proxy.upstream.engine import WHOLE_BYTES
from tests.upstream.transport.both_ways import (
    CHUNKED,
    IN_PIECES,
    NO_TLS,
    OK,
    SHORT,
    SHORT_WAYS,
    WAYS,
    a_request,
    assert_same,
    outcome_of,
    outcomes,
    send,
    with_length,
)
from tests.upstream.transport.calls import MIB
from tests.upstream.transport.raw_server import (
    ANSWER,
    Peer,
    answer_each,
    raw_server,
    settle,
    stay_silent,
)
from tests.upstream.transport.test_failures import BROKEN_ANSWERS

pytestmark = pytest.mark.anyio

PACKED = gzip.compress(b'{"output": "a cat"}')
#: Bytes for which reading in pieces would take too long.
MANY_BYTES = 2000
REPLIES = {
    "length": with_length(b"{}", b"Content-Type: application/json\r\nX-Fal-Request-Id: a-b\r\n"),
    "no body": with_length(b""),
    "no reason": b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}",
    "without content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
    "refused": b"HTTP/1.1 422 Unprocessable\r\ncontent-length: 13\r\n\r\n" + b'{"detail":[]}',
    "chunks": CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    "chunks with extensions and trailers": CHUNKED + b"5;a=b\r\nhello\r\n0\r\nx-late: 1\r\nx-fal-request-id: 2\r\n\r\n",
    "spaces behind the size of a chunk": CHUNKED + b"5  \r\nhello\r\n0\r\n\r\n",
    "until closed": OK + b"x: y\r\n\r\nall of it",
    "until closed, in an older protocol": b"HTTP/1.0 200 OK\r\n\r\nall of it",
    "an older protocol that stays": b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}",
    "connection closes": with_length(b"{}", b"connection: close\r\n"),
    "another coding": OK + b"transfer-encoding: gzip\r\n\r\n" + PACKED,
    "packed": with_length(PACKED, b"content-encoding: gzip\r\n"),
    "interim replies": b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + ANSWER,
    "interim reply alone": b"HTTP/1.1 100 Continue\r\n\r\n",
    "headers several times": with_length(b"{}", b"x-a: 1\r\nContent-Type: a/b\r\nX-A: 2\r\ncontent-type: c/d\r\n"),
    "headers of odd values": with_length(b"{}", b"x-empty:\r\nx-tab: a\tb\r\nx-blank:   c  \r\nx-latin: \xe9\r\n"),
    "line breaks alone": b"HTTP/1.1 200 OK\nx: y\ncontent-length: 2\n\n{}",
    "empty lines first": b"\r\n\r\n" + ANSWER,
    "a header of 8000 bytes": with_length(b"{}", b"x: " + b"y" * 8000 + b"\r\n"),
    "a header of 9000 bytes": with_length(b"{}", b"x: " + b"y" * 9000 + b"\r\n"),
    "128 headers": with_length(b"{}", b"x: y\r\n" * 127),
    "129 headers": with_length(b"{}", b"x: y\r\n" * 128),
    "as much as is read": with_length(b"x" * WHOLE_BYTES),
    "more than is read": with_length(b"x" * (WHOLE_BYTES + MIB)),
    "more than is read, in chunks": CHUNKED + (b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 5 + b"0\r\n\r\n",
    "another reply behind": ANSWER + with_length(b"poison"),
    "garbage behind": ANSWER + b"garbage",
    "a length of nothing": OK + b"content-length:\r\n\r\n",
    "a length below nothing": OK + b"content-length: -1\r\n\r\n",
    "a length that is no number": OK + b"content-length: 2x\r\n\r\n{}",
    "another version": b"HTTP/7.3 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a blank in the name of a header": with_length(b"{}", b"x y: z\r\n"),
    "end of line in a header": with_length(b"{}", b"x: a\rb\r\n"),
    **{name: answer for name, answer in BROKEN_ANSWERS.items() if name != "chunk of garbage length"},
}
NOT_HTTP = "The upstream's answer is not HTTP."
NO_ANSWER = "The upstream closed the connection without an answer."
TOO_LARGE = "The reply is too large."
CUT = "The upstream closed the connection in the middle of its answer."
#: The body of each, or the error.
OUTCOMES: dict[str, bytes | str] = {
    **dict.fromkeys(("no body", "without content", "not modified"), b""),
    "refused": b'{"detail":[]}',
    "chunks": b"hello!",
    **dict.fromkeys(("chunks with extensions and trailers", "spaces behind the size of a chunk"), b"hello"),
    **dict.fromkeys(("until closed", "until closed, in an older protocol"), b"all of it"),
    **dict.fromkeys(("another coding", "packed"), PACKED),
    "as much as is read": b"x" * WHOLE_BYTES,
    **dict.fromkeys(("more than is read", "more than is read, in chunks"), TOO_LARGE),
    **dict.fromkeys(("a header of 9000 bytes", "129 headers", "another version", "status of two digits"), NOT_HTTP),
    **dict.fromkeys(("a length of nothing", "a length below nothing", "a length that is no number"), NOT_HTTP),
    **dict.fromkeys(("a blank in the name of a header", "end of line in a header"), NOT_HTTP),
    **dict.fromkeys(BROKEN_ANSWERS, NOT_HTTP),
    **dict.fromkeys(("interim reply alone", "closed without an answer"), NO_ANSWER),
    **dict.fromkeys(("closed in the status line", "closed in the headers"), NO_ANSWER),
    "another protocol agreed on": "The upstream changed the protocol without being asked to.",
    **dict.fromkeys(("body too short", "chunks without an end", "closed in a chunk"), CUT),
}
#: The connection cannot serve again after these, or those that are not answers.
LAST = ("connection closes", "another reply behind", "garbage behind")
#: Headers, where there is more to say of them than that they are passed on.
HEADERS = {
    "headers several times": {b"x-a": b"1, 2", b"content-type": b"a/b, c/d", b"content-length": b"2"},
    "headers of odd values": {
        b"x-empty": b"",
        b"x-tab": b"a\tb",
        b"x-blank": b"c",
        b"x-latin": b"\xe9",
        b"content-length": b"2",
    },
    "chunks with extensions and trailers": {b"transfer-encoding": b"chunked"},
    "interim replies": {b"content-type": b"application/json", b"content-length": b"2"},
}
#: Of these the end is not seen while the connection stays open.
ENDLESS = ("until closed", "until closed, in an older protocol", "another coding", "interim reply alone")


def ways_to_send(name: str) -> list[bool]:
    """Whether in pieces, or not."""
    return [False, True] if len(REPLIES[name]) < MANY_BYTES else [False]


def assert_outcome(name: str, seen: tuple[Any, ...]) -> None:
    """What is seen of a reply is what it says."""
    expected = OUTCOMES.get(name, b"{}")
    if isinstance(expected, str):
        assert seen[-1] == expected
        return
    _, headers, body, error, _ = seen
    assert (body, error) == (expected, type(None))
    assert dict(headers) == HEADERS.get(name, dict(headers))


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_each_way_reads_the_same(name: str, method: str) -> None:
    for in_pieces in ways_to_send(name):
        behave = send(REPLIES[name], then="closes", in_pieces=in_pieces)
        found = await assert_same(behave, {"method": method}, {"method": method})
        assert (await outcomes(IN_PIECES, behave, {"method": method}))[0] == found[:1]
        for seen in found:
            assert_outcome(name, seen)


@pytest.mark.parametrize("name", [name for name in REPLIES if name not in BROKEN_ANSWERS and name not in ENDLESS])
async def test_each_way_keeps_the_same_connections(name: str) -> None:
    ends = name in LAST or isinstance(OUTCOMES.get(name), str)
    for in_pieces in ways_to_send(name):
        behave = send(REPLIES[name], then="stays", in_pieces=in_pieces)
        await assert_same(behave, {}, {"method": "GET"})
        for way in (SHORT, IN_PIECES):
            _, _, connections = await outcomes(way, behave, {}, {"method": "GET"})
            assert connections == (2 if ends else 1)


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_reply_without_an_end_is_a_read_timeout(way: str, name: str) -> None:
    seen, _, connections = await outcomes(
        WAYS[way], send(REPLIES[name], then="stays", in_pieces=False), {"read": 0.1}, {"read": 0.1}
    )
    assert all(httpx.ReadTimeout in one for one in seen) and connections == 2


@pytest.mark.parametrize("head", [b"content-length: 100\r\n\r\nfirst", b"\r\nfirst"], ids=["length", "until closed"])
@pytest.mark.parametrize("way", SHORT_WAYS)
async def test_a_reset_is_never_taken_for_the_end(way: str, head: bytes) -> None:
    """What lies in the buffer of a connection that is reset is lost or read, as the kernel likes."""
    engine, fetch = SHORT_WAYS[way]
    async with raw_server(send(OK + head, then="resets", in_pieces=False)) as server:
        transport = engine(ssl_context=NO_TLS)
        _, _, _, *error = await outcome_of(fetch(transport, a_request(server.url)))
        assert error[0] in (httpx.ReadError, httpx.RemoteProtocolError)
        await transport.aclose()


@pytest.mark.parametrize("way", WAYS)
async def test_garbage_in_the_body_ends_it(way: str) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"2\r\nab\r\n")
        await settle()
        await peer.send(b"zz\r\n")
        await peer.until_closed()

    seen, _, _ = await outcomes(WAYS[way], behave, {})
    assert seen[0][3:] == (httpx.RemoteProtocolError, NOT_HTTP)


async def test_silence_is_a_read_timeout_on_a_new_and_on_a_used_connection() -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        await stay_silent(peer)

    await assert_same(stay_silent, {"read": 0.1}, {"method": "GET", "read": 0.1})
    # The timer of the first, patient request is put forward for the second.
    await assert_same(behave, {}, {"method": "GET", "read": 0.1})


async def test_silence_in_the_body_is_a_read_timeout() -> None:
    seen = await assert_same(send(ANSWER[:-1], then="stays", in_pieces=False), {"read": 0.1})
    assert seen[0][0] == 200 and seen[0][3] is httpx.ReadTimeout


@pytest.mark.slow
@pytest.mark.parametrize("way", SHORT_WAYS)
async def test_a_reply_is_not_cut_while_it_speaks(way: str) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        for piece in (OK, b"content-length: 8\r\n\r\n", *[b"."] * 8):
            await asyncio.sleep(0.4)
            await peer.send(piece)

    seen, _, _ = await outcomes(SHORT_WAYS[way], behave, {"read": 3.5})
    assert seen[0][2] == b"........"


async def test_no_timeout_is_no_limit() -> None:
    assert (await assert_same(answer_each, {"read": None}, {"read": None}))[1][2] == b"{}"

"""A connection that the upstream closes in the moment it is used again: a GET is sent once more, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import struct

import httpx
import pytest

from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.calls import ask, call
from tests.upstream.transport.raw_server import ANSWER, Behaviour, Peer, answer_each, raw_server

pytestmark = pytest.mark.anyio


def stale(*, first: int = 1, answer: bytes = b"", resets: bool = False) -> Behaviour:
    """Behave: the first connections answer one request, and at the next send these bytes and hang up."""

    async def behave(peer: Peer) -> None:
        if peer.server.connections > first:
            return await answer_each(peer)
        await peer.request()
        await peer.send(ANSWER)
        await peer.head()
        await peer.send(answer)
        if resets:
            # Closing a socket that lingers for no time sends a reset.
            peer.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            peer.writer.transport.abort()
        return None

    return behave


@pytest.mark.parametrize("resets", [False, True], ids=["closed", "reset"])
async def test_a_read_is_sent_once_more_on_a_new_connection(transport: EngineTransport, resets: bool) -> None:
    async with raw_server(stale(resets=resets)) as server:
        for _ in range(3):
            assert (await call(transport, ask(server.url))).content == b"{}"
        assert server.connections == 2 and len(server.heads) == 4


async def test_other_idle_connections_are_not_tried(transport: EngineTransport) -> None:
    """When an upstream restarts, all of them are stale."""
    async with raw_server(stale(first=5)) as server:
        await asyncio.gather(*(call(transport, ask(server.url)) for _ in range(5)))
        assert server.connections == 5
        assert (await call(transport, ask(server.url))).content == b"{}"
        assert server.connections == 6 and len(server.heads) == 7


@pytest.mark.parametrize("answer", [b"H", b"HTTP/1.1 200 OK\r\ncontent-le", b"what?\r\n\r\n", ANSWER[:-1]])
async def test_a_read_whose_answer_has_begun_is_not_sent_again(transport: EngineTransport, answer: bytes) -> None:
    async with raw_server(stale(answer=answer)) as server:
        await call(transport, ask(server.url))
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await call(transport, ask(server.url))
        assert server.connections == 1 and len(server.heads) == 2


async def test_a_read_is_not_sent_a_third_time(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        if peer.server.connections == 1:
            await peer.send(ANSWER)
            await peer.head()

    async with raw_server(behave) as server:
        await call(transport, ask(server.url))
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await call(transport, ask(server.url))
        assert server.connections == 2 and len(server.heads) == 3


async def test_silence_on_a_reused_connection_is_a_timeout_and_no_repetition(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        await peer.head()
        await peer.until_closed()

    async with raw_server(behave) as server:
        await call(transport, ask(server.url))
        with pytest.raises(httpx.ReadTimeout):
            await call(transport, ask(server.url, read=0.2))
        await server.see_close()
        assert server.connections == 1 and len(server.heads) == 2

"""Which connections serve again, and that a call that ends early takes its connection along."""

from __future__ import annotations

import asyncio
import gc
import os

import httpx
import pytest

from proxy.upstream.transport import EngineTransport
from tests.upstream.transport.calls import MIB, ask, call, megabytes, respond, until_it_stops_growing
from tests.upstream.transport.raw_server import (
    ANSWER,
    PATIENCE_SECONDS,
    Peer,
    answer_each,
    answer_once_with,
    raw_server,
    settle,
)

pytestmark = pytest.mark.anyio


async def test_read_answers_give_their_connection_back(transport: EngineTransport) -> None:
    async with raw_server(answer_each) as server:
        for number in range(20):
            await call(transport, ask(server.url, "POST" if number % 2 else "GET", content=b"{}"))
    assert (server.connections, len(server.heads)) == (1, 20)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_a_body_give_their_connection_back(transport: EngineTransport, status: bytes) -> None:
    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 " + status + b"\r\ncontent-length: 7\r\n\r\n")

    async with raw_server(behave) as server:
        for _ in range(5):
            assert (await call(transport, ask(server.url))).content == b""
    assert server.connections == 1


async def test_uploads_give_their_connection_back(transport: EngineTransport) -> None:
    async with raw_server(answer_each) as server:
        for _ in range(5):
            request = ask(server.url, "PUT", headers={"content-length": str(MIB)}, content=megabytes(1))
            assert (await call(transport, request)).status_code == 200
    assert server.connections == 1


async def test_connection_close_is_honoured(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        await peer.until_closed()

    async with raw_server(behave) as server:
        for _ in range(2):
            await call(transport, ask(server.url))
        await server.see_close()
    assert server.connections == 2


async def test_idle_connections_are_closed_after_a_while() -> None:
    transport = EngineTransport(idle_seconds=0.1)
    async with raw_server(answer_each) as server:
        await call(transport, ask(server.url))
        await server.see_close()
        await call(transport, ask(server.url))
        assert server.connections == 2
        await transport.aclose()


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_a_connection_closed_while_idle_is_not_used(transport: EngineTransport, method: str) -> None:
    async with raw_server(answer_once_with(ANSWER)) as server:
        for _ in range(3):
            assert (await call(transport, ask(server.url, method))).status_code == 200
            await settle()
    assert server.connections == len(server.heads) == 3


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])  # test_stale.py has GET
async def test_a_reused_connection_that_dies_with_the_request_is_an_error_and_no_second_try(
    transport: EngineTransport, method: str
) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        await peer.request()

    async with raw_server(behave) as server:
        await call(transport, ask(server.url))
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await call(transport, ask(server.url, method, content=b"{}"))
        await settle()
    assert server.connections == 1
    assert len(server.heads) == 2


async def test_cancelling_the_call_closes_the_connection(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.until_closed()

    arrived = asyncio.Event()
    async with raw_server(behave) as server:
        calling = asyncio.create_task(call(transport, ask(server.url, read=None)))
        await arrived.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await server.see_close()


async def test_cancelling_an_upload_that_is_stuck_closes_the_connection_at_once(transport: EngineTransport) -> None:
    handed_out: list[int] = []

    async def behave(peer: Peer) -> None:
        await peer.head()
        await asyncio.wait_for(over.wait(), PATIENCE_SECONDS)

    over = asyncio.Event()
    async with raw_server(behave) as server:
        request = ask(server.url, "PUT", content=megabytes(96, handed_out), write=None)
        calling = asyncio.create_task(call(transport, request))
        await until_it_stops_growing(handed_out)
        open_files = len(os.listdir("/proc/self/fd"))
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await settle()
        # The server still does not read, so it sees nothing; a graceful close would wait for it with the socket open.
        assert len(os.listdir("/proc/self/fd")) == open_files - 1
        over.set()


async def test_closing_a_stream_early_closes_the_connection(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await peer.until_closed()

    async with raw_server(behave) as server:
        response = await respond(transport, ask(server.url))
        await anext(response.aiter_raw())
        await response.aclose()
        await server.see_close()


async def test_cancelling_the_reader_of_a_stream_closes_the_connection(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await peer.until_closed()

    async with raw_server(behave) as server:
        response = await respond(transport, ask(server.url, read=None))
        reading = asyncio.create_task(response.aread())
        await settle()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await server.see_close()
        await response.aclose()


async def test_cancelled_calls_leak_no_place_in_the_pool() -> None:
    transport = EngineTransport(max_connections=3)

    async def behave(peer: Peer) -> None:
        while True:
            if b"/silent" not in await peer.head():
                await peer.send(ANSWER)

    async with raw_server(behave) as server:
        for number in range(200):
            calling = asyncio.create_task(call(transport, ask(f"{server.url}/silent", pool=None)))
            for _ in range(number % 23):  # cancels while waiting, connecting, sending and waiting for the answer
                await asyncio.sleep(0)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        held = [await respond(transport, ask(server.url)) for _ in range(3)]
        with pytest.raises(httpx.PoolTimeout):
            await call(transport, ask(server.url, pool=0.1))
        for response in held:
            await response.aclose()
        await transport.aclose()
        gc.collect()


async def test_many_calls_at_once_share_the_pool() -> None:
    transport = EngineTransport(max_connections=8)
    async with raw_server(answer_each) as server:
        answers = await asyncio.gather(*[call(transport, ask(server.url, "POST", content=b"{}")) for _ in range(200)])
        assert {response.content for response in answers} == {b"{}"}
        assert server.connections <= 8
        await transport.aclose()


async def test_closing_the_transport_ends_running_calls(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        if len(peer.server.heads) == 1:
            await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        else:
            both_arrived.set()
        await peer.until_closed()

    both_arrived = asyncio.Event()
    async with raw_server(behave) as server:
        response = await respond(transport, ask(server.url, read=None))
        reading = asyncio.create_task(response.aread())
        calling = asyncio.create_task(call(transport, ask(server.url, read=None)))
        await asyncio.wait_for(both_arrived.wait(), PATIENCE_SECONDS)
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(reading, PATIENCE_SECONDS)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await asyncio.wait_for(calling, PATIENCE_SECONDS)
        await response.aclose()
    with pytest.raises(RuntimeError):
        await call(transport, ask(server.url))


def test_a_transport_can_be_made_without_an_event_loop() -> None:
    transport = EngineTransport()

    async def use_it() -> int:
        async with raw_server(answer_each) as server:
            status = (await call(transport, ask(server.url))).status_code
            await transport.aclose()
            return status

    assert asyncio.run(use_it()) == 200


async def test_errors_carry_nothing_of_the_request(transport: EngineTransport) -> None:
    async with raw_server(answer_once_with(b"canary-of-the-upstream\r\n\r\n")) as server:
        request = ask(f"{server.url}/?token=canary-url", headers={"authorization": "Key canary-key"})
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await call(transport, request)
    assert "canary" not in repr(caught.value) + str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert "canary-key" not in repr(error) and "canary-url" not in repr(error)
        error = error.__cause__ or error.__context__

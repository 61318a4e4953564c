"""The connections of the engine's short way to a whole reply: which serve again, and what ends with them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import httpx
import pytest

from proxy.upstream.engine import Engine
from proxy.upstream.request_bytes import SMALL_BYTES
from proxy.upstream.transport import EngineTransport
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async
from tests.upstream.transport.both_ways import (
    NO_TLS,
    OK,
    SHORT,
    ShortWay,
    a_request,
    assert_same,
    outcomes,
    send,
    with_length,
)
from tests.upstream.transport.closing_server import closing_server
from tests.upstream.transport.raw_server import (
    ANSWER,
    PATIENCE_SECONDS,
    Peer,
    RawServer,
    answer_each,
    raw_server,
    settle,
    stay_silent,
)
from tests.upstream.transport.test_idle import CALLS, call_often
from tests.upstream.transport.test_stale import stale

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
@pytest.mark.parametrize("answer", [b"", b"H", b"HTTP/1.1 200 OK\r\ncontent-le", b"what?\r\n\r\n", ANSWER[:-1]])
@pytest.mark.parametrize("resets", [False, True])
async def test_a_connection_that_the_upstream_closes_at_its_reuse(method: str, answer: bytes, resets: bool) -> None:
    """Only a GET that got no byte is sent once more."""
    behave = stale(answer=answer, resets=resets)
    if answer and resets:
        # Whether the bytes or the reset is seen first is the kernel's.
        _, heads, connections = await outcomes(SHORT, behave, {"method": method}, {"method": method})
        assert connections == (2 if len(heads) == 3 else 1) and (method == "GET" or connections == 1)
    else:
        await assert_same(behave, {"method": method}, {"method": method}, {"method": method})


async def test_other_idle_connections_are_not_tried() -> None:
    transport = ShortWay(ssl_context=NO_TLS)
    async with raw_server(stale(first=5)) as server:
        await asyncio.gather(*(transport.fetch(a_request(server.url)) for _ in range(5)))
        assert (await transport.fetch(a_request(server.url, "GET"))).body == b"{}"
        assert server.connections == 6 and len(server.heads) == 7
        await transport.aclose()


@pytest.mark.slow
async def test_no_call_is_lost_or_doubled_on_connections_that_are_being_closed() -> None:
    transport = ShortWay(ssl_context=NO_TLS)

    async def fetch(url: str, body: bytes) -> None:
        reply = await transport.fetch(a_request(url, body=body))
        if reply.error is not None:
            raise reply.error

    with closing_server() as server:
        failures = await call_often(fetch, server, CALLS)
        await transport.aclose()
    assert server.closed > 50 and max(server.bodies.values()) == 1 and not failures.unsent
    assert len(failures.in_doubt) <= server.raced
    assert len(server.bodies) >= CALLS - server.raced


@pytest.mark.parametrize("behind", [b"H", b"HTTP/1.1 2", b"garbage", OK, with_length(b"poison")])
async def test_bytes_behind_a_reply_do_not_reach_the_next(behind: bytes) -> None:
    transport = ShortWay(ssl_context=NO_TLS)
    async with raw_server(send(ANSWER + behind, then="stays", in_pieces=False)) as server:
        for _ in range(3):
            assert (await transport.fetch(a_request(server.url))).body == b"{}"
        assert server.connections == 3
        await transport.aclose()


async def test_bytes_that_a_server_sends_unasked_are_not_the_next_reply() -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(ANSWER)
        if peer.server.connections == 1:
            await asyncio.wait_for(idle.wait(), PATIENCE_SECONDS)
            await peer.send(with_length(b"poison"))
            spoken.set()
            assert await peer.until_closed() == b""

    idle, spoken = asyncio.Event(), asyncio.Event()
    transport = ShortWay(ssl_context=NO_TLS)
    async with raw_server(behave) as server:
        await transport.fetch(a_request(server.url))
        idle.set()
        await spoken.wait()
        await settle()
        assert (await transport.fetch(a_request(server.url))).body == b"{}"
        assert server.connections == 2
        await transport.aclose()


async def test_both_ways_and_streams_share_the_connections() -> None:
    transport = EngineTransport(ssl_context=NO_TLS)
    async with raw_server(answer_each) as server:
        for _ in range(3):
            assert (await transport.fetch(a_request(server.url))).body == b"{}"
            assert (await Engine.fetch(transport, a_request(server.url))).body == b"{}"
        assert server.connections == 1
        await transport.aclose()


@pytest.mark.parametrize("size", [SMALL_BYTES, SMALL_BYTES + 1])
async def test_a_request_that_leaves_in_pieces_goes_the_plain_way(size: int) -> None:
    received = []

    async def behave(peer: Peer) -> None:
        received.append(await peer.request())
        await peer.send(ANSWER)

    transport = EngineTransport(ssl_context=NO_TLS)
    async with raw_server(behave) as server:
        assert (await transport.fetch(a_request(server.url, body=b"x" * size))).body == b"{}"
        await transport.aclose()
    assert received == [b"x" * size]


@pytest.mark.parametrize(
    ("target", "header"),
    [("/a b", "x"), ("/a\r\nx: y", "x"), ("/a", "x\r\ny: z"), ("/a", "x\ny"), ("/a", "x\0"), ("/a", "x\x7f")],
)
async def test_a_request_that_could_be_read_in_two_ways_is_not_sent(target: str, header: str) -> None:
    transport = EngineTransport(ssl_context=NO_TLS)
    async with raw_server(answer_each) as server:
        request = a_request(server.url)
        request = request._replace(target=target, headers={**request.headers, "x-own": header})
        with pytest.raises(httpx.LocalProtocolError):
            await transport.fetch(request)
        assert server.connections == 0
        await transport.aclose()


async def test_an_unreachable_upstream_is_a_connect_error() -> None:
    transport = ShortWay(ssl_context=NO_TLS)
    with pytest.raises(httpx.ConnectError):
        await transport.fetch(a_request(f"http://127.0.0.1:{free_port()}"))
    await transport.aclose()


async def test_a_full_pool_is_a_pool_timeout_until_a_reply_is_read() -> None:
    transport = ShortWay(max_connections=1, ssl_context=NO_TLS)
    release = asyncio.Event()

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.wait_for(release.wait(), PATIENCE_SECONDS)
            await peer.send(ANSWER)

    async with raw_server(behave) as server:
        held = asyncio.create_task(transport.fetch(a_request(server.url)))
        await until_asked(server, 1)
        with pytest.raises(httpx.PoolTimeout):
            await transport.fetch(a_request(server.url, pool=0.1))
        waiting = asyncio.create_task(transport.fetch(a_request(server.url)))
        await settle()
        release.set()
        assert [(await task).body for task in (held, waiting)] == [b"{}"] * 2
        assert server.connections == 1
        await transport.aclose()


async def until_asked(server: RawServer, times: int) -> None:
    await wait_until_async(lambda: len(server.heads) == times, seconds=PATIENCE_SECONDS)


async def test_cancelling_closes_the_connection_and_frees_its_place() -> None:
    transport = ShortWay(max_connections=1, ssl_context=NO_TLS)
    async with raw_server(stay_silent) as server:
        calling = asyncio.create_task(transport.fetch(a_request(server.url, read=None)))
        await until_asked(server, 1)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await server.see_close()
        with pytest.raises(httpx.ReadTimeout):
            await transport.fetch(a_request(server.url, read=0.1))
        await transport.aclose()


async def test_closing_the_transport_ends_awaited_replies() -> None:
    transport = ShortWay(ssl_context=NO_TLS)
    async with raw_server(stay_silent) as server:
        calling = asyncio.create_task(transport.fetch(a_request(server.url, "GET", read=None)))
        await until_asked(server, 1)
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(calling, PATIENCE_SECONDS)
        await server.see_close()
        assert len(server.heads) == 1
        with pytest.raises(RuntimeError):
            await transport.fetch(a_request(server.url))


@pytest.mark.parametrize("limits", [{"idle_seconds": 0.05}, {"max_age_seconds": 0.05}], ids=["idle", "old"])
async def test_idle_and_old_connections_are_closed(limits: dict[str, float]) -> None:
    transport = ShortWay(**limits, ssl_context=NO_TLS)  # type: ignore[arg-type]
    async with raw_server(answer_each) as server:
        await transport.fetch(a_request(server.url))
        await server.see_close()
        await transport.fetch(a_request(server.url))
        assert server.connections == 2
        await transport.aclose()


async def test_errors_carry_nothing_of_the_request() -> None:
    transport = ShortWay(ssl_context=NO_TLS)
    async with raw_server(send(b"canary-of-the-upstream\r\n\r\n", then="closes", in_pieces=False)) as server:
        request = a_request(server.url)._replace(target="/?token=canary-url")
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await transport.fetch(request)
        error: BaseException | None = caught.value
        while error is not None:
            assert "canary" not in repr(error)
            error = error.__cause__ or error.__context__
        assert "Key" not in repr(request)
        await transport.aclose()


async def test_a_failure_leaves_no_reference_cycle_for_the_collector() -> None:
    class Headers(dict[str, str]):
        """Of a plain dict there is no weak reference."""

    async def fail(url: str) -> weakref.ref[Headers]:
        request = a_request(url)
        headers = Headers(request.headers)
        with contextlib.suppress(httpx.RemoteProtocolError):
            await transport.fetch(request._replace(headers=headers))
        return weakref.ref(headers)

    transport = ShortWay(ssl_context=NO_TLS)
    async with raw_server(send(b"HTTP/1.1 2", then="closes", in_pieces=False)) as server:
        gc.disable()
        try:
            kept = await fail(server.url)
            await settle()
            assert kept() is None
        finally:
            gc.enable()
        await transport.aclose()

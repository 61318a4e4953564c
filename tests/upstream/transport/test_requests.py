"""The exact bytes of a request."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from proxy.upstream.transport import EngineTransport
from tests.support.servers import free_port
from tests.upstream.transport.calls import KERNEL_BUFFERS, MIB, ask, body_of, call, megabytes, until_it_stops_growing
from tests.upstream.transport.raw_server import (
    ANSWER,
    Peer,
    answer_each,
    raw_server,
    stay_silent,
)

pytestmark = pytest.mark.anyio


async def test_the_wire_carries_the_request_as_it_stands_and_nothing_else(transport: EngineTransport) -> None:
    async with raw_server(answer_each) as server:
        headers = [("host", "queue.fal.run"), ("Authorization", "Key a:b"), ("X-Twice", "1"), ("x-twice", "2")]
        await call(transport, ask(f"{server.url}/fal-ai/x", "POST", headers=headers, content=b"{}"))
        await call(transport, ask(f"{server.url}/fal-ai/x", headers=headers))
    common = b"\r\nhost: queue.fal.run\r\nAuthorization: Key a:b\r\nX-Twice: 1\r\nx-twice: 2\r\n"
    assert server.heads == [
        b"POST /fal-ai/x HTTP/1.1" + common + b"Content-Length: 2\r\n\r\n",
        b"GET /fal-ai/x HTTP/1.1" + common + b"\r\n",
    ]


@pytest.mark.parametrize("method", ["DELETE", "PUT", "OPTIONS", "PATCH"])
async def test_no_method_gets_headers_that_httpx_did_not_set(transport: EngineTransport, method: str) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_server(behave) as server:
        request = ask(server.url, method)
        await call(transport, request)
    expected = b"".join(b"%b: %b\r\n" % header for header in request.headers.raw)
    assert server.heads == [b"%b / HTTP/1.1\r\n%b\r\n" % (method.encode(), expected)]


@pytest.mark.parametrize(
    "target",
    ["/a%2Fb/c", "/a/%7Eb;c=d/", "/x?", "/x?a=%2B+&a=%20&b", "/%E2%82%AC?q=%e2", "//double//", "/a%00b", "/%2e%2e/x"],
)
async def test_the_path_is_not_quoted_again_or_normalised(transport: EngineTransport, target: str) -> None:
    async with raw_server(answer_each) as server:
        url = httpx.URL(server.url).copy_with(raw_path=target.encode())
        assert url.raw_path == target.encode()
        request = ask(server.url)
        request.url = url
        await call(transport, request)
    assert server.heads[0].split(b" ")[1] == target.encode()


async def test_a_target_of_the_request_replaces_the_path(transport: EngineTransport) -> None:
    async with raw_server(answer_each) as server:
        request = ask(server.url)
        request.extensions["target"] = b"/a%2Fb?c=d"
        await call(transport, request)
        request.extensions["target"] = b"/a HTTP/1.1\r\nx-more: 1\r\n\r\nGET /b"
        with pytest.raises(httpx.LocalProtocolError):
            await call(transport, request)
    assert [head.split(b" ")[1] for head in server.heads] == [b"/a%2Fb?c=d"]


@pytest.mark.parametrize("proxy_variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_proxies_of_the_environment_are_ignored(
    transport: EngineTransport, monkeypatch: pytest.MonkeyPatch, proxy_variable: str
) -> None:
    monkeypatch.setenv(proxy_variable, f"http://127.0.0.1:{free_port()}")
    async with raw_server(answer_each) as server:
        assert (await call(transport, ask(server.url))).status_code == 200


async def test_a_body_with_a_length_is_streamed_with_it(transport: EngineTransport) -> None:
    received = []

    async def behave(peer: Peer) -> None:
        received.append(await peer.request())
        await peer.send(ANSWER)

    async with raw_server(behave) as server:
        headers = {"content-length": "6"}
        await call(transport, ask(server.url, "PUT", headers=headers, content=body_of(b"abc", b"", b"def")))
    assert received == [b"abcdef"]
    assert b"transfer-encoding" not in server.heads[0].lower()


async def test_a_body_without_a_length_is_sent_in_chunks(transport: EngineTransport) -> None:
    async def behave(peer: Peer) -> None:
        await peer.head()
        assert await peer.reader.readuntil(b"0\r\n\r\n") == b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
        await peer.send(ANSWER)

    async with raw_server(behave) as server:
        await call(transport, ask(server.url, "PUT", content=body_of(b"abc", b"", b"def")))
    assert b"transfer-encoding: chunked\r\n" in server.heads[0].lower()
    assert b"content-length" not in server.heads[0].lower()


async def test_a_large_body_in_memory_arrives_whole(transport: EngineTransport) -> None:
    picture = bytes(range(256)) * 4096 * 3
    received = []

    async def behave(peer: Peer) -> None:
        received.append(await peer.request())
        await peer.send(ANSWER)

    async with raw_server(behave) as server:
        await call(transport, ask(server.url, "POST", content=picture))
    assert received == [picture]


async def test_an_upload_goes_no_faster_than_the_upstream_reads(transport: EngineTransport) -> None:
    handed_out: list[int] = []
    go_on = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.head()
        await go_on.wait()
        for _ in range(96):
            await peer.reader.readexactly(MIB)
        await peer.send(ANSWER)

    async with raw_server(behave) as server:
        headers = {"content-length": str(96 * MIB)}
        request = ask(server.url, "PUT", headers=headers, content=megabytes(96, handed_out))
        sending = asyncio.create_task(call(transport, request))
        await until_it_stops_growing(handed_out)
        assert 0 < len(handed_out) * MIB < KERNEL_BUFFERS
        go_on.set()
        assert (await sending).status_code == 200
    assert len(handed_out) == 96


@pytest.mark.parametrize(("length", "chunks"), [("5", [b"abc"]), ("2", [b"abc"]), ("0", [b"abc"])])
async def test_a_body_that_is_not_as_long_as_announced_is_an_error_of_ours(
    transport: EngineTransport, length: str, chunks: list[bytes]
) -> None:
    async with raw_server(stay_silent) as server:
        with pytest.raises(httpx.LocalProtocolError):
            await call(transport, ask(server.url, "PUT", headers={"content-length": length}, content=body_of(*chunks)))
        await server.see_close()


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "1"), ("content-length", "1")],
        [("content-length", "1"), ("transfer-encoding", "chunked")],
        [("transfer-encoding", "gzip, chunked")],
        [("content-length", "+1")],
        [("x", "a\r\ny: b")],
        [("x", "a\nb")],
        [("x", "a\x00b")],
        [("x y", "a")],
        [("", "a")],
    ],
)
async def test_headers_that_could_be_read_in_two_ways_are_not_sent(
    transport: EngineTransport, headers: list[tuple[str, str]]
) -> None:
    async with raw_server(answer_each) as server:
        request = ask(server.url, "POST", content=body_of(b"x"))
        request.headers = httpx.Headers([("host", "x"), *headers])
        with pytest.raises(httpx.LocalProtocolError):
            await call(transport, request)
    assert server.connections == 0


@pytest.mark.parametrize("method", ["GET /x HTTP/1.1\r\nx:", "GET\r\n", "", "HEAD"])
async def test_a_malformed_method_is_not_sent_and_no_head(transport: EngineTransport, method: str) -> None:
    async with raw_server(answer_each) as server:
        with pytest.raises(httpx.LocalProtocolError):
            await call(transport, ask(server.url, method))
    assert server.connections == 0


async def test_other_schemes_are_refused(transport: EngineTransport) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        await call(transport, ask("ftp://127.0.0.1/"))

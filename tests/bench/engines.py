"""Which engine under httpx: the same calls over each, beside each other, in rounds.

    python -m tests.bench.engines [--rounds N] [--seconds S]

The static upstream runs in a process of its own on core 1, the client on core 0, with 32 calls at a time. Of a round
each engine gets one turn, so that what else the machine does meets them alike. Rates are per second of the client's
own processor time, all its threads; medians are printed. Engines whose
packages (`pyreqwest`, `httpx-aiohttp`) are not installed are left out. The thin transports below do the least that
works, without naming failures or honouring timeouts as the proxy's own must: they show what their engine could reach.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import httpx
import uvloop
import yarl

from tests.bench.processes import ROOT, machine, static_fal, versions
from tests.support.servers import free_port
from tests.upstream.transport.httpx_interface import HttpxInterface

CALLS_AT_A_TIME = 32
BODY = b'{"image_url":"https://example.com/cat.png","prompt":"What is in this picture?","max_tokens":64}'
HEADERS = {"authorization": "Key bench:bench", "accept": "application/json", "content-type": "application/json"}
TIMEOUT = {"timeout": {"pool": 5.0, "connect": 5.0, "write": 30.0, "read": 30.0}}
WORKLOADS = {"json": "/fal-ai/llava-next", "stream": "/run/fal-ai/llava-next/stream"}
OURS = "fal-proxy"


class ThinSession(httpx.AsyncBaseTransport):
    """aiohttp by its front door, `ClientSession`."""

    session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.session = self.session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1000),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=["accept", "accept-encoding", "user-agent", "content-type"],
        )
        timeout = request.extensions["timeout"]
        response = await self.session.request(
            request.method,
            yarl.URL(str(request.url), encoded=True),
            headers=[(name.decode(), value.decode()) for name, value in request.headers.raw],
            data=request.content,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(connect=timeout["connect"], sock_read=timeout["read"]),
        )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_SessionBody(response))

    async def aclose(self) -> None:
        assert self.session is not None
        await self.session.close()


class _SessionBody(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.response.content.readany():
            yield chunk

    async def aclose(self) -> None:
        self.response.release()


class ThinPyreqwest(httpx.AsyncBaseTransport):
    """pyreqwest without its own httpx layer."""

    def __init__(self) -> None:
        from pyreqwest.client import ClientBuilder

        self.client = ClientBuilder().no_proxy().follow_redirects(False).http1_only().build()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = [(name.decode(), value.decode()) for name, value in request.headers.raw]
        builder = self.client.request(request.method, str(request.url)).headers(headers)
        exchange = builder.body_bytes(request.content).build_streamed()
        response = await exchange.__aenter__()
        return httpx.Response(
            response.status, headers=list(response.headers.items()), stream=_PyreqwestBody(exchange, response)
        )

    async def aclose(self) -> None:
        await self.client.close()


class _PyreqwestBody(httpx.AsyncByteStream):
    def __init__(self, exchange: Any, response: Any) -> None:
        self.exchange, self.response = exchange, response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self.response.body_reader.read_chunk()) is not None:
            yield bytes(chunk)

    async def aclose(self) -> None:
        await self.exchange.__aexit__(None, None, None)


def engines() -> dict[str, Callable[[], httpx.AsyncBaseTransport]]:
    """Name -> factory, of those that are installed."""
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    found: dict[str, Callable[[], httpx.AsyncBaseTransport]] = {
        OURS: HttpxInterface,
        "httpx": lambda: httpx.AsyncHTTPTransport(limits=limits),
        "aiohttp session, thin": ThinSession,
    }
    if importlib.util.find_spec("httpx_aiohttp"):
        from httpx_aiohttp import AiohttpTransport

        found["httpx-aiohttp"] = lambda: AiohttpTransport(limits=limits)
    if importlib.util.find_spec("pyreqwest"):
        from pyreqwest.compatibility.httpx import HttpxTransport

        found["pyreqwest, its transport"] = HttpxTransport
        found["pyreqwest, thin"] = ThinPyreqwest
    return found


async def one_call(transport: httpx.AsyncBaseTransport, url: str) -> None:
    request = httpx.Request("POST", url, headers=HEADERS, content=BODY, extensions=TIMEOUT)
    response = await transport.handle_async_request(request)
    size = 0
    async for chunk in response.stream:  # type: ignore[union-attr]
        size += len(chunk)
    await response.aclose()
    assert response.status_code == 200 and size > 0


async def turn(make: Callable[[], httpx.AsyncBaseTransport], url: str, seconds: float) -> float:
    """Calls per second of processor time of one engine, after its connections are up."""
    transport = make()
    calls = 0

    async def caller(until: float) -> None:
        nonlocal calls
        while time.perf_counter() < until:
            await one_call(transport, url)
            calls += 1

    async def for_seconds(duration: float) -> None:
        until = time.perf_counter() + duration
        await asyncio.gather(*[caller(until) for _ in range(CALLS_AT_A_TIME)])

    try:
        await for_seconds(seconds / 4)
        calls, started = 0, time.process_time()
        await for_seconds(seconds)
        return calls / (time.process_time() - started)
    finally:
        await transport.aclose()


async def compare(url: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    results: dict[str, list[float]] = {name: [] for name in engines()}
    for _ in range(rounds):
        for name, make in engines().items():
            results[name].append(round(await turn(make, url, seconds), 1))
    return results


def table(workload: str, results: dict[str, list[float]]) -> str:
    """Medians, and the median of each round's ratio to plain httpx."""
    lines = [f"{workload:32} {'per CPU s':>9} {'x httpx':>8}   rounds"]
    for name, rates in sorted(results.items(), key=lambda item: -statistics.median(item[1])):
        ratio = statistics.median(mine / base for mine, base in zip(rates, results["httpx"], strict=True))
        lines.append(f"{name:32} {statistics.median(rates):9.0f} {ratio:8.1f}   {' '.join(f'{r:.0f}' for r in rates)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("httpx", "httpcore", "aiohttp", "httpx-aiohttp", "pyreqwest", "uvloop"),
        "calls_at_a_time": CALLS_AT_A_TIME,
    }
    os.sched_setaffinity(0, {0})
    port = free_port()
    with static_fal(port, 1, ROOT / "build" / "static-upstream.log"):
        for workload, path in WORKLOADS.items():
            url = f"http://127.0.0.1:{port}{path}"
            report[workload] = uvloop.run(compare(url, options.rounds, options.seconds))
            print(table(workload, report[workload]), end="\n\n", flush=True)
    (ROOT / "build" / "engines.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({key: report[key] for key in ("machine", "versions")}))


if __name__ == "__main__":
    main()

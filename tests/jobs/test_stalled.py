"""A caller who stops reading: a real connection that stalls while the job logs more than the connection holds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial

import orjson
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from proxy.http.disconnect import cancel_on_disconnect, disconnect_of
from proxy.http.event_stream import EventStream
from proxy.http.scope import NO_STORE, SHOWN
from proxy.jobs.events import status_events, wait_for_first_update
from proxy.jobs.hub import Hub
from proxy.server.connections import ConnectionLimits
from proxy.server.factory import ProtocolFactory
from tests.jobs.hubs import JOB, hub_before, reading
from tests.support.scripted import ScriptedFal, log_line, whole_life
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio
LINE = "x" * 20_000
#: Twelve megabytes: several times what the system keeps for a connection.
LINES = 600


@contextlib.asynccontextmanager
async def serving(hub: Hub, limits: ConnectionLimits | None = None) -> AsyncIterator[int]:
    """The port of a server whose every answer is the status stream of the job."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][SHOWN] = [NO_STORE]
        watch = hub.join(JOB)
        await cancel_on_disconnect(disconnect_of(scope, receive), wait_for_first_update(watch))
        events = status_events(watch, logs=True, rewrite=None)
        await EventStream(events, {}, on_close=[partial(hub.leave, watch)])(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=0, http=ProtocolFactory(limits), lifespan="off", log_config=None))
    running = asyncio.create_task(server.serve())
    await wait_until_async(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


@contextlib.asynccontextmanager
async def reading_little(port: int) -> AsyncIterator[asyncio.StreamReader]:
    """A caller whose side of the connection keeps a few kilobytes and no more."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
    writer.write(b"GET / HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")
    try:
        yield reader
    finally:
        writer.close()


async def test_a_stalled_caller_gets_the_end_and_no_line_twice_and_nothing_piles_up() -> None:
    fal = ScriptedFal(whole_life()[:1])
    async with hub_before(fal) as bench, serving(bench.hub) as port, reading_little(port) as reader:
        await reader.readuntil(b'"IN_QUEUE"')
        for number in range(LINES):
            fal.add(status="IN_PROGRESS", logs=[log_line(f"{number:06d}{LINE}")])
            await wait_until_async(lambda: (known := bench.hub.find_cached(JOB)) and known.lines == len(fal.lines()))
        fal.add(status="COMPLETED", logs=[log_line("the last one")])
        await wait_until_async(lambda: (known := bench.hub.find_cached(JOB)) and known.is_last)
        # Only now it reads on.
        text = await reader.read()
    events = [orjson.loads(line[6:]) for line in text.split(b"\n") if line.startswith(b"data: ")]
    numbers = [line["message"][:6] for event in events for line in event["logs"]]
    assert events[-1]["status"] == "COMPLETED" and numbers[-1] == "the la"
    assert numbers == sorted(set(numbers)), "a line came twice, or out of order"
    # What it could not take was merged, or let go where the log is too long: it was not kept for this one caller.
    assert len(text) < LINES * len(LINE) * 3 / 4


@pytest.mark.parametrize("size", [40_000, 1_000_000], ids=["little", "much"])
async def test_a_stream_that_nothing_reads_is_closed(size: int) -> None:
    """Also where the little that it has yet to take waits in the system's buffer, and the server has written all."""
    fal, limits = ScriptedFal(whole_life()[:1]), ConnectionLimits(write_seconds=1)
    async with hub_before(fal) as bench, serving(bench.hub, limits) as port, reading_little(port) as reader:
        await reader.readuntil(b'"IN_QUEUE"')
        with reading(bench.hub) as watch:
            assert watch.readers == 2
            fal.add(status="IN_PROGRESS", logs=[log_line("x" * size)])
            await wait_until_async(lambda: watch.readers == 1)
            assert not watch.is_over


async def test_a_stream_that_is_read_slowly_stays() -> None:
    """For longer in all than a reader may take nothing, with pauses far shorter than that, also on a busy machine."""
    fal, limits = ScriptedFal(whole_life()[:1]), ConnectionLimits(write_seconds=3)
    async with hub_before(fal) as bench, serving(bench.hub, limits) as port, reading_little(port) as reader:
        await reader.readuntil(b'"IN_QUEUE"')
        fal.add(status="COMPLETED", logs=[log_line("x" * 400_000)])
        read = 0
        while piece := await reader.read(20_000):
            read += len(piece)
            await asyncio.sleep(0.2)
    assert read > 400_000

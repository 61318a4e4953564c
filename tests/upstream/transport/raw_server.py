"""An upstream that does exactly what a test sets, byte by byte, in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
PATIENCE_SECONDS = 60


class Peer:
    """One accepted connection, seen from the server."""

    def __init__(self, server: RawServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer

    async def head(self) -> bytes:
        """Read one request's head and remember it; raises IncompleteReadError at the end of the connection."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.server.heads.append(head)
        return head

    async def request(self) -> bytes:
        """Read one request that has a content-length or no body; gives its body."""
        head = await self.head()
        lengths = [line[16:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        return await self.reader.readexactly(int(lengths[0]) if lengths else 0)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> bytes:
        """What the client still sends until it closes the connection."""
        rest = b""
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(65536):
                rest += data
        self.server.closed_by_client.set()
        return rest


Behaviour = Callable[[Peer], Awaitable[object]]


class RawServer:
    """`heads` of all requests received, and how many `connections` were accepted."""

    def __init__(self, behaviour: Behaviour, scheme: str) -> None:
        self.behaviour = behaviour
        self.scheme = scheme
        self.url = ""
        self.heads: list[bytes] = []
        self.connections = 0
        self.closed_by_client = asyncio.Event()
        self.failures: list[Exception] = []
        self.peers: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.peers.add(task)
        try:
            await self.behaviour(Peer(self, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_by_client.set()
        except Exception as failure:
            self.failures.append(failure)
        except asyncio.CancelledError:
            pass  # the test is over; a cancelled task would make asyncio's streams complain
        finally:
            # One that has ended already knows no loop any more.
            if not writer.is_closing():
                writer.transport.abort()
            self.peers.discard(task)

    async def see_close(self) -> None:
        """Wait until the client has closed a connection."""
        await asyncio.wait_for(self.closed_by_client.wait(), PATIENCE_SECONDS)


@contextlib.asynccontextmanager
async def raw_server(behaviour: Behaviour, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Serve on the loopback for as long as the block lasts; a failed assertion in `behaviour` fails the test."""
    raw = RawServer(behaviour, "https" if tls else "http")
    server = await asyncio.start_server(raw.accept, "127.0.0.1", 0, ssl=tls, limit=1024 * 1024)
    raw.url = f"{raw.scheme}://{'localhost' if tls else '127.0.0.1'}:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        for peer in list(raw.peers):
            peer.cancel()
        if raw.peers:
            await asyncio.wait(raw.peers)
        await server.wait_closed()
        await settle()  # lets aborted connections end before the loop does
    if raw.failures:
        raise raw.failures[0]


async def settle() -> None:
    """Let the loop see everything that already lies in its sockets."""
    for _ in range(20):
        await asyncio.sleep(0)


async def answer_each(peer: Peer) -> None:
    """Behave: the same answer to each request, until the client goes."""
    while True:
        await peer.request()
        await peer.send(ANSWER)


def answer_once_with(data: bytes) -> Behaviour:
    """Behave: read a request, send these bytes, close."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        peer.writer.close()
        await peer.writer.wait_closed()

    return behave


async def stay_silent(peer: Peer) -> None:
    """Behave: read a request and never answer."""
    await peer.request()
    await peer.until_closed()


@contextlib.contextmanager
def full_listener(address: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A listening socket whose queue is full: connecting to it neither succeeds nor fails."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://{address}:{listener.getsockname()[1]}/"

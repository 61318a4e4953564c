"""A forward proxy for HTTPS, as companies have, whose names all lead to this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import anyio
from anyio.abc import ByteStream, SocketAttribute, TaskStatus
from anyio.from_thread import start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream

_MOST_HEAD_BYTES = 8192


class ForwardProxy:
    """Takes `CONNECT name:port`, and passes bytes on to that port of the loopback.

    Attributes:
        url: what a client takes for `HTTPS_PROXY`.
        asked: the names and ports that clients wanted, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            task_status.started()
            await listener.serve(self._accept)

    async def _accept(self, client: ByteStream) -> None:
        # Either side may reset its connection: then the other's ends too.
        with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.IncompleteRead, ExceptionGroup):
            async with client:
                head = BufferedByteReceiveStream(client)
                method, target, _ = (await head.receive_until(b"\r\n", _MOST_HEAD_BYTES)).decode().split(" ")
                while await head.receive_until(b"\r\n", _MOST_HEAD_BYTES):
                    pass
                assert method == "CONNECT", f"a forward proxy for HTTPS was sent {method}"
                self.asked.append(target)
                async with (
                    await anyio.connect_tcp("127.0.0.1", int(target.rpartition(":")[2])) as server,
                    anyio.create_task_group() as ways,
                ):
                    await client.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    ways.start_soon(_pass, client, server, ways.cancel_scope)
                    ways.start_soon(_pass, server, client, ways.cancel_scope)


async def _pass(from_: ByteStream, to: ByteStream, both: anyio.CancelScope) -> None:
    async for piece in from_:
        await to.send(piece)
    both.cancel()


@contextlib.contextmanager
def forwarding() -> Iterator[ForwardProxy]:
    proxy = ForwardProxy()
    with start_blocking_portal() as portal:
        serving, _ = portal.start_task(proxy.serve)
        try:
            yield proxy
        finally:
            serving.cancel()

"""A TCP relay in front of a server, so that a test can make it slow, or lose its answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import anyio
from anyio.abc import ByteStream, SocketAttribute, TaskStatus
from anyio.from_thread import start_blocking_portal


class Relay:
    """Passes connections on to a port of the loopback.

    Attributes:
        port: where the relay itself listens.
        to_port: where new connections lead; may be changed at any time.
        cut_after: bytes of a client after which its connection is cut: they reach the server, and the answer is lost.
        cuts_once: whether only the first connection with these bytes is cut.
        holds_ends: whether a client does not learn that the server has closed its connection.
        delay_seconds: how much later each piece that the server sends arrives; may be changed at any time.
    """

    def __init__(self, to_port: int) -> None:
        self.port = 0
        self.delay_seconds = 0.0
        self.to_port = to_port
        self.cut_after: bytes | None = None
        self.cuts_once = False
        self.holds_ends = False

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.port = listener.extra(SocketAttribute.local_port)
            task_status.started()
            await listener.serve(self._accept)

    async def _accept(self, client: ByteStream) -> None:
        # Either side may reset its connection: then the other's ends too.
        with contextlib.suppress(OSError, anyio.BrokenResourceError, ExceptionGroup):
            async with (
                client,
                await anyio.connect_tcp("127.0.0.1", self.to_port) as server,
                anyio.create_task_group() as ways,
            ):
                ways.start_soon(self._pass, client, server, False, ways.cancel_scope)
                ways.start_soon(self._pass, server, client, True, ways.cancel_scope)

    async def _pass(self, from_: ByteStream, to: ByteStream, may_be_late: bool, both: anyio.CancelScope) -> None:
        async for piece in from_:
            if may_be_late and self.delay_seconds:
                await anyio.sleep(self.delay_seconds)
            if not may_be_late and self.cut_after is not None and self.cut_after in piece:
                if self.cuts_once:
                    self.cut_after = None
                # Nothing is passed back from here on.
                with anyio.CancelScope(shield=True):
                    both.cancel()
                    await to.send(piece)
                return
            await to.send(piece)
        if may_be_late and self.holds_ends:
            await anyio.sleep_forever()
        both.cancel()


@contextlib.contextmanager
def relaying(to_port: int) -> Iterator[Relay]:
    relay = Relay(to_port)
    with start_blocking_portal() as portal:
        serving, _ = portal.start_task(relay.serve)
        try:
            yield relay
        finally:
            serving.cancel()

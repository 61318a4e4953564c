"""Writes of one turn of the event loop: joined for each connection, and sent one connection behind the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from proxy.server.coalescing import WAITING_BYTES, CoalescingTransport, Outbox

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """A transport that keeps what is sent in a log that others share; one that `fails` cannot send."""

    def __init__(self, name: str, sent: list[tuple[str, bytes]], connection: socket.socket, *, fails: bool) -> None:
        super().__init__({"socket": connection})
        self._name = name
        self._sent = sent
        self._fails = fails
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._fails:
            raise RuntimeError("unable to perform operation")
        self._sent.append((self._name, bytes(data)))

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


async def test_what_is_written_in_one_turn_is_sent_at_its_end(connection: socket.socket) -> None:
    sent: list[tuple[str, bytes]] = []
    outbox = Outbox(60)
    first, second = (CoalescingTransport(Wire(name, sent, connection, fails=False), outbox) for name in "ab")
    first.write(b"head")
    second.write(b"answer")
    first.write(b"body")
    assert sent == []
    await asyncio.sleep(0)
    assert sent == [("a", b"headbody"), ("b", b"answer")]
    first.write(b"next")
    await asyncio.sleep(0)
    assert sent[2:] == [("a", b"next")]


async def test_a_large_piece_does_not_wait(connection: socket.socket) -> None:
    sent: list[tuple[str, bytes]] = []
    transport = CoalescingTransport(Wire("a", sent, connection, fails=False), Outbox(60))
    transport.write(b"head")
    transport.write(bytes(WAITING_BYTES))
    assert sent == [("a", b"head" + bytes(WAITING_BYTES))]


async def test_a_connection_that_cannot_send_holds_up_no_other(
    connection: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[tuple[str, bytes]] = []
    outbox = Outbox(60)
    wires = [Wire(name, sent, connection, fails=name == "b") for name in "abc"]
    for wire in wires:
        CoalescingTransport(wire, outbox).write(b"answer")
    await asyncio.sleep(0)
    assert sent == [("a", b"answer"), ("c", b"answer")]
    assert [wire.is_aborted for wire in wires] == [False, True, False]
    assert [record.message for record in caplog.records] == ["answer not sent"]

"""An upstream in threads of its own that closes idle connections at random, as the kernel lets it, and keeps count."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator

from tests.upstream.transport.raw_server import ANSWER

MOST_IDLE_SECONDS = 0.01


class ClosingServer:
    """Attributes:
    bodies: how often each body of a request arrived.
    closed: connections that were closed while they were idle.
    raced: of these, those on which a request had arrived in the very moment before: nothing can prove it unread.
    """

    def __init__(self) -> None:
        self.bodies: Counter[bytes] = Counter()
        self.closed = self.raced = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []

    def serve(self) -> None:
        """Accept until `stop`."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve_one, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _serve_one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while body := self._request(connection):
                with self._lock:
                    self.bodies[body] += 1
                connection.sendall(ANSWER)
                readable, _, _ = select.select([connection], [], [], random.uniform(0, MOST_IDLE_SECONDS))
                if not readable:
                    return self._close(connection)
        return None

    def _request(self, connection: socket.socket) -> bytes:
        connection.settimeout(0.2)
        data = b""
        while b"\r\n\r\n" not in data or not data.endswith(b"."):
            try:
                more = connection.recv(65536)
            except TimeoutError:
                if self._ends.is_set():
                    return b""
                continue
            if not more:
                return b""
            data += more
        return data.partition(b"\r\n\r\n")[2]

    def _close(self, connection: socket.socket) -> None:
        # What arrives from here on is answered with a reset by the kernel, and never confirmed.
        connection.shutdown(socket.SHUT_RDWR)
        connection.setblocking(False)
        late = b""
        with contextlib.suppress(BlockingIOError):
            late = connection.recv(65536)
        with self._lock:
            self.closed += 1
            self.raced += bool(late)


@contextlib.contextmanager
def closing_server() -> Iterator[ClosingServer]:
    """Serve for as long as the block lasts."""
    server = ClosingServer()
    accepting = threading.Thread(target=server.serve)
    accepting.start()
    try:
        yield server
    finally:
        server.stop()
        accepting.join()

"""A real Redis server, as Debian's package brings it, that keeps nothing on disk."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.programs import Program
from tests.support.servers import free_port


class Redis(Program):
    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def is_ready(self) -> bool:
        try:
            return self.ask("PING") == "+PONG"
        except OSError:
            return False

    def forget(self) -> None:
        """Empty it."""
        assert self.ask("FLUSHALL") == "+OK"

    def ask(self, command: str) -> str:
        """The first line of the answer to a command, in the words of its protocol."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile("rb") as answer:
                return answer.readline().decode().strip()


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[Redis]:
    """A server on a free port."""
    path, port = shutil.which("redis-server"), free_port()
    if path is None:
        raise FileNotFoundError("redis-server is missing: install Debian's package redis-server (make tools does)")
    with tempfile.TemporaryDirectory(prefix="fal-proxy-redis-") as name:
        quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", name]
        server = Redis([path, "--port", str(port), *quiet, *options], port, Path(name) / "log")
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def running_redis_cluster() -> Iterator[Redis]:
    """A cluster of one node, which has all slots."""
    with running_redis("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        assert server.ask("CLUSTER ADDSLOTSRANGE 0 16383") == "+OK"
        give_up_at = time.monotonic() + 20
        while server.ask("SET {fal-proxy}:up 1") != "+OK":
            assert time.monotonic() < give_up_at, "the cluster did not come up"
            time.sleep(0.05)
        yield server

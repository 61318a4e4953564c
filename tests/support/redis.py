"""A real Redis server, as Debian's package brings it, that keeps nothing on disk."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.programs import Program
from tests.support.servers import free_port
from tests.support.waiting import wait_until


class Redis(Program):
    #: Of a node of a cluster, where it speaks with the others.
    cluster_port = 0

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

    def knows(self, nodes: int) -> bool:
        """Whether it has heard of so many nodes of its cluster, itself included."""
        return f"cluster_known_nodes:{nodes}" in self.read("CLUSTER INFO")

    def is_in_order(self) -> bool:
        return "cluster_state:ok" in self.read("CLUSTER INFO")

    def is_replicating(self) -> bool:
        return "master_link_status:up" in self.read("INFO replication")

    def is_primary(self) -> bool:
        return "role:master" in self.read("INFO replication")

    def node_id(self) -> str:
        return self.read("CLUSTER MYID")

    def read(self, command: str) -> str:
        """The text that answers a command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile("rb") as answer:
                size = int(answer.readline()[1:])
                return answer.read(size).decode()

    def ask(self, command: str) -> str:
        """The first line of the answer to a command, in the words of its protocol."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
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
    with _running_node() as server:
        assert server.ask("CLUSTER ADDSLOTSRANGE 0 16383") == "+OK"
        wait_until(lambda: server.ask("SET {fal-proxy}:up 1") == "+OK", "the cluster did not come up")
        yield server


@contextlib.contextmanager
def _running_node() -> Iterator[Redis]:
    port = free_port()
    options = ["--cluster-enabled", "yes", "--cluster-port", str(port), "--cluster-node-timeout", "1000"]
    with running_redis(*options, "--repl-diskless-sync-delay", "0") as server:
        server.cluster_port = port
        yield server


@contextlib.contextmanager
def running_redis_nodes(primaries: int, replicas: int) -> Iterator[list[Redis]]:
    """A cluster that shares the slots among its first nodes; the others are replicas of the first, which has ours."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(_running_node()) for _ in range(primaries + replicas)]
        ours = int(nodes[0].ask("CLUSTER KEYSLOT {fal-proxy}")[1:])
        bounds = [16384 * number // primaries for number in range(primaries + 1)]
        ranges = sorted(itertools.pairwise(bounds), key=lambda one: not one[0] <= ours < one[1])
        for node, (start, end) in zip(nodes, ranges, strict=False):
            assert node.ask(f"CLUSTER ADDSLOTSRANGE {start} {end - 1}") == "+OK"
        for number, node in enumerate(nodes):
            assert node.ask(f"CLUSTER SET-CONFIG-EPOCH {number + 1}") == "+OK"
        for node in nodes[1:]:
            assert node.ask(f"CLUSTER MEET 127.0.0.1 {nodes[0].port} {nodes[0].cluster_port}") == "+OK"
        wait_until(lambda: all(node.knows(len(nodes)) for node in nodes), "the nodes did not meet")
        for node in nodes[primaries:]:
            assert node.ask(f"CLUSTER REPLICATE {nodes[0].node_id()}") == "+OK"
        wait_until(lambda: all(node.is_in_order() for node in nodes), "the cluster did not come up")
        wait_until(lambda: all(node.is_replicating() for node in nodes[primaries:]), "the replicas did not follow")
        yield nodes

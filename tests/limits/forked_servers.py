"""Proxies made to be killed: each a process of its own, forked from one that has imported the program already.

`fal-proxy serve` takes seconds to import, and a test that kills dozens would do little else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp

from tests.support.servers import free_port
from tests.support.waiting import wait_until_async

_PARENT = """
import json, os, signal, sys
import sqlalchemy.dialects.postgresql.asyncpg, sqlalchemy.dialects.sqlite.aiosqlite
from proxy.cli import main

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that none of the dead lies around
for line in sys.stdin:
    order = json.loads(line)
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(order["environ"])
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            main(["serve"], prog_name="fal-proxy")
        finally:
            os._exit(1)
    print(pid, flush=True)
"""


class ForkedServers:
    def __init__(self, parent: subprocess.Popen[str], log: Path) -> None:
        self._parent = parent
        self._log = log
        self._living: set[int] = set()

    async def start(self, environ: Mapping[str, str], http: aiohttp.ClientSession) -> tuple[str, int]:
        """A proxy that is ready: its URL and its process."""
        port = free_port()
        order = {"environ": {**environ, "PROXY_PORT": str(port)}, "log": str(self._log)}
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        pid = int(self._parent.stdout.readline())
        self._living.add(pid)
        url = f"http://127.0.0.1:{port}"
        await wait_until_async(lambda: self._is_ready(url, pid, http), "the proxy did not start")
        return url, pid

    async def _is_ready(self, url: str, pid: int, http: aiohttp.ClientSession) -> bool:
        assert not await self._is_gone(pid), self._log.read_text()[-4000:]
        try:
            async with http.get(f"{url}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def kill(self, pid: int) -> None:
        """At once, and wait until nothing is left of it, its connections and locks included."""
        await self._end(pid, signal.SIGKILL)

    async def stop(self, pid: int) -> None:
        """As an orchestrator does, and wait until it is gone."""
        await self._end(pid, signal.SIGTERM)

    @staticmethod
    @contextlib.contextmanager
    def paused(pid: int) -> Iterator[None]:
        """There, but nothing of it runs during the block."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _end(self, pid: int, number: int) -> None:
        os.kill(pid, number)
        await wait_until_async(lambda: self._is_gone(pid), "the process did not die")
        self._living.discard(pid)

    @staticmethod
    async def _is_gone(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    def end(self) -> None:
        for pid in self._living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def fork_servers(folder: Path) -> Iterator[ForkedServers]:
    pipe, log = subprocess.PIPE, folder / "servers.log"
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdin=pipe, stdout=pipe, text=True) as parent:
        found = ForkedServers(parent, log)
        try:
            yield found
        finally:
            found.end()
            parent.communicate(timeout=20)

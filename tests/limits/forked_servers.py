"""Proxies made to be killed: each a process of its own, forked from one that has imported the program already."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp

from tests.support.forking import Forker
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async


class ForkedServers:
    """Servers whose output goes to a log in `folder`."""

    def __init__(self, forker: Forker, folder: Path) -> None:
        self._forker = forker
        self._folder = folder
        self._log = folder / "servers.log"
        self._living: set[int] = set()

    async def start(self, environ: Mapping[str, str], http: aiohttp.ClientSession) -> tuple[str, int]:
        """A proxy that is ready: its URL and its process."""
        port = free_port()
        variables = {**environ, "PROXY_PORT": str(port)}
        pid = self._forker.start(["serve"], variables, self._folder, self._log, self._log)
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
        """Freeze the process during the block."""
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
def fork_servers(forker: Forker, folder: Path) -> Iterator[ForkedServers]:
    found = ForkedServers(forker, folder)
    try:
        yield found
    finally:
        found.end()

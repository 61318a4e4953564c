"""Many callers of a proxy at once, each with its own subject, so that the ledger shows whose call is whose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from proxy.tenants.caller import SessionQuota
from tests.support.images import PIXEL
from tests.support.secrets import SECRET

ENDPOINT = "fal-ai/llava-next"

#: A job that is done in 150 ms.
QUICK = "[[pace queue_positions=1 seconds_per_position=0.05 run_seconds=0.1]]"
QUICK_SECONDS = 0.15
_sessions = Sessions((Secret(SECRET),), SystemClock())


@dataclass
class Answered:
    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def error_type(self) -> str:
        return self.body.get("error_type", "") if isinstance(self.body, dict) else ""


@dataclass
class Caller:
    """One subject of a tenant, on one proxy."""

    http: aiohttp.ClientSession
    url: str
    tenant: str
    subject: str
    quotas: tuple[SessionQuota, ...] = field(default=(), kw_only=True)
    token: str = field(default="", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        self.token = self.token or _sessions.mint(self.tenant, self.subject, 3600, quotas=self.quotas)[0]
        self._headers = {"authorization": f"Bearer {self.token}"}

    async def run(self, prompt: str, **headers: str) -> Answered:
        return await self._ask("POST", f"/fal/run/{ENDPOINT}", {"image_url": PIXEL, "prompt": prompt}, headers)

    async def stream(self, prompt: str) -> int:
        """Read a stream to its end; how many events there were."""
        async with self._open_stream(prompt) as response:
            return (await response.read()).count(b"data:")

    async def read_stream(self, prompt: str) -> Answered:
        """Read a stream to its end: the document of its last event, or of the refusal."""
        async with self._open_stream(prompt) as response:
            last = (await response.read()).rpartition(b"data:")[2]
            return Answered(response.status, json.loads(last), response.headers)

    async def begin_stream(self, prompt: str) -> None:
        """Hang up after the first event of a stream."""
        async with self._open_stream(prompt) as response:
            await response.content.readuntil(b"data:")
            response.close()

    def _open_stream(self, prompt: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        body, url = {"image_url": PIXEL, "prompt": prompt}, f"{self.url}/fal/run/{ENDPOINT}/stream"
        return self.http.post(url, json=body, headers=self._headers)

    async def submit(self, prompt: str, **headers: str) -> Answered:
        return await self._ask("POST", f"/fal/queue/{ENDPOINT}", {"image_url": PIXEL, "prompt": prompt}, headers)

    async def facts(self) -> Answered:
        return await self._ask("GET", "/v1/session")

    async def in_flight(self) -> int:
        """How many calls and jobs of its whole tenant the proxy counts now."""
        return int((await self.facts()).body["in_flight"]["tenant"]["used"])

    async def status(self, request_id: str) -> Answered:
        return await self._ask("GET", f"/fal/queue/{ENDPOINT}/requests/{request_id}/status")

    async def result(self, request_id: str) -> Answered:
        return await self._ask("GET", f"/fal/queue/{ENDPOINT}/requests/{request_id}")

    async def cancel(self, request_id: str) -> Answered:
        return await self._ask("PUT", f"/fal/queue/{ENDPOINT}/requests/{request_id}/cancel")

    async def finished(self, request_id: str) -> Answered:
        """Poll until the job is completed; its last status."""
        while (status := await self.status(request_id)).body.get("status") != "COMPLETED":
            assert status.status in (200, 202), status
            await asyncio.sleep(0.1)
        return status

    async def _ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        sent = {**self._headers, **(headers or {})}
        async with self.http.request(method, self.url + path, json=body, headers=sent) as response:
            return Answered(response.status, await response.json(), response.headers)


@asynccontextmanager
async def http(**options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a bound on its connections, as callers have none together."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, **options) as session:
        yield session

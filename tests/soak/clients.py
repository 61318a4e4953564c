"""Clients that come and go: each sees its job to its end, over hang-ups and restarts, and gets its own answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter

import httpx

from tests.support.limited import NEXT, asking

QUEUE = f"/fal/queue/{NEXT}"
#: A job that is not at its end by then has been lost.
LOST_SECONDS = 300.0


class Load:
    """Keeps so many jobs in flight for a time, and follows each to its end.

    Attributes:
        ended: how many jobs ended, by the way in which their client asked.
        again: how often a client had to come back.
    """

    def __init__(self, url: str, token: str, seed: int) -> None:
        headers = {"authorization": f"Bearer {token}"}
        limits = httpx.Limits(max_connections=2000, max_keepalive_connections=200)
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, limits=limits, timeout=60, trust_env=False, verify=False
        )
        self._dice = random.Random(seed)
        self._seed = seed
        self._number = 0
        self._is_stopping = False
        self.ended: Counter[str] = Counter()
        self.again = 0

    async def run(self, jobs: int, seconds: float) -> None:
        """For so long, and then until every job has ended."""
        async with self._http, asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(self._one_after_another(seconds))

    async def _one_after_another(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        # Not all at the same moment.
        await asyncio.sleep(self._dice.uniform(0, min(8.0, seconds / 2)))
        while time.monotonic() < until:
            way = self._dice.choice(("polls", "watches", "native"))
            async with asyncio.timeout(LOST_SECONDS):
                await self._one(way)
            self.ended[way] += 1

    async def _one(self, way: str) -> None:
        self._number += 1
        name = f"question-{self._seed}-{self._number}-of-the-soak"
        pace = f"[[pace queue_positions=3 seconds_per_position=1 run_seconds={self._dice.uniform(2, 12):.1f}]]"
        id_ = await self._submit(name, f"{pace} {name}")
        answer = await {"polls": self._polls, "watches": self._watches, "native": self._native}[way](id_)
        assert answer.endswith(f"You asked: {name}"), f"job {id_} of {name} was answered {answer!r}"

    async def _submit(self, key: str, prompt: str) -> str:
        while True:
            answer = await self._try("POST", QUEUE, json=asking(prompt), headers={"idempotency-key": key})
            if answer is not None:
                id_: str = answer.json()["request_id"]
                return id_

    async def _try(self, method: str, path: str, **more: object) -> httpx.Response | None:
        """The answer; None, after a pause, where the proxy is away or says that it will be back."""
        try:
            answer = await self._http.request(method, path, **more)  # type: ignore[arg-type]
        except httpx.TransportError:
            answer = None
        if answer is None or answer.status_code in (502, 503, 504):
            self.again += 1
            await asyncio.sleep(self._dice.uniform(0.3, 1))
            return None
        assert answer.status_code < 300, answer.text
        return answer

    async def _result(self, id_: str) -> str:
        while True:
            if (answer := await self._try("GET", f"{QUEUE}/requests/{id_}")) is not None:
                output: str = answer.json()["output"]
                return output

    async def _polls(self, id_: str) -> str:
        while True:
            answer = await self._try("GET", f"{QUEUE}/requests/{id_}/status")
            if answer is not None and answer.status_code == 200:
                return await self._result(id_)
            await asyncio.sleep(self._dice.uniform(1, 3))

    async def _watches(self, id_: str) -> str:
        state = ""
        while state != "COMPLETED":
            patience = self._dice.uniform(1, 12)
            try:
                async with (
                    asyncio.timeout(patience),
                    self._http.stream("GET", f"{QUEUE}/requests/{id_}/status/stream") as stream,
                ):
                    async for line in stream.aiter_lines():
                        if line.startswith("data: "):
                            state = json.loads(line.removeprefix("data: "))["status"]
            except (TimeoutError, httpx.TransportError):
                await self._comes_back()
        return await self._result(id_)

    async def _native(self, id_: str) -> str:
        last, seen, output = "", set[str](), ""
        # The end is sent once: a client that has it does not come back for it, whatever happens as it hangs up.
        while last != "END":
            patience = self._dice.uniform(1, 12)
            try:
                async with (
                    asyncio.timeout(patience),
                    self._http.stream("GET", f"/v1/jobs/{id_}/events", headers={"last-event-id": last}) as stream,
                ):
                    name = ""
                    async for line in stream.aiter_lines():
                        field, _, value = line.partition(": ")
                        if field == "id":
                            assert value not in seen or value == "END", f"{value} was sent twice"
                            last = value
                            seen.add(value)
                        name = value if field == "event" else name
                        assert name != "error", line
                        if field == "data" and name == "result":
                            output = json.loads(value)["output"]
                            break
            except (TimeoutError, httpx.TransportError):
                pass
            if last != "END":
                await self._comes_back()
        return output

    async def _comes_back(self) -> None:
        self.again += 1
        await asyncio.sleep(self._dice.uniform(0, 1))

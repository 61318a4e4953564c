"""However many callers poll and watch a job, fal gets three requests: the submit, the status stream and the result."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.routes.jobs import HELD
from tests.support.limited import NEXT, asking
from tests.support.stack import Stack

MANY = 50
QUEUE = f"/fal/queue/{NEXT}"


async def open_a_stream(client: httpx.AsyncClient) -> None:
    """Watch a job to its end: after a test in which fal refuses streams, the proxy opens the next ones by turns."""
    id_ = (await client.post(QUEUE, json=asking("What is it?"))).json()["request_id"]
    assert (await client.get(f"{QUEUE}/requests/{id_}/status/stream")).status_code == 200


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_crowd_costs_fal_three_requests(stack: Stack) -> None:
    limits = httpx.Limits(max_connections=3 * MANY)
    headers = {"authorization": f"Bearer {stack.token()}"}
    async with httpx.AsyncClient(
        base_url=stack.url, headers=headers, limits=limits, timeout=60, trust_env=False, verify=False
    ) as client:
        await open_a_stream(client)
        stack.sandbox.forget()
        id_ = (await client.post(QUEUE, json=asking(HELD + " What is it?"))).json()["request_id"]
        one = f"{QUEUE}/requests/{id_}"
        watching = [asyncio.Event() for _ in range(MANY)]

        async def polls() -> Any:
            while (answer := await client.get(f"{one}/status", params={"logs": "1"})).status_code == 202:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return answer.json()

        async def watches(number: int) -> list[str]:
            async with client.stream("GET", f"{one}/status/stream?logs=1") as stream:
                lines = []
                async for line in stream.aiter_lines():
                    watching[number].set()
                    if line.startswith("data: "):
                        lines.append(line)
                return lines

        crowd = [asyncio.create_task(polls()) for _ in range(MANY)]
        streams = [asyncio.create_task(watches(number)) for number in range(MANY)]
        await asyncio.gather(*(event.wait() for event in watching))
        await asyncio.to_thread(stack.sandbox.move_job, id_, "go")
        polled, watched = await asyncio.gather(*crowd), await asyncio.gather(*streams)
        results = await asyncio.gather(*(client.get(one) for _ in range(MANY)))
    assert all(answer == polled[0] and answer["status"] == "COMPLETED" for answer in polled)
    assert all(lines[-1] == watched[0][-1] and '"COMPLETED"' in lines[-1] for lines in watched)
    assert {(answer.status_code, answer.content) for answer in results} == {(200, results[0].content)}
    asked = [(record["method"], record["path"]) for record in stack.sandbox.requests()]
    job = f"/{NEXT}/requests/{id_}"
    assert asked == [("POST", f"/{NEXT}"), ("GET", f"{job}/status/stream"), ("GET", job)]

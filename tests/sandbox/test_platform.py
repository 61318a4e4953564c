"""The sandbox's platform API: what its jobs used, by day and endpoint, in pages, for the admin key alone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from proxy.catalog import built_in
from proxy.sandbox.answers import Answer, platform_failure, success
from proxy.sandbox.app import SANDBOX_ADMIN_KEY, SANDBOX_KEY
from proxy.sandbox.jobs import Job, direct_steps
from proxy.sandbox.platform import PAGE_DAYS, Platform
from proxy.sandbox.state import SandboxState
from proxy.sandbox.timing import Timing
from tests.sandbox.conftest import Fal

NEXT = "fal-ai/llava-next"
USAGE, ANALYTICS = "/api/v1/models/usage", "/api/v1/models/analytics"
DAY = datetime(2026, 1, 30, 12, tzinfo=UTC)
PERIOD = {"start": "2026-01-30T00:00:00Z", "end": "2026-02-09T00:00:00Z"}
COUNTS = {"expand": ["time_series", "request_count", "success_count", "user_error_count"], "endpoint_id": NEXT}


async def add_job(state: SandboxState, day: int, answer: Answer) -> None:
    """A run of a quarter of a second, so many days after the first."""

    async def work() -> Answer:
        return answer

    endpoint = built_in().get(NEXT)
    assert endpoint is not None
    task = asyncio.ensure_future(work())
    zero = iter([0.0])
    timing = Timing(run_seconds=0.25)
    job = Job("run", endpoint, direct_steps(timing), task, timing=timing, clock=lambda: next(zero, 60.0))
    job.created = (DAY + timedelta(days=day)).timestamp()
    state.jobs.add(job)


async def read(state: SandboxState, path: str, **query: Any) -> list[dict[str, Any]]:
    """The buckets of all pages."""
    transport = httpx.ASGITransport(Starlette(routes=Platform(state).routes()))
    series: list[dict[str, Any]] = []
    cursor: str | None = None
    async with httpx.AsyncClient(transport=transport, base_url="http://fal") as client:
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            page = (await client.get(path, params={**PERIOD, **query, **more})).raise_for_status().json()
            assert len(page["time_series"]) <= PAGE_DAYS and page["has_more"] is (page["next_cursor"] is not None)
            series += page["time_series"]
            if (cursor := page["next_cursor"]) is None:
                return series


@pytest.mark.anyio
async def test_the_use_of_jobs_is_listed_by_day_in_pages() -> None:
    state = SandboxState(SANDBOX_KEY, Timing())
    for day in (0, 0, 1, 2, 3, 4, 30):
        await add_job(state, day, success({}, 0.25))
    await add_job(state, 0, platform_failure("client_cancelled"))
    days = [f"2026-01-{30 + day}" if day < 2 else f"2026-02-0{day - 1}" for day in range(5)]
    used = await read(state, "/v1/models/usage")
    assert [bucket["bucket"][:10] for bucket in used] == days
    price = {"unit": "compute second", "unit_price": 0.01, "currency": "USD", "endpoint_id": NEXT}
    assert used[0]["results"] == [{**price, "quantity": 0.5, "cost": 0.005}]
    assert used[4]["results"] == [{**price, "quantity": 0.25, "cost": 0.0025}]
    counted = await read(state, "/v1/models/analytics", **COUNTS)
    counts = {"endpoint_id": NEXT, "request_count": 3, "success_count": 2, "user_error_count": 1}
    assert counted[0]["results"] == [counts] and len(counted) == 5
    assert not await read(state, "/v1/models/usage", endpoint_id="fal-ai/other")


@pytest.mark.parametrize("path", [USAGE, ANALYTICS])
def test_only_the_admin_key_opens_it(fal: Fal, stranger: httpx.Client, path: str) -> None:
    def ask(key: str) -> int:
        answer = stranger.get(fal.url + path, params=PERIOD | COUNTS, headers={"authorization": key})
        assert answer.is_success or answer.json()["error"]["type"] == "authorization_error"
        return answer.status_code

    assert ask(f"Key {SANDBOX_ADMIN_KEY}") == 200
    assert ask(f"Key {SANDBOX_KEY}") == 403
    assert ask("Key wrong") == ask(f"Bearer {SANDBOX_ADMIN_KEY}") == 401
    # The admin key opens nothing else.
    headers = {"authorization": f"Key {SANDBOX_ADMIN_KEY}"}
    assert stranger.post(f"{fal.url}/run/{NEXT}", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (USAGE, {}),
        (USAGE, {"start": "yesterday", "end": "today"}),
        (USAGE, PERIOD | {"cursor": "!"}),
        (ANALYTICS, PERIOD),
        (ANALYTICS, PERIOD | {"endpoint_id": NEXT}),
    ],
)
def test_a_malformed_query_is_refused(fal: Fal, path: str, query: dict[str, str]) -> None:
    answer = fal.client.get(path, params=query, headers={"authorization": f"Key {SANDBOX_ADMIN_KEY}"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "validation_error")

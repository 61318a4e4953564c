"""A process counts settled jobs in batches, and stops while another process counts."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from proxy.jobs.usage_rollup import MOST_AT_ONCE, UsageCounter
from proxy.stores.ledger import Reserve, Settle
from proxy.stores.sql import SqlStores
from tests.server.commands import SERVABLE, serving
from tests.stores.records import job
from tests.support.databases import SqliteDatabases
from tests.support.waiting import wait_until


class Rollup:
    """A store that has so many jobs to count, in these batches."""

    def __init__(self, *batches: int | None) -> None:
        self.batches = list(batches)

    async def count(self, most: int) -> int | None:
        assert most == MOST_AT_ONCE
        return self.batches.pop(0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("batches", "total", "left"),
    [
        ([0], 0, 0),
        ([MOST_AT_ONCE, MOST_AT_ONCE, 3, 0], 2 * MOST_AT_ONCE + 3, 1),
        ([MOST_AT_ONCE, None, MOST_AT_ONCE], MOST_AT_ONCE, 1),
    ],
)
async def test_the_rollup_counts_until_few_jobs_are_left_or_another_process_counts(
    batches: list[int | None], total: int, left: int
) -> None:
    store = Rollup(*batches)
    assert await UsageCounter(store).run_once() == total
    assert len(store.batches) == left


async def settle(url: str, jobs: int) -> None:
    stores, some = SqlStores(url), [job() for _ in range(jobs)]
    await stores.ledger.commit([Reserve(one) for one in some])
    await stores.ledger.commit([Settle(one.id, {"requests": 1}, 1010.0) for one in some])
    await stores.close()


@pytest.mark.anyio
async def test_all_jobs_are_counted(sqlite_databases: SqliteDatabases) -> None:
    url = sqlite_databases.migrated()
    await settle(url, 2 * MOST_AT_ONCE + 50)
    stores = SqlStores(url)
    assert await UsageCounter(stores.usage_rollup).run_once() == 2 * MOST_AT_ONCE + 50
    await stores.close()


def test_a_server_counts_jobs(sqlite_databases: SqliteDatabases, tmp_path: Path) -> None:
    url = sqlite_databases.migrated()
    asyncio.run(settle(url, 3))

    def counted() -> int:
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as database:
            return int(database.execute("SELECT coalesce(sum(calls), 0) FROM usage_days").fetchone()[0])

    with serving("serve", environ={**SERVABLE, "PROXY_DATABASE_URL": url}, folder=tmp_path):
        wait_until(lambda: counted() == 3, "the jobs were not counted", 60)

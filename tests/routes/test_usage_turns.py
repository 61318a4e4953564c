"""How many reports that read jobs may run at once."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import BadRequest, RateLimited
from proxy.limits.usage import MOST_JOBS
from proxy.routes.usage import MOST_DETAILED, UsageReports
from proxy.stores.sql import SqlStores
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.usage import UsageRow
from tests.support.clock import MovableClock

pytestmark = pytest.mark.anyio


class SlowLedger(SqlLedger):
    """A ledger that reads jobs slowly: only when the test lets it go on."""

    def __init__(self, stores: SqlStores) -> None:
        super().__init__(stores.ledger._database)
        self.may_go_on = asyncio.Event()

    async def usage_of_jobs(self, *asked: Any, **page: Any) -> list[UsageRow]:
        await self.may_go_on.wait()
        return list(await super().usage_of_jobs(*asked, **page))


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqlStores]:
    stores = SqlStores(f"sqlite:///{tmp_path / 'proxy.db'}")
    await stores.prepare()
    yield stores
    await stores.close()


async def test_one_tenant_or_user_does_not_keep_others_waiting(stores: SqlStores) -> None:
    ledger = SlowLedger(stores)
    reports = UsageReports(ledger, stores.grants, MovableClock())

    def ask(tenant: str, subject: str | None = None, group_by: str = "session") -> asyncio.Task[Any]:
        return asyncio.create_task(reports.respond(tenant, subject, {"group_by": group_by}))

    waiting = [ask("acme") for _ in range(MOST_DETAILED)] + [ask("acme", "alice") for _ in range(MOST_DETAILED)]
    await asyncio.sleep(0)
    for subject, scope in ((None, "tenant"), ("alice", "subject")):
        with pytest.raises(RateLimited) as refused:
            await ask("acme", subject)
        assert (refused.value.scope, refused.value.retry_after) == (scope, 1)
    # Reports that read only sums do not wait, and other tenants have slots of their own.
    assert (await ask("acme", group_by="day")).status_code == 200
    waiting += [ask("acme", "bob"), ask("globex")]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    ledger.may_go_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
    assert (await ask("acme")).status_code == 200


async def test_a_report_that_fails_gives_its_place_back(stores: SqlStores) -> None:
    ledger = SlowLedger(stores)
    reports = UsageReports(ledger, stores.grants, MovableClock())
    for _ in range(MOST_DETAILED):
        task = asyncio.create_task(reports.respond("acme", None, {"group_by": "session"}))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    ledger.may_go_on.set()
    assert (await reports.respond("acme", None, {"group_by": "session"})).status_code == 200


async def test_a_report_reads_a_bounded_number_of_jobs(stores: SqlStores, tmp_path: Path) -> None:
    clock = MovableClock()
    reports = UsageReports(stores.ledger, stores.grants, clock)
    first = clock.now() // 86_400 * 86_400

    def add_jobs(begin: int, number: int) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "proxy.db")) as database, database:
            values = [(f"{one:032x}", first + one % 1000) for one in range(begin, begin + number)]
            database.executemany(
                "INSERT INTO jobs (id, kind, endpoint, tenant, subject, state, charges, used, submitted_at, "
                "checked_at, expires_at) "
                "VALUES (?, 'run', 'fal-ai/any-llm', 'acme', 'alice', 'settled', '[]', '{}', ?, 0, 0)",
                values,
            )

    async def ask(subject: str | None, group_by: str, tenant: str = "acme") -> int:
        return (await reports.respond(tenant, subject, {"group_by": group_by})).status_code

    add_jobs(0, MOST_JOBS)
    assert await ask(None, "session") == await ask("alice", "hour") == 200
    add_jobs(MOST_JOBS, 1)
    for subject, group_by in ((None, "session"), (None, "hour,tag"), (None, "tag,subject"), ("alice", "hour")):
        with pytest.raises(BadRequest, match=r"reads each call, at most 50,000.*shorten it"):
            await ask(subject, group_by)
    # What the sums answer has no such bound; nor is it that of others, or of other days.
    assert await ask(None, "hour") == await ask(None, "tag,day") == await ask("alice", "day") == 200
    assert await ask("bob", "session") == await ask(None, "session", "globex") == 200
    clock.advance(32 * 86_400)
    assert await ask(None, "session") == 200

"""How many reports that read jobs are made at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import RateLimited
from proxy.routes.usage import MOST_DETAILED, UsageReports
from proxy.stores.sql import SqlStores
from proxy.stores.sql.ledger import SqlLedger
from proxy.stores.usage import UsageRow
from tests.support.clock import MovableClock

pytestmark = pytest.mark.anyio


class SlowLedger(SqlLedger):
    """Reads jobs only when it may go on, as one with very many jobs."""

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

    def ask(tenant: str, subject: str | None = None, group_by: str = "tag") -> asyncio.Task[Any]:
        return asyncio.create_task(reports.respond(tenant, subject, {"group_by": group_by}))

    waiting = [ask("acme") for _ in range(MOST_DETAILED)] + [ask("acme", "alice") for _ in range(MOST_DETAILED)]
    await asyncio.sleep(0)
    for subject, scope in ((None, "tenant"), ("alice", "subject")):
        with pytest.raises(RateLimited) as refused:
            await ask("acme", subject)
        assert (refused.value.scope, refused.value.retry_after) == (scope, 1)
    # What reads the sums alone does not wait, and others have places of their own.
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
        task = asyncio.create_task(reports.respond("acme", None, {"group_by": "hour"}))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    ledger.may_go_on.set()
    assert (await reports.respond("acme", None, {"group_by": "hour"})).status_code == 200

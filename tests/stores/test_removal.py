"""What a deleted tenant leaves is cleared, in every table and on every kind of database."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from proxy.errors import NotFound
from proxy.stores.directory import OverrideRow
from proxy.stores.grants import Grant
from proxy.stores.ledger import Accept, Account, Charge, Reserve, Settle
from proxy.stores.removal import FormerTenant
from proxy.stores.sql import SqlStores, removal, schema
from proxy.stores.sql.database import Database
from tests.stores.records import ACME, ALICES, CLAIM, GLOBEX, KEY, PLANS, REQUESTS, UPLOAD, job
from tests.support.audit_log import AUTHOR

pytestmark = pytest.mark.anyio
FORMER = FormerTenant("acme~0123456789abcdef", "acme", 5000.0)
ALL = (0.0, 1e9)
#: What stays: that there was such a tenant, what was done to it, and that its sessions are revoked.
KEPT = {"former_tenants", "audit", "audit_subjects", "revocations"}


async def rows_of(database_url: str, tenant: str) -> dict[str, int]:
    """How many rows of each table have a tenant's name."""
    database, found = Database(database_url), dict[str, int]()
    async with database.reading() as connection:
        for table in schema.metadata.sorted_tables:
            if "tenant" in table.c:
                wanted = select(func.count()).select_from(table).where(table.c.tenant == tenant)
                found[table.name] = (await connection.execute(wanted)).scalar_one()
    await database.close()
    return found


async def test_a_deleted_tenant_is_given_nothing_that_the_next_of_its_name_would_have(stores: SqlStores) -> None:
    """A process learns of a deletion some seconds late, and a request can have been there before it."""

    async def give() -> list[object]:
        grant = Grant(secrets.token_hex(16), "acme", "", "requests", 5, "order", 10.0)
        override = OverrideRow("acme", "alice", "free", None, 9e9)
        calls: list[Awaitable[object]] = [
            stores.directory.add_key(replace(KEY, id=secrets.token_hex(8)), by=AUTHOR),
            stores.directory.put_override(override, 10.0, 100, by=AUTHOR),
            stores.grants.add(grant, by=AUTHOR),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    assert not any(isinstance(outcome, Exception) for outcome in await give())
    assert await stores.directory.delete_tenant(FORMER, by=AUTHOR)
    while await stores.removal.clear_some(FORMER):
        pass
    assert [type(outcome) for outcome in await give()] == [NotFound] * 3
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    rows = await stores.directory.load()
    assert (list(rows.keys), list(rows.overrides), rows.granted) == ([], [], frozenset())
    assert not any(isinstance(outcome, Exception) for outcome in await give())


async def test_every_table_is_cleared_and_usage_stays(stores: SqlStores, database_url: str) -> None:
    await stores.directory.apply(PLANS, [ACME, GLOBEX], by=AUTHOR)
    await stores.directory.add_key(KEY, by=AUTHOR)
    some = [job(Charge(REQUESTS, 1, 10**9), Charge(ALICES, 7, 10**9)) for _ in range(removal.ROWS_AT_ONCE + 50)]
    others = [job(tenant="globex") for _ in range(3)]
    await stores.ledger.commit([Reserve(one) for one in (*some, *others)])
    await stores.ledger.commit([Settle(one.id, {"requests": 1, "tokens": 5}, 1100.0) for one in (*some[1:], *others)])
    while await stores.usage_rollup.count(100):
        pass
    # More jobs of the same day, which are counted once those before have moved.
    late = [job() for _ in range(5)]
    await stores.ledger.commit([Reserve(one) for one in late])
    await stores.ledger.commit([Settle(one.id, {"requests": 1}, 1100.0) for one in late])
    await stores.idempotency.claim(CLAIM, 0.0)
    await stores.uploads.add(UPLOAD)
    before = await stores.ledger.usage("acme", None, *ALL, frozenset({"subject", "endpoint"}))
    found = await rows_of(database_url, "acme")
    assert {"jobs", "usage_days", "quota_usage", "idempotency", "uploads", "tenant_keys"} <= {*filter(found.get, found)}

    assert await stores.directory.delete_tenant(FORMER, by=AUTHOR)
    assert not await stores.directory.delete_tenant(FORMER._replace(records="acme~another"), by=AUTHOR)
    rounds = 0
    while await stores.removal.clear_some(FORMER):
        rounds += 1
        await stores.usage_rollup.count(100)
    assert 4 <= rounds < 50
    left = {name: number for name, number in (await rows_of(database_url, "acme")).items() if number}
    assert set(left) <= KEPT
    assert await stores.ledger.usage("acme", None, *ALL, frozenset()) == []
    assert await stores.ledger.usage(FORMER.records, None, *ALL, frozenset({"subject", "endpoint"})) == before
    assert sum(row.calls for row in await stores.ledger.usage("globex", None, *ALL, frozenset())) == 3
    (noted,) = (await stores.directory.load()).former
    assert noted == FORMER._replace(is_cleared=True)

    # The job that fal still has is accepted and settled, and writes on no account of the name.
    await stores.ledger.commit([Accept(some[0].id, "r-1", 3000.0)])
    await stores.ledger.commit([Settle(some[0].id, {"requests": 1, "tokens": 9}, 1200.0)])
    assert await stores.ledger.accounts([REQUESTS, ALICES]) == {}
    kept_at = REQUESTS._replace(tenant=FORMER.records)
    assert await stores.ledger.accounts([kept_at]) == {kept_at: Account(1, 0)}
    (total,) = await stores.ledger.usage(FORMER.records, None, *ALL, frozenset())
    assert total.calls == len(some) + len(late)

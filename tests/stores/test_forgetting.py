"""A subject that is forgotten is in no table, dump or page of a file, and what it used is still there."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.stores.alerts import Alert
from proxy.stores.audit import Change
from proxy.stores.directory import OverrideRow, Revocation, digest_subject
from proxy.stores.grants import Grant
from proxy.stores.idempotency import Claim
from proxy.stores.ledger import Accept, Account, Bucket, Charge, JobFilter, Reserve, Settle
from proxy.stores.removal import Pseudonym
from proxy.stores.sql import SqlStores, forgetting
from proxy.stores.uploads import Part
from tests.stores.records import ACME, CLAIM, PLANS, REQUESTS, UPLOAD, job
from tests.support.audit_log import AUTHOR
from tests.support.postgres import program

pytestmark = pytest.mark.anyio
#: As long as names may be, so that rows grow, and pages are split.
NAME = "zoe.of.the.tests@" + "long." * 34 + "example"
HER_SESSION = "a-session-of-hers"
PSEUDONYM = Pseudonym("acme", NAME, " forgotten 0123456789abcdef")
ALL = (0.0, 1e9)
SUMS = frozenset({"day", "endpoint"})
HERS, PER_MINUTE = Bucket("acme", NAME, "tokens", "month", 0), Bucket("acme", NAME, "requests", "minute", 0)


def dump(database_url: str) -> bytes:
    """Everything that a database has: of a file each byte, also of its free pages and its log."""
    if database_url.startswith("sqlite"):
        file = Path(database_url.removeprefix("sqlite:///"))
        return b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*") if path.is_file())
    done = subprocess.run([program("pg_dump"), database_url], capture_output=True, check=True)
    return done.stdout


async def fill(stores: SqlStores) -> tuple[str, str]:
    """Write the name in every table that can have it; the ids of two jobs that are still open."""
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    minutes = [PER_MINUTE._replace(window_start=60 * number) for number in range(forgetting.ROWS_AT_ONCE + 60)]
    some = [
        job(
            Charge(REQUESTS, 1, 10**9),
            Charge(HERS, 7, 10**9),
            Charge(minute, 1, 10),
            subject=NAME,
            session=HER_SESSION,
            tags=(NAME, "trial"),
        )
        for minute in minutes
    ]
    others = [job(Charge(REQUESTS, 1, 10**9), subject="bob") for _ in range(3)]
    for start in range(0, len(some), 50):
        await stores.ledger.commit([Reserve(one) for one in some[start : start + 50]])
    await stores.ledger.commit([Reserve(one) for one in others])
    used = {"requests": 1, "tokens": 5}
    await stores.ledger.commit([Settle(one.id, used, 1100.0) for one in (*some[2:], *others)])
    await stores.ledger.commit([Accept(some[1].id, "r-1", 3000.0)])
    assert await stores.usage_rollup.count(150) == 150
    await stores.idempotency.claim(replace(CLAIM, subject=NAME), 0.0)
    await stores.uploads.add(replace(UPLOAD, subject=NAME, in_parts=True, tags=(NAME, "trial")))
    await stores.uploads.begin(Part(UPLOAD.id, 1, "a" * 32, 10))
    await stores.grants.add(Grant("g" * 32, "acme", NAME, "requests", 5, f"for {NAME}", 10.0), by=AUTHOR)
    await stores.directory.put_override(OverrideRow("acme", NAME, "free", None, 9e9), 10.0, 100, by=AUTHOR)
    alert = Alert(id="a" * 32, kind="quota", tenant="acme", subject=NAME, at=10.0, details={})
    await stores.alerts.add([alert])
    await stores.directory.revoke(Revocation("acme", None, NAME, 10.0, 9e9), by=AUTHOR)
    await stores.audit.record(AUTHOR, Change("session.mint", "acme", "s-1", NAME))
    # What is deleted long before lies in free pages.
    gone = [Claim("acme", NAME, f"{number:064x}", "b" * 64, "j-1", 1.0) for number in range(40)]
    for one in gone:
        await stores.idempotency.claim(one, 0.0)
    return some[0].id, some[1].id


async def forget(stores: SqlStores) -> int:
    digest = digest_subject("acme", NAME)
    await stores.directory.forget_subject(Revocation("acme", None, None, 5000.0, 9e9, digest), NAME, by=AUTHOR)
    rounds = 0
    while await stores.removal.forget_some(PSEUDONYM):
        rounds += 1
    await stores.removal.wipe()
    return rounds


async def test_the_name_is_nowhere_and_the_sums_stay(stores: SqlStores, database_url: str) -> None:
    reserved, accepted = await fill(stores)
    assert dump(database_url).count(NAME.encode()) > 500
    before = await stores.ledger.usage("acme", None, *ALL, SUMS)
    accounts = await stores.ledger.accounts([REQUESTS, HERS])
    assert 5 <= await forget(stores) < 50
    left = dump(database_url)
    assert NAME.encode() not in left and HER_SESSION.encode() not in left
    assert await stores.ledger.usage("acme", None, *ALL, SUMS) == before
    hers = HERS._replace(subject=PSEUDONYM.name)
    assert await stores.ledger.accounts([REQUESTS, hers]) == {REQUESTS: accounts[REQUESTS], hers: accounts[HERS]}

    # Jobs that are open are settled, on the accounts that they charged, and bring the name back to none.
    used = {"requests": 1, "tokens": 5}
    await stores.ledger.commit([Settle(reserved, None, 6000.0), Settle(accepted, used, 6000.0)])
    after = await stores.ledger.accounts([REQUESTS, hers])
    assert after[hers] == Account(accounts[HERS].used + 5, 0)
    assert after[REQUESTS] == Account(accounts[REQUESTS].used + 1, 0)
    (total,) = await stores.ledger.usage("acme", None, *ALL, frozenset())
    assert total.calls == sum(row.calls for row in before) + 1
    assert await stores.ledger.list_jobs(JobFilter("acme", NAME), 10) == []
    await stores.removal.wipe()
    assert NAME.encode() not in dump(database_url)


async def test_only_that_subject_of_that_tenant_is_forgotten(stores: SqlStores) -> None:
    await stores.directory.apply(PLANS, [ACME], by=AUTHOR)
    others = [job(subject="bob"), job(subject=f"{NAME}."[-199:]), job(tenant="globex", subject=NAME), job(subject="")]
    await stores.ledger.commit([Reserve(one) for one in (job(subject=NAME), *others)])
    await forget(stores)
    for one in others:
        assert await stores.ledger.get(one.id) == one

"""A process is killed while it counts and removes jobs, again and again: each job is in a report once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.stores.ledger import Reserve, Settle
from proxy.stores.sql import SqlStores, schema
from proxy.stores.usage import UsageRow
from tests.stores.expired import count, expiry, removed
from tests.stores.records import job

pytestmark = pytest.mark.anyio
JOBS, KILLS = 1500, 6
#: Without rests, so that kills meet transactions.
REMOVING = """
import asyncio, sys
from proxy.stores.sql import SqlStores
from tests.stores.expired import expiry

async def main():
    stores, everything = SqlStores(sys.argv[1]), expiry(jobs=5000.0)
    while found := await stores.retention.find("jobs", everything, 10):
        await stores.usage_rollup.count(15)
        await stores.retention.remove("jobs", found, 60.0)
        print("removed", flush=True)

asyncio.run(main())
"""


async def test_a_kill_loses_no_sum(stores: SqlStores, database_url: str) -> None:
    dice, jobs = random.Random(11), [job(subject=f"user-{number % 40}") for number in range(JOBS)]
    for start in range(0, JOBS, 500):
        some = jobs[start : start + 500]
        await stores.ledger.commit([Reserve(one) for one in some])
        await stores.ledger.commit([Settle(one.id, {"tokens": 3, "usd": 999_999}, 1010.0) for one in some])
    before, left = await _usage(stores), [JOBS]
    for _ in range(KILLS):
        await asyncio.to_thread(_remove_until_killed, database_url, dice.uniform(0.0, 0.15))
        left.append(await count(database_url, schema.jobs))
        assert await _usage(stores) == before
    # The kills met it at work.
    assert len({0, *left}) > 3, left
    await removed(stores, "jobs", expiry(jobs=5000.0))
    assert await count(database_url, schema.jobs) == 0
    assert await _usage(stores) == before


async def _usage(stores: SqlStores) -> list[UsageRow]:
    return list(await stores.ledger.usage("acme", None, 0.0, 86_400.0, frozenset(["day", "subject"])))


def _remove_until_killed(url: str, seconds: float) -> None:
    command, root = [sys.executable, "-c", REMOVING, url], Path(__file__).parents[2]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            # Not a wait for anything: the moment of the kill is what is tried.
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()

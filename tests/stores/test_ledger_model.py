"""Random lives of random jobs: the ledger does what a few lines of plain Python do, after every single batch."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from proxy.stores.ledger import (
    Accept,
    Account,
    Bucket,
    Charge,
    Exhausted,
    Granted,
    Job,
    Operation,
    Outcome,
    Reserve,
    Settle,
    Stale,
)
from proxy.stores.sql import SqlStores
from tests.stores.conftest import OpenStores
from tests.stores.records import job
from tests.support.audit import read_report

pytestmark = pytest.mark.anyio
BATCHES = 60
#: Names whose order is not the same for Python and for a database's collation.
BUCKETS = [
    Bucket("acme", subject, unit, "day", start)
    for subject in ("", "Zoë", "alice", "_")
    for unit in ("requests", "tokens")
    for start in (0, 86_400)
]
LIMITS = {bucket: 40 if bucket.subject else 100 for bucket in BUCKETS}


@dataclass
class Model:
    """What the ledger is to do, without a database."""

    used: Counter[Bucket] = field(default_factory=Counter)
    reserved: Counter[Bucket] = field(default_factory=Counter)
    open: dict[str, Job] = field(default_factory=dict)
    #: The ids of jobs that fal accepted, and those that were settled without one.
    ids: dict[str, str] = field(default_factory=dict)
    without_id: set[str] = field(default_factory=set)

    def do(self, operation: Operation) -> Outcome:
        if isinstance(operation, Reserve):
            return self._reserve(operation.job)
        if isinstance(operation, Accept):
            return self._accept(operation)
        if operation.job_id not in self.open:
            return Stale()
        if isinstance(operation, Settle):
            if operation.used is not None and operation.job_id not in self.ids:
                self.without_id.add(operation.job_id)
            for charge in self.open.pop(operation.job_id).charges:
                self.reserved[charge.bucket] -= charge.amount
                self.used[charge.bucket] += (operation.used or {}).get(charge.bucket.unit, 0)
        return Granted()

    def _accept(self, operation: Accept) -> Outcome:
        if operation.job_id not in self.open and operation.job_id not in self.without_id:
            return Stale()
        self.without_id.discard(operation.job_id)
        self.ids[operation.job_id] = operation.request_id
        return Granted()

    def _reserve(self, wanted: Job) -> Outcome:
        for charge in wanted.charges:
            left = charge.limit - self.used[charge.bucket] - self.reserved[charge.bucket]
            if charge.amount > left:
                return Exhausted(charge.bucket, max(left, 0))
        for charge in wanted.charges:
            self.reserved[charge.bucket] += charge.amount
        self.open[wanted.id] = wanted
        return Granted()

    def accounts(self) -> dict[Bucket, Account]:
        return {bucket: Account(self.used[bucket], self.reserved[bucket]) for bucket in BUCKETS}


class Lives:
    """Makes the operations, from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._known: list[Job] = []
        self._numbers = iter(range(10_000))

    def batch(self) -> list[Operation]:
        kinds = self._random.choice([["reserve"], ["reserve", "reserve", "accept", "settle", "release"]])
        return [self._operation(self._random.choice(kinds)) for _ in range(self._random.randint(1, 6))]

    def _operation(self, kind: str) -> Operation:
        if kind == "reserve" or not self._known:
            buckets = self._random.sample(BUCKETS, self._random.randint(0, 5))
            charges = [Charge(bucket, self._random.randint(0, 12), LIMITS[bucket]) for bucket in buckets]
            self._known.append(job(*charges))
            return Reserve(self._known[-1])
        # Half of the time one of the latest, so that a batch often works on what it has only just reserved.
        known = self._random.choice(self._known[-4:] if self._random.random() < 0.5 else self._known)
        if kind == "accept":
            return Accept(known.id, f"fal-{next(self._numbers)}", 5000.0)
        used = {unit: self._random.randint(0, 15) for unit in ("requests", "tokens") if self._random.random() < 0.8}
        return Settle(known.id, used if kind == "settle" else None, 1010.0)


@pytest.mark.parametrize("seed", range(4))
async def test_random_reservations_end_as_in_a_plain_model(
    seed: int, open_stores: OpenStores, database_url: str
) -> None:
    lives, model = Lives(seed), Model()
    processes: list[SqlStores] = [open_stores(database_url), open_stores(database_url)]
    seen: Counter[type] = Counter()
    for number in range(BATCHES):
        batch, ledger = lives.batch(), processes[number % 2].ledger
        before = model.accounts()
        outcomes = await ledger.commit(batch)
        assert outcomes == [model.do(operation) for operation in batch]
        accounts = await ledger.accounts(BUCKETS)
        assert {bucket: accounts.get(bucket, Account()) for bucket in BUCKETS} == model.accounts()
        if all(isinstance(operation, Reserve) for operation in batch):
            # What fal really used may lead beyond a limit; a reservation never does.
            grown = {one for one in BUCKETS if accounts.get(one, Account()).reserved > before[one].reserved}
            assert all(accounts[one].used + accounts[one].reserved <= LIMITS[one] for one in grown)
        seen.update(type(outcome) for outcome in outcomes)
    assert min(seen[Granted], seen[Exhausted], seen[Stale]) >= 10
    assert {one.id for one in await processes[0].ledger.open_jobs()} == model.open.keys()
    (await read_report(database_url)).check()

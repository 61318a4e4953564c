"""The ledger's tables, read directly: every job and account at one moment, and the accounts that the jobs add up to."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from proxy.errors import StoreUnavailable
from proxy.stores.grants import split_use
from proxy.stores.ledger import Account, Bucket, Charge
from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import jobs, quota_usage

_TRIES = 10


@dataclass(frozen=True)
class Entry:
    """A job as the table has it."""

    id: str
    request_id: str | None
    kind: str
    tenant: str
    subject: str
    state: str
    used: Mapping[str, int]
    #: What was reserved, by account.
    charges: Mapping[Bucket, int]

    @property
    def is_open(self) -> bool:
        return self.state in ("reserved", "accepted")


@dataclass(frozen=True)
class AuditReport:
    """One consistent reading."""

    entries: tuple[Entry, ...]
    accounts: Mapping[Bucket, Account]

    def of(self, tenant: str) -> AuditReport:
        """The part of one tenant."""
        entries = tuple(entry for entry in self.entries if entry.tenant == tenant)
        return AuditReport(entries, {bucket: one for bucket, one in self.accounts.items() if bucket.tenant == tenant})

    def by_state(self) -> Counter[str]:
        return Counter(entry.state for entry in self.entries)

    def owed(self) -> dict[Bucket, Account]:
        """The accounts as the jobs add up to them."""
        used: Counter[Bucket] = Counter()
        reserved: Counter[Bucket] = Counter()
        for entry in self.entries:
            charges = [Charge(bucket, amount, 0) for bucket, amount in entry.charges.items()]
            shares = split_use(charges, entry.used) if entry.state == "settled" else [0] * len(charges)
            for (bucket, amount, *_), share in zip(charges, shares, strict=True):
                used[bucket] += share
                reserved[bucket] += amount if entry.is_open else 0
        return {bucket: Account(used[bucket], reserved[bucket]) for bucket in used}

    def check(self) -> None:
        """Require that every account is the sum of its jobs. One that only refused calls may be zero."""
        owed = self.owed()
        stands = {bucket: self.accounts.get(bucket, Account()) for bucket in {*owed, *self.accounts}}
        wrong = [(one, stood, owed.get(one)) for one, stood in stands.items() if stood != owed.get(one, Account())]
        assert not wrong, f"(account, its amounts, the sum of its jobs): {wrong}"

    def total(self, unit: str) -> Account:
        """All accounts of a tenant itself in one unit, whatever the window."""
        found = [one for bucket, one in self.accounts.items() if bucket.unit == unit and bucket.subject == ""]
        return Account(sum(one.used for one in found), sum(one.reserved for one in found))


class Auditor:
    """Reads the books again and again, over one connection."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    async def read(self) -> AuditReport:
        """All that is written; a database that a busy machine keeps from answering is asked again."""
        for _ in range(_TRIES):
            with contextlib.suppress(StoreUnavailable):
                return await self._read()
        return await self._read()

    async def _read(self) -> AuditReport:
        async with self._database.reading() as connection:
            entries = tuple(_entry(row) for row in await connection.execute(select(jobs)))
            rows = list(await connection.execute(select(quota_usage)))
        return AuditReport(entries, {_bucket(row): Account(row.used, row.reserved) for row in rows})

    async def close(self) -> None:
        await self._database.close()


async def read_report(url: str) -> AuditReport:
    auditor = Auditor(url)
    try:
        return await auditor.read()
    finally:
        await auditor.close()


def _bucket(row: Any) -> Bucket:
    return Bucket(row.tenant, row.subject, row.unit, row.window, row.window_start)


def _entry(row: Any) -> Entry:
    charges: Counter[Bucket] = Counter()
    for subject, unit, window, start, amount, _limit in row.charges:
        charges[Bucket(row.tenant, subject, unit, window, start)] += amount
    # Whether it was counted in the sums of usage yet is a matter of time.
    state = "settled" if row.state == "counted" else row.state
    return Entry(row.id, row.request_id, row.kind, row.tenant, row.subject, state, row.used, charges)

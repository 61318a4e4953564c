"""Finds quotas that have reached a threshold of their plan, in what the ledger has just written.

A threshold is per cent of a quota's limit. It is reached when what is booked is as much, not what is reserved: most of
that is given back. All of a quota is also reached when a call is refused because of it. A call costs nothing more: the
ledger shows each transaction after its commit, and the accounts are looked at some time later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cachetools import LRUCache

from proxy.clock import Clock, to_iso
from proxy.limits.accounts import window_end
from proxy.limits.quota_notices import alerted_holder
from proxy.numbers import MOST
from proxy.stores.alerts import Alert, alert_id
from proxy.stores.ledger import Account, Bucket, Exhausted, Job, Outcome
from proxy.tenants.directory import Snapshot
from proxy.tenants.terms import MILLION

KIND = "quota.reached"
#: Accounts whose limits are remembered, and those that are looked at next.
REMEMBERED_LIMITS, MOST_CHANGED = 20_000, 50_000


class QuotaWatch:
    """Remembers which accounts have changed, of tenants whose plan has thresholds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._thresholds: dict[str, tuple[int, ...]] = {}
        self._limits: LRUCache[Bucket, int] = LRUCache(REMEMBERED_LIMITS)
        self._changed: dict[Bucket, Account] = {}
        self._used_up: set[Bucket] = set()

    def learn(self, snapshot: Snapshot) -> None:
        """Note which tenants have thresholds."""
        plans = ((tenant.id, snapshot.plans[tenant.plan]) for tenant in snapshot.tenants.values())
        self._thresholds = {name: plan.alerts for name, plan in plans if plan.alerts}

    def note(self, jobs: Collection[Job], accounts: Mapping[Bucket, Account], outcomes: Sequence[Outcome]) -> None:
        """Note the jobs and accounts of a transaction that the ledger has committed, and its outcomes."""
        if not self._thresholds:
            return
        # By account: the calls of a transaction share most of theirs.
        limits: dict[Bucket, int | None] = {}
        for job in jobs:
            if job.tenant in self._thresholds:
                for bucket, _, limit, warns_at, _ in job.charges:
                    # What only warns has a limit while it is reserved; the record of a job has it no more.
                    most = limit if warns_at is None else warns_at
                    limits[bucket] = most if most < MOST else limits.get(bucket)
        for bucket, known in limits.items():
            if known is not None:
                self._limits[bucket] = known
            # A job that fal has just accepted changes no account.
            if (account := accounts.get(bucket)) is not None and self._has_room_for(bucket):
                self._changed[bucket] = account
        refused = (one.bucket for one in outcomes if isinstance(one, Exhausted))
        self._used_up.update(bucket for bucket in refused if bucket.tenant in self._thresholds)

    def _has_room_for(self, bucket: Bucket) -> bool:
        return bucket in self._changed or len(self._changed) < MOST_CHANGED

    def take(self) -> list[Alert]:
        """Give the alerts of what has changed since the last time."""
        changed, self._changed = self._changed, {}
        used_up, self._used_up = self._used_up, set()
        # What was refused changed nothing.
        seen = {**dict.fromkeys(used_up, None), **changed}
        return [alert for bucket, account in seen.items() for alert in self._judge(bucket, account, bucket in used_up)]

    def _judge(self, bucket: Bucket, account: Account | None, is_used_up: bool) -> Iterator[Alert]:
        holder, limit = alerted_holder(bucket.subject), self._limits.get(bucket)
        if holder is None:
            return
        percent = 100 * account.used // limit if account and limit else 0
        reached = 100 if is_used_up else percent
        for threshold in self._thresholds.get(bucket.tenant, ()):
            if threshold <= reached:
                yield Alert(
                    alert_id(KIND, *bucket, threshold),
                    KIND,
                    bucket.tenant,
                    self._clock.now(),
                    bucket.subject if holder == "subject" else "",
                    {"per": holder, **_describe(bucket, threshold, limit)},
                )


def _describe(bucket: Bucket, threshold: int, limit: int | None) -> dict[str, Any]:
    end = window_end(bucket.window, bucket.window_start)
    return {
        "unit": bucket.unit,
        "window": bucket.window,
        "percent": threshold,
        "limit": None if limit is None else limit / MILLION,
        "resets_at": None if end is None else to_iso(end),
    }

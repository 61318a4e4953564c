"""The store as retention uses it: finds rows that are past their time, and removes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

#: What is removed, in this order: parts before the uploads that they belong to, and grants before their accounts, so
#: that none is listed as unused.
KINDS = (
    "idempotency",
    "upload_parts",
    "uploads",
    "revocations",
    "jobs",
    "grants",
    "accounts",
    "alert_deliveries",
    "alerts",
    "spend_hours",
    "audit",
)
#: A row as far as its removal needs it: its key first.
Row = Sequence[Any]


@dataclass(frozen=True)
class Expiry:
    """The moments before which each kind is past its time, in seconds since 1970 UTC.

    Attributes:
        jobs: for jobs that were settled or released.
        accounts: by window, the start of the first window whose accounts stay. Accounts of other windows stay too.
        address_accounts: the same of accounts of addresses.
        idempotency: for the keys that were taken.
        uploads: for the expiry of uploads.
        revocations: for the expiry of revocations.
        grants: for the expiry of grants; those without one stay.
        alerts: for when they were raised; their deliveries too.
        spend_hours: for the hours whose sums go.
        audit: for entries of the audit log; none goes before all older ones.
    """

    jobs: float
    accounts: Mapping[str, float]
    idempotency: float
    uploads: float
    revocations: float
    alerts: float
    audit: float
    address_accounts: Mapping[str, float] = field(default_factory=dict)
    spend_hours: float = 0.0
    grants: float = 0.0


class Removal(NamedTuple):
    """What one transaction did.

    Attributes:
        tried: how many of the found rows it came to; those after them are as they were.
        removed: how many of these it removed.
        calls: how many transactions of calls came to their turn at the same file since the one before.
    """

    tried: int
    removed: int
    calls: int = 0


class RetentionStore(Protocol):
    """Finds rows past their time, and removes them in transactions as small as the caller likes.

    Attributes:
        batch_seconds: how long such a transaction may take here without holding up calls.
    """

    batch_seconds: float

    async def oldest_open(self) -> float | None:
        """Return when the oldest job that is neither settled nor released was submitted; None if there is none."""

    async def find(self, kind: str, expiry: Expiry, most: int) -> Sequence[Row]:
        """Find up to so many rows past their time; lock nothing."""

    async def remove(self, kind: str, found: Sequence[Row], seconds: float) -> Removal | None:
        """Remove found rows in one transaction that stops after so long; None if another process removes rows now.

        It comes to some rows however short the time is, and not always to all however long it is. Rows that changed
        since they were found stay. What jobs used stays in the sums of `Ledger.usage`.
        """

"""What the program asks of its persistence to remove what is past its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

#: What is removed, in this order: parts before the uploads that they belong to.
KINDS = ("idempotency", "upload_parts", "uploads", "revocations", "jobs", "accounts")
#: A row as far as its removal needs it: its key first.
Row = Sequence[Any]


@dataclass(frozen=True)
class Expiry:
    """The moments before which each kind is past its time, in seconds since 1970 UTC.

    Attributes:
        jobs: for jobs that were settled or released.
        accounts: by window, the start of the first window whose accounts stay. Accounts of other windows stay too.
        idempotency: for the keys that were taken.
        uploads: for the expiry of uploads.
        revocations: for the expiry of revocations.
    """

    jobs: float
    accounts: Mapping[str, float]
    idempotency: float
    uploads: float
    revocations: float


class RetentionStore(Protocol):
    """Finds rows past their time, and removes them in transactions as small as the caller likes."""

    async def oldest_open(self) -> float | None:
        """When the oldest job that is neither settled nor released was submitted; None if there is none."""

    async def find(self, kind: str, expiry: Expiry, most: int) -> Sequence[Row]:
        """Find up to so many rows past their time; lock nothing."""

    async def remove(self, kind: str, found: Sequence[Row]) -> int | None:
        """Remove found rows in one transaction, and tell how many; None if another process removes rows now.

        Rows that changed since they were found stay. What jobs used stays in the sums of `Ledger.usage`.
        """

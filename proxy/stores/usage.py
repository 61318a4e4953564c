"""What the program asks of its persistence to keep usage in sums."""

from __future__ import annotations

from typing import Protocol


class UsageRollup(Protocol):
    """Adds what settled jobs used to the sums of their days, so that a report need not read the jobs."""

    async def count(self, most: int) -> int | None:
        """Count up to so many settled jobs in one transaction; how many, or None if another process counts now.

        Each job is counted once, and `Ledger.usage` is the same before and after.
        """

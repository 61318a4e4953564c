"""What monthly statements ask beside the sums of usage."""

from __future__ import annotations

from typing import Protocol


class StatementStore(Protocol):
    async def has_open_jobs(self, tenant: str, since: float, until: float) -> bool:
        """Whether a call that a tenant made in [since, until) is neither settled nor released."""

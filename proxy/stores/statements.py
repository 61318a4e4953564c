"""What monthly statements ask beside the sums of usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class StatementStore(Protocol):
    """What a monthly statement adds to the usage of its month."""

    async def has_open_jobs(self, tenant: str, since: float, until: float) -> bool:
        """Return whether a call that a tenant made in [since, until) is neither settled nor released."""

    async def sum_grants(self, tenant: str, since: float, until: float) -> Mapping[tuple[str, str], int]:
        """Sum what grants paid of the calls that a tenant made in [since, until), both ends midnights.

        Returns:
            Millionths, by the window of the grants' accounts and the unit.
        """

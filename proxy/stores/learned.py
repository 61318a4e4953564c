"""What calls usually use, as it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from proxy.stores.ledger import SizeClass


class LearnedUse(NamedTuple):
    """What calls of a class usually use, in millionths; None for what is not known."""

    size: SizeClass
    tokens: int | None
    compute_seconds: int | None


class LearnedStore(Protocol):
    """Keeps what was learned, one row a class."""

    async def load(self, since: float, most: int) -> Sequence[LearnedUse]:
        """Read up to so many rows that were written since a moment, the newest first."""

    async def save(self, uses: Sequence[LearnedUse], at: float, forgotten_before: float) -> None:
        """Write these, and remove what was written before a moment. What is None stays as it was."""

"""Named tokens of the admin API, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from proxy.stores.audit import Author


@dataclass(frozen=True)
class NamedToken:
    """A token as it is kept: only a hash of its secret half."""

    id: str
    name: str
    role: str
    secret_hash: str = field(repr=False)
    created_at: float
    expires_at: float


class AdminTokenStore(Protocol):
    """Named tokens. Each change is an entry of the audit log, in the same transaction."""

    async def load(self) -> Sequence[NamedToken]:
        """Read all of them, by name."""

    async def add(self, token: NamedToken, most: int, *, by: Author) -> bool:
        """Add a token; False if there is one of that name, or there are so many already."""

    async def revoke(self, name: str, *, by: Author) -> bool:
        """Revoke a token; return whether there was one."""

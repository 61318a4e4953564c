"""Plans, tenants, keys and revocations, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class TenantKey:
    """A tenant's long-lived key as it is kept: only a hash of its secret half."""

    id: str
    tenant: str
    name: str
    secret_hash: str = field(repr=False)
    created_at: float
    last_used_at: float | None = None


@dataclass(frozen=True)
class Revocation:
    """Sessions that no longer count: one by its id, or all of a subject that were issued before a moment."""

    tenant: str
    session_id: str | None
    subject: str | None
    issued_before: float
    expires_at: float


@dataclass(frozen=True)
class Revocations:
    """Revocations, as one consistent reading with the directory's version.

    Attributes:
        newest: the number of the last one that there is.
        are_all: whether these are all, not only those behind one that is known.
    """

    version: int
    revocations: Sequence[Revocation]
    newest: int
    are_all: bool


@dataclass(frozen=True)
class DirectoryRows(Revocations):
    """All that decides who may do what, as one consistent reading. `plans` and `tenants` are JSON documents."""

    plans: Mapping[str, Mapping[str, Any]]
    tenants: Sequence[Mapping[str, Any]]
    keys: Sequence[TenantKey]


class DirectoryStore(Protocol):
    """Tenants, plans, keys and revocations."""

    async def version(self) -> int:
        """A number that grows with every change."""

    async def load(self, known: int = 0) -> DirectoryRows:
        """Read everything, but of the revocations those behind the number of one that is known."""

    async def apply(self, plans: Mapping[str, Mapping[str, Any]], tenants: Sequence[Mapping[str, Any]]) -> bool:
        """Make these plans and tenants hold; False when they did already. Tenants that are not named stay."""

    async def add_key(self, key: TenantKey) -> None: ...

    async def revoke_key(self, key_id: str) -> bool:
        """Whether there was such a key."""

    async def touch_key(self, key_id: str, used_at: float) -> None: ...

    async def revoke(self, revocation: Revocation) -> None:
        """Add a revocation; the version grows by one. Its number is greater than any before it."""

    async def load_revocations(self, known: int) -> Revocations:
        """Read the revocations behind the number of one that is known."""

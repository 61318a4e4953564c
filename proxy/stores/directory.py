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
class DirectoryRows:
    """All that decides who may do what, as one consistent reading. `plans` and `tenants` are JSON documents."""

    version: int
    plans: Mapping[str, Mapping[str, Any]]
    tenants: Sequence[Mapping[str, Any]]
    keys: Sequence[TenantKey]
    revocations: Sequence[Revocation]
    newest_revocation: int = 0


@dataclass(frozen=True)
class NewRevocations:
    """The revocations behind one that is known, as one consistent reading with the directory's version."""

    version: int
    newest: int
    revocations: Sequence[Revocation]


class DirectoryStore(Protocol):
    """Tenants, plans, keys and revocations."""

    async def version(self) -> int:
        """A number that grows with every change."""

    async def load(self) -> DirectoryRows: ...

    async def apply(self, plans: Mapping[str, Mapping[str, Any]], tenants: Sequence[Mapping[str, Any]]) -> bool:
        """Make these plans and tenants hold; False when they did already. Tenants that are not named stay."""

    async def add_key(self, key: TenantKey) -> None: ...

    async def revoke_key(self, key_id: str) -> bool:
        """Whether there was such a key."""

    async def touch_key(self, key_id: str, used_at: float) -> None: ...

    async def revoke(self, revocation: Revocation) -> None:
        """Add a revocation; the version grows by one."""

    async def revocations_after(self, number: int) -> NewRevocations:
        """What was revoked since the revocation of this number."""

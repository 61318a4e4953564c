"""Plans, tenants, keys and revocations, as they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from proxy.stores.audit import Author, Change
from proxy.stores.removal import FormerTenant

#: Later than any session expires, in seconds since 1970 UTC: in the year 5138.
NEVER = 1e11
NO_ENDPOINTS: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


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
    """Sessions that no longer count: one by its id, or all of a subject, or of a tenant if none is named.

    Those count no longer that were issued up to a moment, and those that were minted when an earlier revocation was the
    newest: a clock that was ahead and then set back makes sessions that seem younger than they are.

    Attributes:
        subject_digest: of a subject that is forgotten, in the place of its name.
        number: greater than those of all revocations before it; 0 until it is stored.
    """

    tenant: str
    session_id: str | None
    subject: str | None
    issued_before: float
    expires_at: float
    subject_digest: str | None = None
    number: int = field(default=0, compare=False)


def digest_subject(tenant: str, subject: str) -> str:
    """Compute by what a subject is recognized whose name is kept no longer."""
    return hashlib.sha256(f"{tenant}\n{subject}".encode()).hexdigest()


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
class OverrideRow:
    """Another plan, or other limits as a JSON document, for one subject of a tenant until a moment."""

    tenant: str
    subject: str
    plan: str | None
    limits: Mapping[str, Any] | None
    until: float


@dataclass(frozen=True)
class DirectoryRows(Revocations):
    """All that decides who may do what, as one consistent reading. Plans, tenants and endpoints are JSON documents.

    Attributes:
        suspended: since when tenants are suspended, by their ids.
        granted: the tenants that were ever given a grant.
        former: tenants that were deleted.
        overrides: also those that have ended, until they are removed.
    """

    plans: Mapping[str, Mapping[str, Any]]
    tenants: Sequence[Mapping[str, Any]]
    endpoints: Mapping[str, Mapping[str, Any]]
    keys: Sequence[TenantKey]
    suspended: Mapping[str, float]
    granted: frozenset[str]
    former: Sequence[FormerTenant]
    overrides: Sequence[OverrideRow]


class DirectoryStore(Protocol):
    """Tenants, plans, keys and revocations. Each change is an entry of the audit log, in the same transaction."""

    async def version(self) -> int:
        """Return a number that grows with every change."""

    async def load(self, known: int = 0) -> DirectoryRows:
        """Read everything, but of the revocations those behind the number of one that is known."""

    async def apply(
        self,
        plans: Mapping[str, Mapping[str, Any]],
        tenants: Sequence[Mapping[str, Any]],
        endpoints: Mapping[str, Mapping[str, Any]] = NO_ENDPOINTS,
        *,
        by: Author,
    ) -> bool:
        """Make these plans, tenants and endpoints hold; False when they did already. What is not named stays.

        Raises:
            StoreUnavailable: also where a tenant's name is not cleared yet of one that was deleted.
        """

    async def preview(
        self,
        plans: Mapping[str, Mapping[str, Any]],
        tenants: Sequence[Mapping[str, Any]],
        endpoints: Mapping[str, Mapping[str, Any]] = NO_ENDPOINTS,
    ) -> Sequence[Change]:
        """List what `apply` would change now, and change nothing.

        Raises:
            StoreUnavailable: as `apply`.
        """

    async def set_suspended(self, tenant: str, since: float | None, *, by: Author) -> bool:
        """Suspend a tenant, or resume it with None; False if it was so already, or there is none."""

    async def delete_tenant(self, former: FormerTenant, *, by: Author) -> bool:
        """Delete a tenant and its keys, revoke its sessions, and note that; False if there is none."""

    async def add_key(self, key: TenantKey, *, by: Author) -> None:
        """Add a key of a tenant.

        Raises:
            NotFound: the tenant was deleted meanwhile.
        """

    async def revoke_key(self, key_id: str, *, by: Author) -> bool:
        """Revoke a key; return whether there was one."""

    async def touch_key(self, key_id: str, used_at: float) -> None: ...

    async def revoke(self, revocation: Revocation, *, by: Author | None) -> None:
        """Add a revocation; the version grows by one. Its number is greater than any before it.

        Without an author it is the session's own: no entry of the audit log, which its users could make long.
        """

    async def put_override(self, override: OverrideRow, now: float, most: int, *, by: Author) -> bool:
        """Write the override of a subject, instead of one that it had. False if there are so many that have not ended
        at `now`; the others are removed.

        Raises:
            NotFound: the tenant was deleted meanwhile.
        """

    async def clear_override(self, tenant: str, subject: str, *, by: Author) -> bool:
        """Clear an override; return whether the subject had one."""

    async def forget_subject(self, revocation: Revocation, subject: str, *, by: Author) -> None:
        """Add the revocation of a subject that is forgotten. Its name leaves all revocations and the audit log."""

    async def load_revocations(self, known: int) -> Revocations:
        """Read the revocations behind the number of one that is known."""

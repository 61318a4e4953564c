"""The store as removal uses it: clears away what deleted tenants and forgotten subjects leave."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class FormerTenant(NamedTuple):
    """A tenant that was deleted.

    Attributes:
        records: the name under which its jobs and sums are kept. No tenant can have it.
        id: the name that it had, which another one may get.
        is_cleared: whether nothing is left under that name.
    """

    records: str
    id: str
    deleted_at: float
    is_cleared: bool = False


class Pseudonym(NamedTuple):
    """The name under which the jobs and sums of a subject are kept that is forgotten. No subject can have it."""

    tenant: str
    subject: str
    name: str


class RemovalStore(Protocol):
    """Clears what is kept under the name of a deleted tenant, or of a subject that is forgotten."""

    async def clear_some(self, former: FormerTenant) -> bool:
        """Clear some rows in one transaction; False once none is left, so that the name is free.

        Jobs and sums of usage move to the name of its records. All other rows are deleted.
        """

    async def forget_some(self, pseudonym: Pseudonym) -> bool:
        """Clear a subject's name from some rows in one transaction; False once no row has it.

        Jobs, sums of usage, accounts and grants get the pseudonym. All other rows are deleted.
        """

    async def wipe(self) -> None:
        """Overwrite what was deleted, where the database does not do so itself."""

"""What the program asks of the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.stores.audit import Author, Change
from proxy.stores.audit_chain import Entry, Link


@dataclass(frozen=True)
class Verification:
    """Whether the audit log is whole, as one consistent reading.

    Attributes:
        head: the newest entry, for a later check to expect.
        problems: one sentence each; none if the log is whole.
    """

    head: Link
    entries: int
    problems: Sequence[str]


class AuditStore(Protocol):
    """The audit log. What changes the database writes its entries itself, in the same transaction."""

    async def record(self, by: Author, *changes: Change) -> None:
        """Append changes of what the database does not hold. Await it before the change takes effect."""

    async def list_newest(self, most: int, *, before: int | None = None, tenant: str | None = None) -> Sequence[Entry]:
        """Read up to so many entries with a lower number, newest first; of one tenant, or of all."""

    def read_all(self, after: int = 0) -> AsyncIterator[Entry]:
        """Read all entries with a greater number, oldest first, as one consistent reading."""

    async def verify(
        self, expected: Link | None = None, report: Callable[[int, int], None] | None = None
    ) -> Verification:
        """Check the whole chain, and that it has the entry that is expected.

        Args:
            report: gets, now and then, how many entries are checked, and how many there should be.
        """

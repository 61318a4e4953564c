"""What was used: as it is asked of the ledger, and kept in sums."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

#: What usage is grouped by. The sums that are kept for good do not know the last ones.
DETAILS = ("hour", "session", "tag")
GROUP_NAMES = ("tenant", "day", "endpoint", "subject", *DETAILS)
#: There are indexes in this order, so that a page of a million rows is read without the others.
_SORTED = ("tenant", "day", "subject", "endpoint", *DETAILS)


def sort_groups(groups: Collection[str]) -> list[str]:
    """Put groups in the order in which rows are sorted by them."""
    return [name for name in _SORTED if name in groups]


def reads_jobs(subject: str | None, groups: Collection[str]) -> bool:
    """Return whether `UsageLedger.usage_of_jobs` reads each job.

    There are no sums of a subject, by session or subject, or by tag and hour.
    """
    return subject is not None or not {"session", "subject"}.isdisjoint(groups) or {"tag", "hour"} <= set(groups)


@dataclass(frozen=True)
class UsageRow:
    """What was used in one group of jobs. Amounts in millionths.

    Attributes:
        hour: its first moment, as ISO 8601 in UTC.
        session: '' for jobs without one.
        tag: '' for jobs without one; a job with several is in several groups.
    """

    day: str | None
    endpoint: str | None
    subject: str | None
    calls: int
    used: Mapping[str, int]
    tenant: str | None = None
    hour: str | None = None
    session: str | None = None
    tag: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the group."""
        groups = [group for group in GROUP_NAMES if getattr(self, group) is not None]
        return tuple(getattr(self, group) for group in sort_groups(groups))


class UsageLedger(Protocol):
    """Adds up what was used."""

    async def usage(
        self,
        tenant: str | None,
        subject: str | None,
        since: float,
        until: float,
        group_by: frozenset[str],
        *,
        after: Sequence[str] = (),
        most: int | None = None,
    ) -> Sequence[UsageRow]:
        """Sum what jobs submitted in [since, until) used, by `tenant`, `day`, `endpoint` or `subject`, sorted by these.

        Args:
            tenant: whose jobs; None for those of all.
            after: the names of a group, in this order; only groups behind it are reported.
            most: how many groups are reported; None for all of them.
        """

    async def usage_of_jobs(
        self,
        tenant: str,
        subject: str | None,
        since: float,
        until: float,
        group_by: frozenset[str],
        *,
        after: Sequence[str] = (),
        most: int | None = None,
    ) -> Sequence[UsageRow]:
        """Sum what the jobs used that are not removed yet, as `usage` but by any of `GROUP_NAMES`.

        Where it `reads_jobs`, [since, until) is taken exactly, and otherwise as in `usage`, or by the hour.

        Raises:
            StoreUnavailable: also where others that read jobs take too long: they go one by one.
        """

    async def has_more_jobs(self, tenant: str, subject: str | None, since: float, until: float, most: int) -> bool:
        """Return whether more than `most` jobs were submitted in [since, until), in whatever state."""


class UsageRollup(Protocol):
    """Adds what settled jobs used to the sums of their days, so that a report need not read the jobs."""

    async def count(self, most: int) -> int | None:
        """Count up to so many settled jobs in one transaction; return how many, or None if another process counts now.

        Each job is counted once, and `Ledger.usage` is the same before and after.
        """

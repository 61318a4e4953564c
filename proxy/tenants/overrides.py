"""Overrides: another plan, or other limits, for one subject of a tenant until a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from proxy.stores.directory import OverrideRow
from proxy.tenants.plans import MOST_SLOTS, MOST_UNITS, Plan, Quota, Rate
from proxy.tenants.strict import Strict

#: The most that are in effect at once, of all tenants: every process holds them in memory.
MOST_OVERRIDES = 10_000
#: Quotas of one override.
MOST_QUOTAS = 25


class SubjectRates(Strict):
    """How many calls of a subject, and of each of its sessions; null for no limit."""

    session: Rate | None = None
    subject: Rate | None = None


class SubjectConcurrency(Strict):
    """How many calls and unfinished jobs of a subject at once; null for no limit."""

    subject: int | None = Field(ge=1, le=MOST_SLOTS)


class SubjectLimits(Strict):
    """The limits of a subject that take the place of its plan's. What is not named stays as the plan has it."""

    quotas: tuple[Quota, ...] = Field(default=(), max_length=MOST_QUOTAS)
    rate_limits: SubjectRates = SubjectRates()
    poll_limits: SubjectRates = SubjectRates()
    concurrency: SubjectConcurrency = SubjectConcurrency(subject=None)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_UNITS)
    max_prompt_chars: int = Field(default=16_000, ge=1, le=MOST_UNITS)

    @field_validator("quotas")
    @classmethod
    def _check_holders(cls, quotas: tuple[Quota, ...]) -> tuple[Quota, ...]:
        if any(quota.per != "subject" for quota in quotas):
            raise ValueError("an override changes quotas per subject only; the others are not of one subject alone")
        return quotas

    @property
    def names_any(self) -> bool:
        """Whether it names a limit at all: `rate_limits` and the like do by what is in them."""
        values = (getattr(self, name) for name in self.model_fields_set)
        return any(not isinstance(value, Strict) or value.model_fields_set for value in values)

    def apply(self, plan: Plan) -> Plan:
        """Apply these limits to a plan."""
        changes: dict[str, Any] = {}
        for name in self.model_fields_set:
            value, old = getattr(self, name), getattr(plan, name)
            if name == "quotas":
                changes[name] = (*(quota for quota in old if quota.per != "subject"), *value)
            elif isinstance(value, Strict):
                changes[name] = old.model_copy(update=value.model_dump(exclude_unset=True))
            else:
                changes[name] = value
        return plan.model_copy(update=changes)


@dataclass(frozen=True)
class Override:
    """What one subject has instead of its plan, or of some of its limits. One of both is None."""

    plan: str | None
    limits: SubjectLimits | None
    until: float


class Overrides:
    """Those that are in effect, by tenant and subject.

    Attributes:
        end_at: when the first of them ends.
    """

    def __init__(self, entries: Iterable[tuple[tuple[str, str], Override]] = (), now: float = 0.0) -> None:
        self._entries = {key: one for key, one in entries if one.until > now}
        self.end_at = min((one.until for one in self._entries.values()), default=float("inf"))

    @classmethod
    def read(cls, rows: Iterable[OverrideRow], now: float) -> Overrides:
        """Read them from the directory.

        Raises:
            ValidationError: one was written by another version, and this one cannot read it.
        """
        return cls((((row.tenant, row.subject), _read(row)) for row in rows), now)

    def __iter__(self) -> Iterator[tuple[tuple[str, str], Override]]:
        return iter(self._entries.items())

    def get(self, tenant: str, subject: str) -> Override | None:
        return self._entries.get((tenant, subject))

    def drop_ended(self, now: float) -> Overrides:
        """Drop those that have ended."""
        return Overrides(self, now)


def _read(row: OverrideRow) -> Override:
    limits = None if row.limits is None else SubjectLimits.model_validate(row.limits)
    return Override(row.plan, limits, row.until)

"""The terms on which a caller calls: those of its plan, and for a guest also those of the tenant that lets it in.

A guest has a plan of its own, and what it uses is still the tenant's: it counts on the tenant's accounts, in the
tenant's rate limit and in the tenant's leases. All guests of a tenant together have at most a share of these, so that
visitors without a login cannot lock out the tenant's users.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from proxy.tenants.plans import Plan, PollLimits, Quota, RateLimits

MILLION = 1_000_000
Holder = Literal["subject", "tenant", "guests"]


class AccountLimit(NamedTuple):
    """How much of a unit an account allows in a window.

    Attributes:
        per: whose account it is: the subject's, that of the whole tenant, or that of all its guests together.
        limit: in millionths of the unit.
    """

    per: Holder
    unit: str
    window: str
    limit: int


class LeaseLimits(NamedTuple):
    """How many calls and unfinished jobs may be in flight at once; None for no limit."""

    subject: int | None
    tenant: int | None
    guests: int | None = None


class ScopedRate(NamedTuple):
    """A rate limit, such as `60/minute`, of one scope."""

    scope: str
    rate: str


@dataclass(frozen=True)
class Terms:
    """What binds the calls of a caller.

    Attributes:
        share: of what the tenant has, what all its guests together may take; None for those who are no guests.
    """

    plan: Plan
    accounts: tuple[AccountLimit, ...]
    leases: LeaseLimits
    rates: tuple[ScopedRate, ...]
    polls: tuple[ScopedRate, ...]
    share: float | None = None


def user_terms(plan: Plan) -> Terms:
    """The terms of a tenant's users, and of the tenant itself."""
    return Terms(
        plan,
        _find_lowest(_limit(quota.per, quota) for quota in plan.accounts),
        LeaseLimits(plan.concurrency.subject, plan.concurrency.tenant),
        _scope_rates(plan.rate_limits, plan.rate_limits.tenant),
        _scope_rates(plan.poll_limits, plan.poll_limits.tenant),
    )


def guest_terms(plan: Plan, host: Plan, share: float) -> Terms:
    """The terms of a tenant's guests, who call on `plan`; `host` is the tenant's own.

    What `plan` limits `per: tenant` is a limit of all guests together.
    """
    own, whole = plan.concurrency, host.concurrency.tenant
    guests = _min_limit(own.tenant, None if whole is None else share_of(whole, share))
    return Terms(
        plan,
        _find_lowest([*_guest_accounts(plan), *_host_accounts(host), *_shared_bytes(host, share)]),
        LeaseLimits(own.subject, whole, guests),
        _guest_rates(plan.rate_limits, host.rate_limits.tenant, share),
        _guest_rates(plan.poll_limits, host.poll_limits.tenant, share),
        share,
    )


def share_of(whole: int, share: float) -> int:
    """A share in whole numbers, rounded down; at least one."""
    # As it is written: a tenth of a hundred is ten, and no float's nine.
    return max(1, int(Fraction(str(share)) * whole))


def _guest_accounts(plan: Plan) -> list[AccountLimit]:
    return [_limit("guests" if quota.per == "tenant" else "subject", quota) for quota in plan.accounts]


def _host_accounts(host: Plan) -> list[AccountLimit]:
    return [_limit("tenant", quota) for quota in host.quotas if quota.per == "tenant"]


def _shared_bytes(host: Plan, share: float) -> list[AccountLimit]:
    """What guests may upload together: a share of what the tenant may, or where only its users are limited, of that."""
    of_tenant = [one for one in _host_accounts(host) if one.unit == "upload_bytes"]
    of_user = [_limit("guests", quota) for quota in host.accounts if quota.unit == "upload_bytes"]
    return [
        one._replace(per="guests", limit=share_of(one.limit // MILLION, share) * MILLION)
        for one in of_tenant or of_user
    ]


def _limit(per: Holder, quota: Quota) -> AccountLimit:
    return AccountLimit(per, quota.unit, quota.window, round(quota.limit * MILLION))


def _find_lowest(limits: Iterable[AccountLimit]) -> tuple[AccountLimit, ...]:
    """Two quotas may ration one account: a call counts there once, and the lower limit holds."""
    lowest: dict[tuple[str, str, str], AccountLimit] = {}
    for one in limits:
        known = lowest.setdefault(one[:3], one)
        if one.limit < known.limit:
            lowest[one[:3]] = one
    return tuple(lowest.values())


def _min_limit(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def _scope_rates(rates: RateLimits | PollLimits, tenant: str | None) -> tuple[ScopedRate, ...]:
    listed = (("ip", rates.ip), ("session", rates.session), ("subject", rates.subject), ("tenant", tenant))
    return tuple(ScopedRate(scope, rate) for scope, rate in listed if rate is not None)


def _guest_rates(rates: RateLimits | PollLimits, tenant: str | None, share: float) -> tuple[ScopedRate, ...]:
    """A guest's own limits, the tenant's, and those of all guests: one for each length of window."""
    by_period: dict[str, int] = {}
    if tenant is not None:
        amount, period = _parse_rate(tenant)
        by_period[period] = share_of(amount, share)
    if rates.tenant is not None:
        amount, period = _parse_rate(rates.tenant)
        by_period[period] = min(amount, by_period.get(period, amount))
    guests = [ScopedRate("guests", f"{amount}/{period}") for period, amount in by_period.items()]
    return (*_scope_rates(rates, tenant), *guests)


def _parse_rate(rate: str) -> tuple[int, str]:
    amount, _, period = rate.partition("/")
    return int(amount), period

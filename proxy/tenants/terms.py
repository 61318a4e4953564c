"""The terms on which a caller calls: those of its plan, and for a guest also those of the tenant that lets it in.

A guest has a plan of its own, and what it uses is still the tenant's: it counts on the tenant's accounts, in the
tenant's rate limit and in the tenant's leases. All guests of a tenant together have at most a share of these, so that
visitors without a login cannot lock out the tenant's users.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, NamedTuple

from proxy.tenants.plans import Plan, PollLimits, Quota, RateLimits

MILLION = 1_000_000
Holder = Literal["subject", "tenant", "guests", "address", "session"]
#: The window of an account that is never filled again, and of one that ends with the session.
LIFETIME, SESSION = "lifetime", "session"


class AccountLimit(NamedTuple):
    """How much of a unit an account allows in a window.

    Attributes:
        per: whose account it is: the subject's, that of the whole tenant, that of all its guests together, that
            of its guests of one address, or that of one session.
        limit: in millionths of the unit; None to refuse nothing.
        warns_at: how much is used without a warning, in millionths; None for no warning.
    """

    per: Holder
    unit: str
    window: str
    limit: int | None
    warns_at: int | None = None


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
        share: of what the tenant has, what all its guests together may take; None for a caller that is no guest.
    """

    plan: Plan
    accounts: tuple[AccountLimit, ...]
    leases: LeaseLimits
    rates: tuple[ScopedRate, ...]
    polls: tuple[ScopedRate, ...]
    share: float | None = None

    @cached_property
    def limits_usd(self) -> bool:
        """Whether a call needs a price, so that it can be counted."""
        return any(one.unit == "usd" and one.limit is not None for one in self.accounts)


def user_terms(plan: Plan) -> Terms:
    """Make the terms of a tenant's users, and of the tenant itself."""
    return Terms(
        plan,
        _find_lowest(_limit(quota.per, quota) for quota in plan.accounts if quota.per != "address"),
        LeaseLimits(plan.concurrency.subject, plan.concurrency.tenant),
        _scope_rates(plan.rate_limits, plan.rate_limits.tenant),
        _scope_rates(plan.poll_limits, plan.poll_limits.tenant),
    )


def guest_terms(plan: Plan, host: Plan, share: float) -> Terms:
    """Make the terms of a tenant's guests, who call on `plan`; `host` is the tenant's own.

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


def narrow_terms(terms: Terms, *, max_tokens: int | None, max_prompt_chars: int | None) -> Terms:
    """Return the same terms with lower ceilings of an input; None leaves a ceiling as it is."""
    plan = terms.plan
    ceilings = {
        "max_tokens": _min_limit(plan.max_tokens, max_tokens),
        "max_prompt_chars": _min_limit(plan.max_prompt_chars, max_prompt_chars),
    }
    return replace(terms, plan=plan.model_copy(update=ceilings))


def add_session_limits(terms: Terms, limits: Iterable[tuple[str, int]]) -> Terms:
    """Return the same terms with accounts of the session alone, by unit and limit in millionths."""
    own = (AccountLimit("session", unit, SESSION, limit) for unit, limit in limits)
    return replace(terms, accounts=(*own, *terms.accounts))


def share_of(whole: int, share: float) -> int:
    """Return a share in whole numbers, rounded down; at least one."""
    # As it is written: a tenth of a hundred is ten, and no float's nine.
    return max(1, int(Fraction(str(share)) * whole))


def _guest_accounts(plan: Plan) -> list[AccountLimit]:
    limits = [_limit("guests" if quota.per == "tenant" else quota.per, quota) for quota in plan.accounts]
    # A guest's name is that of one session, and so is its account: it can be removed some time after.
    return [one._replace(window=SESSION) if (one.per, one.window) == ("subject", LIFETIME) else one for one in limits]


def _host_accounts(host: Plan) -> list[AccountLimit]:
    return [_limit(quota.per, quota) for quota in host.quotas if quota.per != "subject"]


def _shared_bytes(host: Plan, share: float) -> list[AccountLimit]:
    """Limit what all guests may upload: a share of the tenant's quota, or of a user's if the tenant has none."""
    quotas = [one for one in host.accounts if one.unit == "upload_bytes" and one.mode == "enforce"]
    of_tenant = [quota for quota in quotas if quota.per == "tenant"]
    of_user = [quota for quota in quotas if quota.per == "subject"]
    return [
        AccountLimit("guests", one.unit, one.window, share_of(_millionths(one) // MILLION, share) * MILLION)
        for one in of_tenant or of_user
    ]


def _limit(per: Holder, quota: Quota) -> AccountLimit:
    warns = quota.mode == "warn"
    limit = _millionths(quota)
    return AccountLimit(per, quota.unit, quota.window, None if warns else limit, limit if warns else None)


def _millionths(quota: Quota) -> int:
    return round(quota.limit * MILLION)


def _find_lowest(limits: Iterable[AccountLimit]) -> tuple[AccountLimit, ...]:
    """Merge the limits of one account, of which two quotas may speak: the lower limit holds."""
    lowest: dict[tuple[str, str, str], AccountLimit] = {}
    for one in limits:
        known = lowest.setdefault(one[:3], one)
        lowest[one[:3]] = known._replace(
            limit=_min_limit(known.limit, one.limit), warns_at=_min_limit(known.warns_at, one.warns_at)
        )
    return tuple(lowest.values())


def _min_limit(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def _scope_rates(rates: RateLimits | PollLimits, tenant: str | None) -> tuple[ScopedRate, ...]:
    listed = (("ip", rates.ip), ("session", rates.session), ("subject", rates.subject), ("tenant", tenant))
    return tuple(ScopedRate(scope, rate) for scope, rate in listed if rate is not None)


def _guest_rates(rates: RateLimits | PollLimits, tenant: str | None, share: float) -> tuple[ScopedRate, ...]:
    """List a guest's own limits, the tenant's, and those of all guests together: one for each length of window."""
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

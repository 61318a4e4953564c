"""The limits of a guest: those of its plan, of the tenant, and of the guests' share of the tenant."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.tenants.plans import Concurrency, Plan, PollLimits, Quota, RateLimits, Uploads
from proxy.tenants.terms import AccountLimit, LeaseLimits, Terms, guest_terms, share_of, user_terms

MILLION = 1_000_000


def plan(**limits: Any) -> Plan:
    return Plan(endpoints=frozenset({"fal-ai/llava-next"}), **limits)


def quota(per: str, unit: str, limit: float, window: str = "day", mode: str = "enforce") -> Quota:
    return Quota.model_validate({"per": per, "unit": unit, "limit": limit, "window": window, "mode": mode})


@pytest.mark.parametrize(
    ("whole", "share", "part"),
    [
        (8, 0.25, 2),
        (10, 0.25, 2),
        (3, 0.25, 1),
        (1, 0.25, 1),
        (1, 0.000001, 1),
        (7, 1, 7),
        (7, 1.0, 7),
        # As floats, 0.29 * 100 is 28.999999999999996, and 10**18 * 0.1 is not a tenth.
        (100, 0.29, 29),
        (10**18 + 10, 0.1, 10**17 + 1),
    ],
)
def test_a_share_is_rounded_down_and_at_least_one(whole: int, share: float, part: int) -> None:
    assert share_of(whole, share) == part


@pytest.mark.parametrize(
    ("own", "tenant", "guests"),
    [(None, None, None), (None, 40, 10), (5, 40, 5), (50, 40, 10), (5, None, 5), (None, 2, 1)],
)
def test_concurrent_jobs_of_guests_are_limited(own: int | None, tenant: int | None, guests: int | None) -> None:
    """`own` is what the plan of the guests gives all of them; no limit of the tenant needs no share."""
    visitors = plan(concurrency=Concurrency(subject=3, tenant=own))
    host = plan(concurrency=Concurrency(subject=30, tenant=tenant))
    assert guest_terms(visitors, host, 0.25).leases == LeaseLimits(3, tenant, guests)
    assert user_terms(host).leases == LeaseLimits(30, tenant, None)


@pytest.mark.parametrize(
    ("own", "tenant", "listed"),
    [
        (None, None, []),
        (None, "40/minute", [("tenant", "40/minute"), ("guests", "10/minute")]),
        ("5/minute", "40/minute", [("tenant", "40/minute"), ("guests", "5/minute")]),
        ("50/minute", "40/minute", [("tenant", "40/minute"), ("guests", "10/minute")]),
        ("50/hour", "40/minute", [("tenant", "40/minute"), ("guests", "10/minute"), ("guests", "50/hour")]),
        ("5/minute", None, [("guests", "5/minute")]),
        (None, "1/second", [("tenant", "1/second"), ("guests", "1/second")]),
    ],
)
def test_rates_of_guests_are_limited(own: str | None, tenant: str | None, listed: list[tuple[str, str]]) -> None:
    personal: dict[str, Any] = {"ip": None, "session": "6/minute", "subject": None}
    visitors = plan(rate_limits=RateLimits(**personal, tenant=own), poll_limits=PollLimits(**personal, tenant=own))
    host = plan(rate_limits=RateLimits(tenant=tenant), poll_limits=PollLimits(tenant=tenant))
    terms = guest_terms(visitors, host, 0.25)
    assert list(terms.rates) == list(terms.polls) == [("session", "6/minute"), *listed]


def accounts(terms: Terms) -> set[tuple[str, str, str, float]]:
    return {(one.per, one.unit, one.window, (one.limit or 0) / MILLION) for one in terms.accounts}


def test_accounts_are_those_of_both_plans() -> None:
    visitors = plan(quotas=(quota("subject", "requests", 5), quota("tenant", "requests", 50)))
    host = plan(quotas=(quota("subject", "requests", 100), quota("tenant", "requests", 10, "month")))
    assert accounts(guest_terms(visitors, host, 0.25)) == {
        ("subject", "requests", "day", 5),
        ("guests", "requests", "day", 50),
        ("tenant", "requests", "month", 10),
    }
    assert accounts(user_terms(host)) == {("subject", "requests", "day", 100), ("tenant", "requests", "month", 10)}


def test_an_address_has_accounts_of_both_plans_and_limits_guests_only() -> None:
    visitors = plan(quotas=(quota("address", "requests", 5), quota("address", "tokens", 900)))
    host = plan(quotas=(quota("address", "requests", 3), quota("address", "upload_bytes", 70)))
    assert accounts(guest_terms(visitors, host, 0.25)) == {
        ("address", "requests", "day", 3),
        ("address", "tokens", "day", 900),
        ("address", "upload_bytes", "day", 70),
    }
    assert accounts(user_terms(host)) == set()


def test_the_lifetime_of_a_guest_is_that_of_its_session() -> None:
    visitors = plan(quotas=(quota("subject", "usd", 1, "lifetime"), quota("tenant", "usd", 5, "lifetime")))
    host = plan(quotas=(quota("subject", "usd", 9, "lifetime"), quota("tenant", "usd", 20, "lifetime")))
    assert accounts(guest_terms(visitors, host, 0.25)) == {
        ("subject", "usd", "session", 1),
        ("guests", "usd", "lifetime", 5),
        ("tenant", "usd", "lifetime", 20),
    }
    assert accounts(user_terms(host)) == {("subject", "usd", "lifetime", 9), ("tenant", "usd", "lifetime", 20)}


def test_bytes_are_a_share_of_the_tenants_limit_or_else_of_a_users() -> None:
    visitors, per_user = plan(), Uploads(bytes_per_day=400)
    both = plan(uploads=per_user, quotas=(quota("tenant", "upload_bytes", 1000, "month"),))
    assert accounts(guest_terms(visitors, both, 0.25)) == {
        ("tenant", "upload_bytes", "month", 1000),
        ("guests", "upload_bytes", "month", 250),
    }
    assert accounts(guest_terms(visitors, plan(uploads=per_user), 0.25)) == {("guests", "upload_bytes", "day", 100)}
    assert accounts(guest_terms(visitors, plan(), 0.25)) == set()
    lower = plan(quotas=(quota("tenant", "upload_bytes", 60),))
    assert ("guests", "upload_bytes", "day", 60) in accounts(guest_terms(lower, plan(uploads=per_user), 0.25))


def test_bytes_shared_by_guests_are_not_taken_from_a_quota_that_only_warns() -> None:
    host = plan(quotas=(quota("tenant", "upload_bytes", 1000, "month", "warn"),))
    (limit,) = guest_terms(plan(), host, 0.25).accounts
    assert limit == AccountLimit("tenant", "upload_bytes", "month", None, 1000 * MILLION)


def test_warnings_on_one_account_are_merged_apart_from_its_limit() -> None:
    warnings = (quota("subject", "usd", 4, mode="warn"), quota("subject", "usd", 3, mode="warn"))
    (limit,) = user_terms(plan(quotas=(warnings[0], quota("subject", "usd", 5), warnings[1]))).accounts
    assert limit == AccountLimit("subject", "usd", "day", 5 * MILLION, 3 * MILLION)


def test_a_quota_known_to_older_versions_is_stored_in_their_form() -> None:
    assert "mode" not in quota("subject", "usd", 4).model_dump(mode="json")
    assert quota("subject", "usd", 4, mode="warn").model_dump(mode="json")["mode"] == "warn"


def test_two_quotas_on_one_account_are_merged_into_one_limit() -> None:
    twice = plan(quotas=(quota("subject", "upload_bytes", 500),), uploads=Uploads(bytes_per_day=300))
    assert user_terms(twice).accounts == (AccountLimit("subject", "upload_bytes", "day", 300 * MILLION),)

"""Quotas of US dollars need the prices of all endpoints that they limit: without a price, a call would cost nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

from proxy.tenants.plans import Plan, Tenant


def list_unpriced(endpoints: Iterable[str], prices: Container[str]) -> list[str]:
    """List the endpoints without a price, sorted."""
    return sorted(endpoint for endpoint in endpoints if endpoint not in prices)


def find_unpriced(
    plans: Mapping[str, Plan], tenants: Iterable[Tenant], prices: Container[str]
) -> dict[tuple[str, str], str]:
    """Find the plans whose quotas of usd limit an endpoint without a price.

    Returns:
        By plan and endpoint, the name of the plan that has the endpoint: for guests it can be another one.
    """
    found: dict[tuple[str, str], str] = {}
    for quotas, plan in _list_limited(plans, tenants):
        for endpoint in list_unpriced(plans[plan].endpoints, prices):
            found.setdefault((quotas, endpoint), plan)
    return found


def _list_limited(plans: Mapping[str, Plan], tenants: Iterable[Tenant]) -> Iterator[tuple[str, str]]:
    """Yield each plan that has quotas of usd with each plan whose calls count there, its own first."""
    for name, plan in plans.items():
        if any(quota.unit == "usd" for quota in plan.quotas):
            yield name, name
    for tenant in tenants:
        host = plans.get(tenant.plan)
        if host is None or not tenant.guests.enabled:
            continue
        # The quotas of a tenant's plan per subject are for its users.
        if any(quota.unit == "usd" and quota.per != "subject" for quota in host.quotas):
            yield from ((tenant.plan, name) for name in _list_guest_plans(tenant) if name in plans)


def _list_guest_plans(tenant: Tenant) -> list[str]:
    return [tier.plan for tier in tenant.guests.tiers] or [tenant.guest_plan]

"""What grants have left, as callers and the operator read it."""

from __future__ import annotations

from typing import Any

from proxy.clock import to_iso
from proxy.limits.usage import to_units
from proxy.stores.grants import GrantFilter, GrantStanding, GrantStore

#: How many grants are named to a caller.
MOST_GRANTS = 100


def describe_grant(standing: GrantStanding) -> dict[str, Any]:
    """Describe a grant as JSON, with what is left of it."""
    grant = standing.grant
    return {
        "id": grant.id,
        "tenant": grant.tenant,
        "subject": grant.subject or None,
        "created_at": to_iso(grant.created_at),
        "reason": grant.reason,
        **_grant_figures(standing),
    }


def _grant_figures(standing: GrantStanding) -> dict[str, Any]:
    grant, account = standing
    return {
        "unit": grant.unit,
        "amount": to_units(grant.amount),
        "used": to_units(account.used),
        "reserved": to_units(account.reserved),
        "left": to_units(standing.left),
        "expires_at": None if grant.expires_at is None else to_iso(grant.expires_at),
    }


async def list_grants_of(store: GrantStore, tenant: str, subject: str, now: float) -> list[dict[str, Any]]:
    """List what is left of the newest grants that calls of a subject can spend, without the operator's notes.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    found = await store.list_grants(GrantFilter(tenant, (subject, ""), open_at=now), MOST_GRANTS)
    return [{"per": "subject" if one.grant.subject else "tenant", **_grant_figures(one)} for one in found]

"""What a call takes from which account, by its plan."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidInput
from proxy.limits.quotas import MILLION, list_charges, new_job
from proxy.tenants.plans import Plan, Quota, Uploads
from proxy.tenants.terms import user_terms

NOON = 43_200.0
FREE = user_terms(Plan(endpoints=frozenset()))


@pytest.mark.parametrize("unit", ["tokens", "usd", "upload_bytes"])
def test_what_no_ledger_holds_is_refused_before_it_is_written(unit: str) -> None:
    """In one transaction with others it would fail theirs too."""
    with pytest.raises(InvalidInput, match="more than any quota holds"):
        new_job(FREE, "acme", "alice", "run", "fal-ai/own", {"requests": MILLION, unit: 10**18 + 1}, NOON)
    assert new_job(FREE, "acme", "alice", "run", "fal-ai/own", {unit: 10**18}, NOON).used == {unit: 10**18}


def test_two_quotas_on_one_account_count_a_call_once_and_the_lower_limit_holds() -> None:
    quota = Quota(per="subject", unit="upload_bytes", limit=500, window="day")
    for limit, holds in ((500, 300), (200, 200)):
        quotas = (quota.model_copy(update={"limit": limit}),)
        plan = Plan(endpoints=frozenset(), quotas=quotas, uploads=Uploads(bytes_per_day=300))
        (charge,) = list_charges(user_terms(plan), "acme", "alice", {"upload_bytes": 7 * MILLION}, NOON)
        assert (charge.amount, charge.limit) == (7 * MILLION, holds * MILLION)

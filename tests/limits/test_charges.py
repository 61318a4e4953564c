"""What a call takes from which account, by its plan."""

from __future__ import annotations

from proxy.policy.plans import Plan, Quota, Uploads
from proxy.policy.quota import MILLION, charges_for
from proxy.policy.terms import user_terms

NOON = 43_200.0


def test_two_quotas_on_one_account_count_a_call_once_and_the_lower_limit_holds() -> None:
    quota = Quota(per="subject", unit="upload_bytes", limit=500, window="day")
    for limit, holds in ((500, 300), (200, 200)):
        quotas = (quota.model_copy(update={"limit": limit}),)
        plan = Plan(endpoints=frozenset(), quotas=quotas, uploads=Uploads(bytes_per_day=300))
        (charge,) = charges_for(user_terms(plan), "acme", "alice", {"upload_bytes": 7 * MILLION}, NOON)
        assert (charge.amount, charge.limit) == (7 * MILLION, holds * MILLION)

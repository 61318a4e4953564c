"""What a call takes from which account, by its plan."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidInput
from proxy.limits.accounts import Payer
from proxy.limits.quotas import MILLION, list_charges, new_job
from proxy.tenants.plans import Plan, Quota, Uploads
from proxy.tenants.terms import add_session_limits, guest_terms, user_terms

NOON = 43_200.0
ALICE = Payer("acme", "alice")
FREE = user_terms(Plan(endpoints=frozenset()))


@pytest.mark.parametrize("unit", ["tokens", "usd", "upload_bytes"])
def test_a_charge_that_no_ledger_holds_is_refused_before_it_is_written(unit: str) -> None:
    """In one transaction with others it would fail theirs too."""
    with pytest.raises(InvalidInput, match="more than any quota holds"):
        new_job(FREE, ALICE, "run", "fal-ai/own", {"requests": MILLION, unit: 10**18 + 1}, NOON)
    assert new_job(FREE, ALICE, "run", "fal-ai/own", {unit: 10**18}, NOON).used == {unit: 10**18}


def test_only_accounts_of_subjects_and_tenants_let_a_call_in_that_needs_less() -> None:
    quotas = tuple(
        Quota(per=per, unit=unit, limit=500, window="day")
        for per in ("subject", "tenant", "address")
        for unit in ("tokens", "usd")
    )
    guests = guest_terms(Plan(endpoints=frozenset(), quotas=quotas), Plan(endpoints=frozenset(), quotas=quotas), 0.5)
    terms = add_session_limits(guests, [("tokens", 9), ("usd", 9)])
    charges = list_charges(terms, ALICE, {"tokens": 64, "usd": 60}, NOON, {"tokens": 4, "usd": 3})
    found = {(one.per, one.unit): charge.needed for one, charge in zip(terms.accounts, charges, strict=True)}
    exact = {(per, unit): None for per in ("session", "address", "guests") for unit in ("tokens", "usd")}
    needs = {("tokens", 4), ("usd", 3)}
    assert found == exact | {(per, unit): needed for per in ("subject", "tenant") for unit, needed in needs}


def test_two_quotas_on_one_account_count_a_call_once_and_the_lower_limit_holds() -> None:
    quota = Quota(per="subject", unit="upload_bytes", limit=500, window="day")
    for limit, holds in ((500, 300), (200, 200)):
        quotas = (quota.model_copy(update={"limit": limit}),)
        plan = Plan(endpoints=frozenset(), quotas=quotas, uploads=Uploads(bytes_per_day=300))
        (charge,) = list_charges(user_terms(plan), ALICE, {"upload_bytes": 7 * MILLION}, NOON)
        assert (charge.amount, charge.limit) == (7 * MILLION, holds * MILLION)

"""Quotas as bars: what stands on the accounts of one holder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxy.limits.accounts import Payer
from proxy.limits.usage import left
from proxy.stores.ledger import Ledger
from proxy.tenants.terms import Holder, Terms


async def read_quotas(ledger: Ledger, terms: Terms, payer: Payer, per: Holder, now: float) -> list[dict[str, Any]]:
    """Read what is left of each quota of one kind of holder.

    Raises:
        StoreUnavailable: the ledger does not answer.
    """
    own = replace(terms, accounts=tuple(one for one in terms.accounts if one.per == per))
    return await left(ledger, own, payer, now)

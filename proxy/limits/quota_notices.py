"""What callers, the log and alerts say of an account that is used up."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cachetools import LRUCache

from proxy.errors import QuotaExceeded
from proxy.limits.accounts import ALL_GUESTS, window_end
from proxy.stores.grants import GRANT_PREFIX
from proxy.stores.ledger import ADDRESS_PREFIX, SESSION_PREFIX, Bucket, Charge, Exhausted
from proxy.tenants.caller import is_guest_name
from proxy.tenants.terms import MILLION

_SHARED = {"": ("this tenant", "tenant"), ALL_GUESTS: ("all guests of this tenant", "tenant")}
#: Accounts whose warning is not repeated.
REMEMBERED_WARNINGS = 10_000
_log = logging.getLogger(__name__)


def quota_exceeded(refusal: Exhausted, now: float) -> QuotaExceeded:
    """Put the refusal in words: which account, and when it is filled again, if it ever is."""
    bucket = refusal.bucket
    holder, scope = _describe_holder(bucket.subject)
    end = window_end(bucket.window, bucket.window_start)
    window = "lifetime" if end is None else f"{bucket.window}'s"
    return QuotaExceeded(
        f"The {window} quota of {bucket.unit} of {holder} is used up: {refusal.left / MILLION:g} left.",
        retry_after=None if end is None else end - now,
        scope=scope,
    )


def _describe_holder(name: str) -> tuple[str, str]:
    """Return how a refusal names the holder of an account, and the scope that it has for that."""
    if name.startswith(ADDRESS_PREFIX):
        return "all guests of this address", "ip"
    if name.startswith(SESSION_PREFIX):
        return "this session", "session"
    return _SHARED.get(name, ("this subject", "subject"))


def alerted_holder(name: str) -> str | None:
    """Return how an alert names the holder of an account; None for holders that strangers bring any number of."""
    if name in ("", ALL_GUESTS):
        return "guests" if name else "tenant"
    is_one_of_many = name.startswith((ADDRESS_PREFIX, SESSION_PREFIX, GRANT_PREFIX)) or is_guest_name(name)
    return None if is_one_of_many else "subject"


class QuotaWarnings:
    """Logs the first call of a window in this process that exceeds a quota with `mode: warn`."""

    def __init__(self) -> None:
        self._logged: LRUCache[tuple[Bucket, int | None], bool] = LRUCache(REMEMBERED_WARNINGS)

    def log(self, exceeded: Iterable[Charge]) -> None:
        """Log what a call has exceeded, unless an earlier one did."""
        for charge in exceeded:
            bucket, known = charge.bucket, (charge.bucket, charge.warns_at)
            if known not in self._logged:
                self._logged[known] = True
                holder, _ = _describe_holder(bucket.subject)
                fields = {
                    "tenant": bucket.tenant,
                    "holder": bucket.subject if holder == "this subject" else holder,
                    "unit": bucket.unit,
                    "window": bucket.window,
                    "limit": (charge.warns_at or 0) / MILLION,
                }
                _log.warning("quota exceeded", extra={"log_fields": fields})

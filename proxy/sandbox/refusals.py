"""fal's refusals of a key, an account or an endpoint, in its own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from proxy.sandbox.answers import Answer, platform_failure

REFUSALS: Mapping[str, tuple[int, str, str | None]] = {
    "wrong_key": (401, "invalid key credentials", None),
    "no_permission": (403, "The key lacks the permission for this operation", None),
    "account_locked": (403, "User is locked. Reason: Admin lock. Contact support@fal.ai.", None),
    "balance_used_up": (
        403,
        "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing.",
        None,
    ),
    "top_up": (403, "User is locked. Reason: TOP_UP.", None),
    "payment_required": (402, "Exhausted balance. Top up your balance at fal.ai/dashboard/billing.", None),
    "concurrency_limit": (429, "Concurrent requests limit", "concurrent_requests_limit"),
    "rate_limit": (429, "Too many requests", None),
    "endpoint_refused": (403, "Access to this application is denied", None),
    "endpoint_unknown": (404, 'Application "sandbox" not found', None),
}


def refusal(name: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Make a refusal by its name.

    Raises:
        ValueError: there is no refusal of that name.
    """
    if name not in REFUSALS:
        raise ValueError(f"no such refusal: {name}; there is {', '.join(REFUSALS)}")
    status, detail, error_type = REFUSALS[name]
    if error_type is None:
        return Answer(status, {"detail": detail}, headers or {})
    answer = platform_failure(error_type, detail)
    return replace(answer, headers={**answer.headers, **(headers or {})})

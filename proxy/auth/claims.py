"""What the claims of a verified token mean: a subject, a plan, and what it is narrowed to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from proxy.auth.sessions import check_subject
from proxy.auth.verified import LEEWAY_SECONDS
from proxy.errors import InvalidToken
from proxy.tenants.caller import InputCeilings, Session
from proxy.tenants.identity import Claim, Identity, PlanChoice
from proxy.tenants.plans import MAX_SESSION_SECONDS, MOST_UNITS

MOST_LISTED = 100
MAX_NAME_LENGTH = 200


def read_session(claims: Mapping[str, Any], tenant: str, identity: Identity, signed: bytes, now: float) -> Session:
    """Read what a token says, in the form of a session; it may have expired.

    Args:
        signed: what makes this token's id. A signature can have more than one spelling, so it is no part of that.

    Raises:
        InvalidToken: a claim is missing, or has a value that cannot be used.
    """
    issued_at, expires_at = _read_moment(claims, "iat"), _read_moment(claims, "exp")
    not_before = _read_moment(claims, "nbf") if "nbf" in claims else 0.0
    if max(issued_at, not_before) > now + LEEWAY_SECONDS:
        raise InvalidToken("The token is not valid yet (iat, nbf).")
    return Session(
        id="jwt_" + hashlib.sha256(signed).hexdigest()[:40],
        tenant=tenant,
        subject=_read_subject(claims, identity.subject_claim),
        # Not in the future: a session is never younger than a revocation that follows it.
        issued_at=min(issued_at, now),
        # A revocation lasts as long as any session can.
        expires_at=min(expires_at, issued_at + MAX_SESSION_SECONDS),
        endpoints=_read_endpoints(claims, identity.narrow.endpoints_claim),
        ceilings=InputCeilings(
            _read_ceiling(claims, identity.narrow.max_tokens_claim),
            _read_ceiling(claims, identity.narrow.max_prompt_chars_claim),
        ),
        plan=None if identity.plans is None else _choose_plan(claims, identity.plans),
        identity=identity,
    )


def _read_moment(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidToken(f"The token must say when it was issued (iat) and when it expires (exp): {name} is no time.")
    return float(value)


def _find(claims: Mapping[str, Any], claim: Claim) -> Any:
    """Find the value of a claim; None if the token does not have it."""
    value: Any = claims
    for name in (claim,) if isinstance(claim, str) else claim:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _describe(claim: Claim) -> str:
    return claim if isinstance(claim, str) else " → ".join(claim)


def _read_subject(claims: Mapping[str, Any], claim: Claim) -> str:
    value = _find(claims, claim)
    try:
        if not isinstance(value, str):
            raise ValueError("must be a text")
        return check_subject(value)
    except ValueError as problem:
        raise InvalidToken(f"The token's claim {_describe(claim)} cannot name its user: {problem}.") from None


def _choose_plan(claims: Mapping[str, Any], choice: PlanChoice) -> str:
    value = _find(claims, choice.claim)
    listed = [_without_point(one) for one in (value if isinstance(value, list) else [value])]
    # As JSON writes them: true, 2.
    given = {str(one).lower() if isinstance(one, bool) else str(one) for one in listed if isinstance(one, str | int)}
    plan = next((name for key, name in choice.map.items() if key in given), choice.default)
    if plan is None:
        raise InvalidToken(f"The token's claim {_describe(choice.claim)} gives its user no plan.")
    return plan


def _read_endpoints(claims: Mapping[str, Any], claim: Claim | None) -> tuple[str, ...] | None:
    """Read the endpoints that a claim narrows to: a list, or a text with spaces between them, as scopes are."""
    value = None if claim is None else _find(claims, claim)
    if claim is None or value is None:
        return None
    listed = value.split() if isinstance(value, str) else value
    if (
        not isinstance(listed, list)
        or len(listed) > MOST_LISTED
        or not all(isinstance(one, str) and len(one) <= MAX_NAME_LENGTH for one in listed)
    ):
        raise InvalidToken(f"The token's claim {_describe(claim)} must list at most {MOST_LISTED} endpoints.")
    return tuple(sorted(set(listed)))


def _read_ceiling(claims: Mapping[str, Any], claim: Claim | None) -> int | None:
    value = None if claim is None else _without_point(_find(claims, claim))
    if claim is None or value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_UNITS:
        raise InvalidToken(f"The token's claim {_describe(claim)} must be a whole number above 0.")
    return value


def _without_point(value: Any) -> Any:
    """A whole number as such, however its program writes it: 2 for 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value

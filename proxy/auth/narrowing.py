"""What a tenant can narrow a session to, beside its endpoints. It is part of the token, so it has bounds."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from proxy.errors import BadRequest
from proxy.tenants.caller import InputCeilings, Session, SessionQuota
from proxy.tenants.plans import MOST_UNITS, Unit
from proxy.tenants.prices import list_unpriced
from proxy.tenants.strict import WITHOUT_POINT
from proxy.tenants.terms import MILLION

MOST_TAGS = 10
#: Endpoints that an error names.
MOST_NAMED = 20
Ceiling = Annotated[int, Field(ge=1, le=MOST_UNITS), WITHOUT_POINT]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/=-]{0,63}$")]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class QuotaForm(_Form):
    """How much of a unit the session has in all."""

    unit: Unit
    limit: float = Field(ge=1 / MILLION, le=MOST_UNITS)


class LimitsForm(_Form):
    """Ceilings of each input."""

    max_tokens: Ceiling | None = None
    max_prompt_chars: Ceiling | None = None


class Narrowing(_Form):
    """What a session is narrowed to. What is wider than its plan has no effect: the plan's own limits still apply."""

    quotas: list[QuotaForm] = []
    limits: LimitsForm = LimitsForm()
    tags: list[Tag] = Field(default=[], max_length=MOST_TAGS)

    @field_validator("quotas")
    @classmethod
    def _check_quotas(cls, quotas: list[QuotaForm]) -> list[QuotaForm]:
        if len({quota.unit for quota in quotas}) < len(quotas):
            raise ValueError("give one quota for each unit")
        return quotas

    def claims(self) -> dict[str, Any]:
        """Give it as `Sessions.mint` takes it."""
        return {
            "quotas": tuple(SessionQuota(one.unit, round(one.limit * MILLION)) for one in self.quotas),
            "ceilings": InputCeilings(self.limits.max_tokens, self.limits.max_prompt_chars),
            "tags": tuple(dict.fromkeys(self.tags)),
        }


def check_prices(narrowing: Narrowing, endpoints: Iterable[str], prices: Container[str]) -> None:
    """Make sure that a quota of usd counts every call of a session.

    Raises:
        BadRequest: an endpoint of the session has no price.
    """
    if any(quota.unit == "usd" for quota in narrowing.quotas) and (unpriced := list_unpriced(endpoints, prices)):
        raise BadRequest(f"quotas: usd counts nothing for {', '.join(unpriced[:MOST_NAMED])}: no price is known")


def describe_narrowing(session: Session) -> dict[str, Any]:
    """Describe what a session was narrowed to, as far as it was; `quotas` stand where what is left of them is."""
    limits = {name: limit for name, limit in session.ceilings._asdict().items() if limit is not None}
    return ({"limits": limits} if limits else {}) | ({"tags": list(session.tags)} if session.tags else {})

"""Plans and tenants, in the form of the file that names them.

A plan bundles what its tenants' callers may do; a tenant is a customer of the proxy with one plan.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict

from proxy.catalog import built_in
from proxy.settings import check_origin
from proxy.tenants.identity import Identity
from proxy.tenants.image_hosts import ImageHosts
from proxy.tenants.strict import Name, Several, Strict
from proxy.tenants.tiers import AppTier, Tier, Tiers
from proxy.tenants.webhook import AlertsWebhook

DEFAULT_PLAN = "default"
DEFAULT_TENANT = "default"
#: The longest that a plan lets a session live.
MAX_SESSION_SECONDS = 30 * 86_400
#: The most of a unit that a quota may give: in millionths, sums of it fit a 64-bit column.
MOST_UNITS = 10**12
MOST_SLOTS = 1_000_000
#: Thresholds of a plan's quotas.
MOST_THRESHOLDS = 10
#: Issuers of one tenant.
MOST_ISSUERS = 20
#: US dollars a second. A day at this price still fits.
MOST_PRICE = 1_000.0

Origin = Annotated[str, AfterValidator(check_origin)]
Unit = Literal["requests", "tokens", "compute_seconds", "usd", "upload_bytes"]
Rate = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$")]


#: What callers may tell fal, beside a priority and a timeout, if their plan lets them.
PassHeader = Literal["x-fal-store-io", "x-fal-no-retry", "x-fal-runner-hint", "x-fal-tags"]


class Uploads(Strict):
    """What may be uploaded. Sizes in bytes; fal forgets a file after `expire_seconds`, or when it likes if null."""

    max_bytes: int = Field(default=10 * 1024 * 1024, ge=1, le=MOST_UNITS)
    bytes_per_day: int | None = Field(default=None, ge=1, le=MOST_UNITS)
    content_types: Several[str] = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
    expire_seconds: int | None = Field(default=7 * 86400, ge=60, le=10 * 365 * 86400)


class RateLimits(Strict):
    """How many calls in a sliding window, for each scope; null for no limit."""

    ip: Rate | None = "600/minute"
    session: Rate | None = "120/minute"
    subject: Rate | None = "120/minute"
    tenant: Rate | None = "3000/minute"


class PollLimits(Strict):
    """The budget of status polls, apart from that of the calls that cost something."""

    ip: Rate | None = None
    session: Rate | None = "50/second"
    subject: Rate | None = None
    tenant: Rate | None = None


class Concurrency(Strict):
    """How many calls and unfinished jobs at once; null for no limit."""

    subject: int | None = Field(default=10, ge=1, le=MOST_SLOTS)
    tenant: int | None = Field(default=100, ge=1, le=MOST_SLOTS)


#: An account that never ends would also never be removed, and visitors can bring any number of addresses.
_NOT_FOR_EVER: JsonDict = {
    "not": {
        "required": ["per", "window"],
        "properties": {"per": {"const": "address"}, "window": {"const": "lifetime"}},
    }
}


class Quota(Strict):
    """How much of a unit in a window of the calendar, UTC, or in all (`lifetime`).

    `per: address` limits all guests of one address together, of IPv6 one /64. It does not limit users. `mode: warn`
    counts and logs, and refuses nothing.
    """

    model_config = ConfigDict(json_schema_extra=_NOT_FOR_EVER)
    per: Literal["subject", "tenant", "address"]
    unit: Unit
    limit: float = Field(gt=0, le=MOST_UNITS)
    window: Literal["minute", "hour", "day", "month", "lifetime"]
    #: Left out where it says nothing new: a version that does not know it could read no plan.
    mode: Literal["enforce", "warn"] = Field(default="enforce", exclude_if="enforce".__eq__)

    @field_validator("window")
    @classmethod
    def _check_window(cls, window: str, info: ValidationInfo) -> str:
        if window == "lifetime" and info.data.get("per") == "address":
            raise ValueError("an address passes from one visitor to the next; choose month or less per address")
        return window


def list_repeated(quotas: Iterable[Quota]) -> list[str]:
    """List a sentence for each quota that differs from another in its limit only: just the lower one would hold."""
    counts = Counter((one.per, one.unit, one.window, one.mode) for one in quotas)
    return [
        f"the quota of {unit} per {per} and {window} with the mode {mode} stands there {count} times; keep one"
        for (per, unit, window, mode), count in counts.items()
        if count > 1
    ]


def _check_thresholds(percents: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(percents)) < len(percents):
        raise ValueError("names a threshold twice; keep one of them")
    return tuple(sorted(percents))


Thresholds = Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], AfterValidator(_check_thresholds)]


class Plan(Strict):
    """A named bundle of limits. Renewals end a session at most `max_session_age_seconds` after it was minted.

    `alerts` are thresholds, in per cent of each quota of the tenants with this plan.
    """

    endpoints: Several[str]
    session_ttl_seconds: int = Field(default=900, ge=10, le=MAX_SESSION_SECONDS)
    max_session_age_seconds: int = Field(default=86_400, ge=10, le=MAX_SESSION_SECONDS)
    rate_limits: RateLimits = RateLimits()
    poll_limits: PollLimits = PollLimits()
    concurrency: Concurrency = Concurrency()
    quotas: tuple[Quota, ...] = ()
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_UNITS)
    max_prompt_chars: int = Field(default=16_000, ge=1, le=MOST_UNITS)
    image_schemes: Several[Literal["http", "https", "data"]] = frozenset({"http", "https", "data"})
    #: Left out, with the next two, if it is not set: a version that does not know it could read no plan.
    image_hosts: ImageHosts | None = Field(default=None, exclude_if=operator.not_)
    strip_metadata: bool = Field(default=False, exclude_if=operator.not_)
    max_pixels: int | None = Field(default=None, ge=1, le=MOST_UNITS, exclude_if=operator.not_)
    max_data_uri_bytes: int = Field(default=10 * 1024 * 1024, ge=1, le=MOST_UNITS)
    uploads: Uploads = Uploads()
    pass_headers: Several[PassHeader] = frozenset()
    #: Left out if there are none, as `image_hosts` is.
    alerts: Thresholds = Field(default=(), max_length=MOST_THRESHOLDS, exclude_if=operator.not_)

    @model_validator(mode="after")
    def _check_max_pixels(self) -> Plan:
        if self.max_pixels is not None and not self.strip_metadata:
            raise ValueError("max_pixels needs strip_metadata: true, which writes the pictures again")
        return self

    @property
    def accounts(self) -> tuple[Quota, ...]:
        """All quotas, with the one that `uploads.bytes_per_day` means."""
        per_day = self.uploads.bytes_per_day
        if per_day is None:
            return self.quotas
        return (*self.quotas, Quota(per="subject", unit="upload_bytes", limit=per_day, window="day"))


class Guests(Strict):
    """Whether a tenant lets in anonymous callers from its own pages, on which plan, and how many an address gets.

    `share` is what all guests together may take of the tenant's leases, streams, rate and upload bytes. With `tiers`,
    a guest has the plan of the tier whose proof it gives, instead of `plan`.
    """

    enabled: bool = False
    plan: Name | None = None
    per_address: Rate | None = "60/hour"
    share: float = Field(default=0.25, gt=0, le=1, strict=True)
    #: Left out if there is none, as `identity` of a tenant is.
    tiers: Tiers = Field(default=(), exclude_if=operator.not_)

    def find_tier(self, proof: str) -> Tier | None:
        """Find the tier of a kind of proof."""
        return next((tier for tier in self.tiers if tier.proof == proof), None)

    @property
    def app_tiers(self) -> tuple[Tier, ...]:
        """The tiers whose proof names the guest's app: only they take guests without a page, and so without Origin."""
        return tuple(tier for tier in self.tiers if isinstance(tier, AppTier))


class Tenant(Strict):
    """A customer of the proxy: an app, a team."""

    id: Name
    plan: Name
    allowed_origins: Several[Origin] = frozenset()
    guests: Guests = Guests()
    #: Left out if there is none: a version that does not know it could read no tenant.
    identity: tuple[Identity, ...] = Field(default=(), max_length=MOST_ISSUERS, exclude_if=operator.not_)
    #: Left out if there is none, as `identity` is.
    alerts_webhook: AlertsWebhook | None = Field(default=None, exclude_if=operator.not_)

    @property
    def guest_plan(self) -> str:
        return self.guests.plan or self.plan


class MoreEndpoint(Strict):
    """An endpoint beyond the built-in catalogue, or the price of one that the proxy knows.

    `schema` is a JSON schema file, relative to the plan file; a built-in endpoint has its own. Without a price, the
    endpoint keeps the one that it has.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)+$", max_length=200)
    schema_: Path | None = Field(default=None, alias="schema")
    price_per_compute_second: float | None = Field(default=None, ge=0, le=MOST_PRICE)


class PlanFile(Strict):
    """The whole of `PROXY_CONFIG`."""

    plans: dict[Name, Plan]
    tenants: tuple[Tenant, ...] = ()
    endpoints: tuple[MoreEndpoint, ...] = ()

    @property
    def prices(self) -> dict[str, float]:
        """The prices that it names, by endpoint."""
        return list_prices(self.endpoints)


def list_prices(endpoints: Iterable[MoreEndpoint]) -> dict[str, float]:
    """List the prices of the endpoints that have one, by endpoint."""
    return {one.id: one.price_per_compute_second for one in endpoints if one.price_per_compute_second is not None}


def default_file() -> PlanFile:
    """Make the plan file that holds without a `PROXY_CONFIG`: one tenant that may call the built-in endpoints."""
    return PlanFile(
        plans={DEFAULT_PLAN: Plan(endpoints=frozenset(built_in().ids()))},
        tenants=(Tenant(id=DEFAULT_TENANT, plan=DEFAULT_PLAN),),
    )

"""Plans and tenants, in the form of the file that names them.

A plan bundles what its tenants' callers may do; a tenant is a customer of the proxy with one plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
)

from proxy.catalog import built_in
from proxy.settings import check_origin

DEFAULT_PLAN = "default"
DEFAULT_TENANT = "default"
#: The longest that a plan lets a session live.
MAX_SESSION_SECONDS = 30 * 86_400
#: The most of a unit that a quota may give: in millionths, sums of it fit a 64-bit column.
MOST_UNITS = 10**12
MOST_SLOTS = 1_000_000
#: US dollars a second. A day at this price still fits.
MOST_PRICE = 1_000.0

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Origin = Annotated[str, AfterValidator(check_origin)]
T = TypeVar("T", bound=str)
#: Written down in order: what was applied is compared with what lies in the database, which another process wrote.
Several = Annotated[frozenset[T], PlainSerializer(sorted, return_type=list[str], when_used="json")]
Rate = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$")]


#: What callers may tell fal, beside a priority and a timeout, if their plan lets them.
PassHeader = Literal["x-fal-store-io", "x-fal-no-retry", "x-fal-runner-hint", "x-fal-tags"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic reads `true` as 1, and a slip of the pen would be a limit.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


class Uploads(_Strict):
    """What may be uploaded. Sizes in bytes; fal forgets a file after `expire_seconds`, or when it likes if null."""

    max_bytes: int = Field(default=10 * 1024 * 1024, ge=1, le=MOST_UNITS)
    bytes_per_day: int | None = Field(default=None, ge=1, le=MOST_UNITS)
    content_types: Several[str] = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
    expire_seconds: int | None = Field(default=7 * 86400, ge=60, le=10 * 365 * 86400)


class RateLimits(_Strict):
    """How many calls in a sliding window, for each scope; null for no limit."""

    ip: Rate | None = "600/minute"
    session: Rate | None = "120/minute"
    subject: Rate | None = "120/minute"
    tenant: Rate | None = "3000/minute"


class PollLimits(_Strict):
    """The budget of status polls, apart from that of the calls that cost something."""

    ip: Rate | None = None
    session: Rate | None = "50/second"
    subject: Rate | None = None
    tenant: Rate | None = None


class Concurrency(_Strict):
    """How many calls and unfinished jobs at once; null for no limit."""

    subject: int | None = Field(default=10, ge=1, le=MOST_SLOTS)
    tenant: int | None = Field(default=100, ge=1, le=MOST_SLOTS)


class Quota(_Strict):
    """How much of a unit in a window of the calendar, UTC."""

    per: Literal["subject", "tenant"]
    unit: Literal["requests", "tokens", "compute_seconds", "usd", "upload_bytes"]
    limit: float = Field(gt=0, le=MOST_UNITS)
    window: Literal["minute", "hour", "day", "month"]


class Plan(_Strict):
    """A named bundle of limits."""

    endpoints: Several[str]
    session_ttl_seconds: int = Field(default=900, ge=10, le=MAX_SESSION_SECONDS)
    rate_limits: RateLimits = RateLimits()
    poll_limits: PollLimits = PollLimits()
    concurrency: Concurrency = Concurrency()
    quotas: tuple[Quota, ...] = ()
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_UNITS)
    max_prompt_chars: int = Field(default=16_000, ge=1, le=MOST_UNITS)
    image_schemes: Several[Literal["http", "https", "data"]] = frozenset({"http", "https", "data"})
    max_data_uri_bytes: int = Field(default=10 * 1024 * 1024, ge=1, le=MOST_UNITS)
    uploads: Uploads = Uploads()
    pass_headers: Several[PassHeader] = frozenset()

    @property
    def accounts(self) -> tuple[Quota, ...]:
        """All quotas, with those that are written in other words."""
        per_day = self.uploads.bytes_per_day
        if per_day is None:
            return self.quotas
        return (*self.quotas, Quota(per="subject", unit="upload_bytes", limit=per_day, window="day"))


class Guests(_Strict):
    """Whether a tenant lets in anonymous callers from its own pages, on which plan, and how many an address gets.

    `share` is what all guests together may take of the tenant's leases, streams, rate and upload bytes.
    """

    enabled: bool = False
    plan: Name | None = None
    per_address: Rate | None = "60/hour"
    share: float = Field(default=0.25, gt=0, le=1, strict=True)


class Tenant(_Strict):
    """A customer of the proxy: an app, a team."""

    id: Name
    plan: Name
    allowed_origins: Several[Origin] = frozenset()
    guests: Guests = Guests()

    @property
    def guest_plan(self) -> str:
        return self.guests.plan or self.plan


class MoreEndpoint(_Strict):
    """An endpoint beyond the built-in catalogue, or the price of a built-in one.

    `schema` is a JSON schema file, relative to the plan file; a built-in endpoint has its own.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)+$", max_length=200)
    schema_: Path | None = Field(default=None, alias="schema")
    price_per_compute_second: float | None = Field(default=None, ge=0, le=MOST_PRICE)


class PlanFile(_Strict):
    """The whole of `PROXY_CONFIG`."""

    plans: dict[Name, Plan]
    tenants: tuple[Tenant, ...] = ()
    endpoints: tuple[MoreEndpoint, ...] = ()


def default_file() -> PlanFile:
    """What holds without a `PROXY_CONFIG`: one tenant that may call the built-in endpoints."""
    return PlanFile(
        plans={DEFAULT_PLAN: Plan(endpoints=frozenset(built_in().ids()))},
        tenants=(Tenant(id=DEFAULT_TENANT, plan=DEFAULT_PLAN),),
    )

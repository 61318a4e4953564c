"""Plans and tenants, and the YAML file that names them.

A plan bundles what its tenants' callers may do; a tenant is a customer of the proxy with one plan. `PROXY_CONFIG`
points at a file of this form; `read_file` checks all of it and reports every problem at once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from proxy.catalog import Catalog, Endpoint, built_in, endpoint_from
from proxy.settings import SettingsError, check_origin

DEFAULT_PLAN = "default"
DEFAULT_TENANT = "default"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Origin = Annotated[str, AfterValidator(check_origin)]
T = TypeVar("T", bound=str)
#: Written down in order: what was applied is compared with what lies in the database, which another process wrote.
Several = Annotated[frozenset[T], PlainSerializer(sorted, return_type=list[str], when_used="json")]
Rate = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Uploads(_Strict):
    """What may be uploaded. Sizes in bytes; fal forgets a file after `expire_seconds`, or when it likes if null."""

    max_bytes: int = Field(default=10 * 1024 * 1024, ge=1)
    bytes_per_day: int | None = Field(default=None, ge=1)
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

    subject: int | None = Field(default=10, ge=1)
    tenant: int | None = Field(default=100, ge=1)


class Quota(_Strict):
    """How much of a unit in a window of the calendar, UTC."""

    per: Literal["subject", "tenant"]
    unit: Literal["requests", "tokens", "compute_seconds", "usd", "upload_bytes"]
    limit: float = Field(gt=0, le=1e12)
    window: Literal["minute", "hour", "day", "month"]


class Plan(_Strict):
    """A named bundle of limits."""

    endpoints: Several[str]
    session_ttl_seconds: int = Field(default=900, ge=10, le=30 * 86400)
    rate_limits: RateLimits = RateLimits()
    poll_limits: PollLimits = PollLimits()
    concurrency: Concurrency = Concurrency()
    quotas: tuple[Quota, ...] = ()
    max_tokens: int | None = Field(default=None, ge=1)
    max_prompt_chars: int = Field(default=16_000, ge=1)
    image_schemes: Several[Literal["http", "https", "data"]] = frozenset({"http", "https", "data"})
    max_data_uri_bytes: int = Field(default=10 * 1024 * 1024, ge=1)
    uploads: Uploads = Uploads()

    @property
    def accounts(self) -> tuple[Quota, ...]:
        """All quotas, with those that are written in other words."""
        per_day = self.uploads.bytes_per_day
        if per_day is None:
            return self.quotas
        return (*self.quotas, Quota(per="subject", unit="upload_bytes", limit=per_day, window="day"))


class Guests(_Strict):
    """Whether a tenant lets in anonymous callers from its own pages, on which plan, and how many an address gets."""

    enabled: bool = False
    plan: Name | None = None
    per_address: Rate | None = "60/hour"


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

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)+$")
    schema_: Path | None = Field(default=None, alias="schema")
    price_per_compute_second: float | None = Field(default=None, ge=0)


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


def read_file(path: Path | None) -> tuple[PlanFile, Catalog]:
    """The plan file and the catalogue that it extends; without a path, the defaults.

    Raises:
        SettingsError: the file is not YAML, breaks the form, or names a plan or an endpoint that does not exist.
    """
    if path is None:
        return default_file(), built_in()
    file = _parsed(path)
    problems: list[str] = []
    catalog = built_in().with_more(_more_endpoints(file, path.parent, problems))
    problems += problems_of(file, catalog)
    if problems:
        raise SettingsError([f"PROXY_CONFIG: {problem}" for problem in problems])
    return file, catalog


def _parsed(path: Path) -> PlanFile:
    try:
        return PlanFile.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingsError([f"PROXY_CONFIG: {path.name} cannot be read ({type(problem).__name__})"]) from problem
    except yaml.YAMLError as problem:
        # Not the mark's own text: it quotes the file, over several lines.
        mark = getattr(problem, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError([f"PROXY_CONFIG: {path.name} is not YAML{place}"]) from problem
    except ValidationError as problem:
        raise SettingsError([_sentence(error) for error in problem.errors()]) from problem


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the file"
    return f"PROXY_CONFIG: {where}: {error['msg'].removeprefix('Value error, ')}"


def _more_endpoints(file: PlanFile, folder: Path, problems: list[str]) -> list[Endpoint]:
    endpoints = []
    for more in file.endpoints:
        known = built_in().get(more.id)
        if more.schema_ is None and known is not None:
            endpoints.append(replace(known, price_per_compute_second=more.price_per_compute_second))
            continue
        if more.schema_ is None:
            problems.append(f"endpoints: {more.id}: is not built in, so it needs a schema")
            continue
        try:
            document = {"id": more.id, "input": json.loads((folder / more.schema_).read_text())}
            endpoints.append(endpoint_from(document, price_per_compute_second=more.price_per_compute_second))
        except (OSError, ValueError) as problem:
            why = str(problem).partition("\n")[0]
            problems.append(f"endpoints: {more.id}: the schema {more.schema_} cannot be used ({why})")
    return endpoints


def problems_of(file: PlanFile, catalog: Catalog) -> list[str]:
    """Names in a plan file that lead nowhere, one sentence each."""
    problems = []
    for name, plan in file.plans.items():
        unknown = sorted(plan.endpoints - set(catalog.ids()))
        problems += [f"plans.{name}.endpoints: {one} is not in the catalogue" for one in unknown]
        if not plan.endpoints:
            problems.append(f"plans.{name}.endpoints: allows nothing; name at least one endpoint")
    for tenant in file.tenants:
        for wanted in {tenant.plan, tenant.guest_plan} - set(file.plans):
            problems.append(f"tenants.{tenant.id}: there is no plan {wanted}")
    seen = [tenant.id for tenant in file.tenants]
    problems += [f"tenants: {one} stands there twice" for one in sorted({id_ for id_ in seen if seen.count(id_) > 1})]
    return problems


def json_schema() -> dict[str, Any]:
    """The JSON schema of the plan file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | PlanFile.model_json_schema()

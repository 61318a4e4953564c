"""The tenant of `dev`, if no plan file says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.catalog import built_in
from proxy.settings import Settings
from proxy.tenants.plans import Guests, Plan, PlanFile, Quota, Tenant
from proxy.tenants.tiers import PowTier

DEMO_TENANT = _PLAN = "demo"
_DAY_SECONDS = 86_400
#: Enough to try things out, and no bill to be afraid of.
FAL_QUOTA = Quota(per="tenant", unit="requests", limit=100, window="day")


@dataclass(frozen=True)
class Demo:
    """What is served if no plan file says otherwise, and what the introduction says about it.

    Attributes:
        upstream: what the proxy stands in front of.
        notes: lines for the developer, each ending with a newline.
    """

    file: PlanFile
    upstream: str
    notes: str = ""


def demo_of_sandbox(settings: Settings, *, proves_work: bool) -> Demo:
    """Make a tenant for trying things out in front of the sandbox, where calls cost nothing."""
    file = _make_file(settings, takes_guests=True, proves_work=proves_work)
    return Demo(file, "the sandbox, no key needed")


def demo_of_fal(settings: Settings, *, takes_guests: bool, proves_work: bool) -> Demo:
    """Make a tenant for trying things out in front of fal, where calls cost money: it has a quota."""
    file = _make_file(settings, takes_guests=takes_guests, proves_work=proves_work, quotas=(FAL_QUOTA,))
    guests = (
        "Guests may call from the page."
        if takes_guests
        else "Guests are off: paste the session into the page's connection panel, or start with --guests."
    )
    limit = f"{FAL_QUOTA.limit:g} {FAL_QUOTA.unit} a {FAL_QUOTA.window}"
    notes = ["", f"Calls cost your key money: at most {limit}; PROXY_CONFIG sets other limits.", guests, ""]
    return Demo(file, "fal", "\n".join(notes))


def _make_file(
    settings: Settings, *, takes_guests: bool, proves_work: bool, quotas: tuple[Quota, ...] = ()
) -> PlanFile:
    """Make a plan file of one tenant. Its guests, if any, call from the proxy's own page and the allowed origins."""
    own = settings.server.own_origin
    origins = {own, own.replace("127.0.0.1", "localhost"), *settings.server.allowed_origins}
    plan = Plan(endpoints=frozenset(built_in().ids()), session_ttl_seconds=_DAY_SECONDS, quotas=quotas)
    # All who use the page are guests, so they may have all there is.
    tiers = (PowTier(proof="pow", plan=_PLAN),) if proves_work else ()
    guests = Guests(enabled=takes_guests, per_address=None, share=1.0, tiers=tiers)
    tenant = Tenant(id=DEMO_TENANT, plan=_PLAN, allowed_origins=frozenset(origins), guests=guests)
    return PlanFile(plans={_PLAN: plan}, tenants=(tenant,))

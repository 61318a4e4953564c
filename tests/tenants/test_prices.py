"""Which plan files lack the prices that their quotas of US dollars need."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.catalog import built_in
from proxy.tenants.directory import Snapshot
from proxy.tenants.plan_file import problems_of
from proxy.tenants.plans import Plan, Tenant

NEXT, COUNTING, OTHER = "fal-ai/llava-next", "fal-ai/llavav15-13b", "fal-ai/llava-llama3-8b-v11"


def plan(*endpoints: str, **quotas: str) -> dict[str, Any]:
    """A plan with quotas of usd: `subject`, `tenant` or `address` to the mode."""
    listed = [{"per": per, "unit": "usd", "limit": 1, "window": "day", "mode": mode} for per, mode in quotas.items()]
    return {"endpoints": list(endpoints), "quotas": listed}


def priced(*endpoints: str, price: float = 0.001) -> list[dict[str, Any]]:
    return [{"id": endpoint, "price_per_compute_second": price} for endpoint in endpoints]


def host(guests: str | None = None, *, enabled: bool = True, tiers: list[dict[str, Any]] | None = None) -> Any:
    return {"id": "acme", "plan": "team", "guests": {"enabled": enabled, "plan": guests, "tiers": tiers or []}}


def missing(*pairs: tuple[str, str]) -> list[str]:
    """The problems of plans, each with the endpoint that it names."""
    return [
        f"plans.{name}.quotas: usd counts nothing for {endpoint}, which has no price; "
        "give it a price_per_compute_second in endpoints"
        for name, endpoint in pairs
    ]


def of_guests(endpoint: str) -> str:
    return f"{endpoint} of the guests' plan visitors"


TEAM, VISITORS = plan(NEXT, tenant="enforce"), plan(COUNTING)
KNOWN = Snapshot(
    plans={"old": Plan.model_validate(plan(OTHER, subject="enforce")), "team": Plan.model_validate(TEAM)},
    tenants={"acme": Tenant.model_validate(host("visitors"))},
    prices={NEXT: 0.5},
)


@pytest.mark.parametrize(
    ("document", "problems"),
    [
        ({"plans": {"p": plan(NEXT, COUNTING)}}, []),
        ({"plans": {"p": plan(NEXT, COUNTING, tenant="enforce", subject="enforce")}}, [("p", NEXT), ("p", COUNTING)]),
        ({"plans": {"p": plan(NEXT, COUNTING, address="enforce")}, "endpoints": priced(NEXT)}, [("p", COUNTING)]),
        ({"plans": {"p": plan(NEXT, tenant="warn")}}, [("p", NEXT)]),
        ({"plans": {"p": plan(NEXT, tenant="enforce")}, "endpoints": priced(NEXT, price=0)}, []),
        ({"plans": {"p": plan(NEXT, tenant="enforce")}, "endpoints": [{"id": NEXT}]}, [("p", NEXT)]),
        ({"plans": {"p": plan(NEXT, tenant="enforce"), "q": {"endpoints": 7}}, "endpoints": "x"}, [("p", NEXT)]),
        (
            {"plans": {"team": TEAM, "visitors": VISITORS}, "tenants": [host("visitors")], "endpoints": priced(NEXT)},
            [("team", of_guests(COUNTING))],
        ),
        (
            {
                "plans": {"team": TEAM, "visitors": VISITORS},
                "tenants": [host(tiers=[{"proof": "none", "plan": "visitors"}])],
            },
            [("team", NEXT), ("team", of_guests(COUNTING))],
        ),
        ({"plans": {"team": TEAM}, "tenants": [host()]}, [("team", NEXT)]),
        (
            {"plans": {"team": TEAM, "visitors": VISITORS}, "tenants": [host("visitors", enabled=False)]},
            [("team", NEXT)],
        ),
        (
            {
                "plans": {"team": plan(NEXT, subject="enforce"), "visitors": VISITORS},
                "tenants": [host("visitors")],
            },
            [("team", NEXT)],
        ),
    ],
)
def test_each_plan_and_endpoint_is_named_once(document: dict[str, Any], problems: list[tuple[str, str]]) -> None:
    found = [one for one in problems_of(document, built_in()) if "usd" in one]
    assert sorted(found) == sorted(missing(*problems))


@pytest.mark.parametrize(
    ("plans", "problems"),
    [
        ({"p": plan(NEXT, tenant="enforce")}, []),
        ({"p": plan(OTHER, tenant="enforce")}, [("p", OTHER)]),
        ({"visitors": plan(COUNTING)}, [("team", of_guests(COUNTING))]),
        ({"visitors": plan(NEXT)}, []),
    ],
)
def test_prices_in_the_database_count_and_its_own_gaps_are_not_reported(
    plans: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    assert problems_of({"plans": plans}, built_in(), KNOWN) == missing(*problems)

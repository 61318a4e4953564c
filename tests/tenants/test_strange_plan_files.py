"""A plan file whose values have the wrong form is refused by name, never with a failure of the program."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.settings import SettingsError
from proxy.tenants.plan_file import read_file
from tests.support.limited import NEXT

DOCUMENT: dict[str, Any] = {
    "plans": {
        "free": {
            "endpoints": [NEXT],
            "quotas": [{"per": "subject", "unit": "usd", "limit": 5, "window": "day", "mode": "warn"}],
            "rate_limits": {"subject": "60/minute"},
            "alerts": [50, 100],
            "image_hosts": {"allow": ["*.example.com"]},
            "strip_metadata": False,
        },
    },
    "tenants": [
        {
            "id": "acme",
            "plan": "free",
            "allowed_origins": ["https://acme.example"],
            "identity": [
                {
                    "issuer": "https://idp.example/",
                    "audience": ["acme"],
                    "jwks_url": "https://idp.example/jwks.json",
                    "algorithms": ["RS256"],
                    "subject_claim": ["a", "sub"],
                    "plans": {"claim": "tier", "map": {"pro": "free"}, "default": "free"},
                    "narrow": {"max_tokens_claim": "tokens"},
                }
            ],
            "guests": {
                "enabled": True,
                "plan": "free",
                "per_address": "60/hour",
                "share": 0.25,
                "tiers": [{"proof": "pow", "difficulty": 50000, "plan": "free"}],
            },
        }
    ],
    "endpoints": [{"id": NEXT, "price_per_compute_second": 0.001}],
}
ODD: tuple[Any, ...] = (None, 0, 10**400, float("inf"), "x", [], {}, [None], [[]], {1: []})


def places(value: Any, *way: Any) -> Iterator[tuple[Any, ...]]:
    yield way
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, *way, name)


def replaced(way: tuple[Any, ...], value: Any) -> Any:
    if not way:
        return value
    document = copy.deepcopy(DOCUMENT)
    holder: Any = document
    for name in way[:-1]:
        holder = holder[name]
    holder[way[-1]] = value
    return document


def test_the_unchanged_document_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    assert read_file(path)[0].tenants[0].id == "acme"


@pytest.mark.parametrize("way", list(places(DOCUMENT)), ids=lambda way: ".".join(map(str, way)) or "all of it")
def test_a_value_of_another_type_is_accepted_or_its_place_is_named(tmp_path: Path, way: tuple[Any, ...]) -> None:
    path = tmp_path / "plans.yaml"
    for value in ODD:
        path.write_text(yaml.safe_dump(replaced(way, value)))
        try:
            read_file(path)
        except SettingsError as refusal:
            assert refusal.problems, value
            assert all(problem.startswith("PROXY_CONFIG: ") for problem in refusal.problems), refusal.problems

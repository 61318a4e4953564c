"""A plan file whose values have the wrong form is refused by name, never with a failure of the program."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.settings import SettingsError
from proxy.tenants.plan_file import read_file
from proxy.tenants.plan_yaml import MOST_VALUES
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
            "concurrency": {"subject": 3},
            "uploads": {"max_bytes": 1000, "content_types": ["image/png"]},
            "pass_headers": ["x-fal-tags"],
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
                "tiers": [
                    {"proof": "pow", "difficulty": 50000, "plan": "free"},
                    {"proof": "turnstile", "secret_env": "ACME_SECRET", "min_score": 0.5, "plan": "free"},
                    {"proof": "app_check", "project": "123456", "apps": ["1:2"], "plan": "free"},
                ],
            },
            "alerts_webhook": {"url": "https://acme.example/hooks", "secret_file": "/run/secrets/hook"},
        }
    ],
    "endpoints": [{"id": NEXT, "price_per_compute_second": 0.001}],
}
ODD: tuple[Any, ...] = (None, 0, 10**400, float("inf"), "x", [], {}, [None], [[]], {1: []}, ["x"] * 1001, True)
#: A plan file has none of them.
PYTHONS_WORDS = re.compile(r"dictionary|instance of|tuple|frozenset|constrained|\[key\]|<class", re.IGNORECASE)


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


def name_place(way: tuple[Any, ...]) -> str:
    return ".".join(map(str, way)) or "all of it"


#: Each place is read with many values: the fast loop has every eighth.
WAYS = [
    pytest.param(way, id=name_place(way), marks=() if number % 8 == 0 else pytest.mark.slow)
    for number, way in enumerate(places(DOCUMENT))
]


@pytest.mark.parametrize("way", WAYS)
def test_a_value_of_another_type_is_accepted_or_its_place_is_named(tmp_path: Path, way: tuple[Any, ...]) -> None:
    path = tmp_path / "plans.yaml"
    for value in ODD:
        path.write_text(yaml.safe_dump(replaced(way, value)))
        try:
            read_file(path)
        except SettingsError as refusal:
            assert refusal.problems, value
            assert all(problem.startswith("PROXY_CONFIG: ") for problem in refusal.problems), refusal.problems
            assert not [problem for problem in refusal.problems if PYTHONS_WORDS.search(problem)]


#: Twelve lines that would be 10^10 values.
GROWING = "a: &a [x]\n" + "".join(
    f"b{at}: &b{at} [{', '.join([f'*b{at - 1}' if at else '*a'] * 10)}]\n" for at in range(11)
)
LARGE: dict[str, tuple[str, str]] = {
    "aliases of aliases": (GROWING, f"more than {MOST_VALUES} values when each alias"),
    "aliases in merges": (
        "a: &a {x: 1}\n"
        + "".join(f"b{at}: &b{at} {{<<: [{', '.join([f'*b{at - 1}' if at else '*a'] * 10)}]}}\n" for at in range(11)),
        f"more than {MOST_VALUES} values when each alias",
    ),
    "a mapping in itself": ("plans: &p {free: *p}", f"more than {MOST_VALUES} values when each alias"),
    "a list in itself": ("plans: &p [*p]", f"more than {MOST_VALUES} values when each alias"),
    "a zero byte": ("plans: {a\0b: 1}", "is not YAML"),
    "deep lists": ("plans: " + "[" * 3000 + "]" * 3000, "is nested too deeply"),
    "deep mappings": ("plans: " + "{a: " * 3000 + "1" + "}" * 3000, "is nested too deeply"),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_file_that_grows_or_cannot_be_made_is_refused(tmp_path: Path, case: str) -> None:
    text, problem = LARGE[case]
    path = tmp_path / "plans.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert len(caught.value.problems) == 1 and problem in caught.value.problems[0]


def test_a_plan_may_be_an_alias_of_another(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(f"plans: {{free: &free {{endpoints: [{NEXT}]}}, paid: {{<<: *free, max_tokens: 64}}, more: *free}}")
    plans = read_file(path)[0].plans
    assert plans["more"] == plans["free"] and plans["paid"].endpoints == {NEXT} and plans["paid"].max_tokens == 64

"""A plan file whose values have the wrong form is refused by name, never with a failure of the program."""

from __future__ import annotations

import copy
import json
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
    "a zero byte": ("plans: {a\0b: 1}", "has the character U+0000, which YAML does not allow; save it as UTF-8"),
    "an escape of terminals": ("plans: \x1b[0m", "has the character U+001B"),
    "a tab before a key": ("plans:\n\tfree: 1", "has a tab at line 2, column 1; YAML indents with spaces"),
    "a tab before a value": ("plans:\n  free:\t{a: 1}", "has a tab at line 2, column 8; YAML indents"),
    "two documents": ("plans: {}\n---\nplans: {}", "has a second document at line 2, column 1 (---); keep one"),
    "a list that says it is a number": ("plans: !!int [1]", "is not YAML at line 1, column 8"),
    "an empty document more": ("plans: {}\n---\n", "has a second document at line 2, column 1 (---); keep one"),
    "an alias without its anchor": ("plans: *free", "line 1, column 8 (found undefined alias 'free')"),
    "a tag of another program": ("plans: !env X", "could not determine a constructor for the tag '!env'"),
    "a brace that is not closed": ("plans: {free: 1", "(expected ',' or '}', but got '<stream end>')"),
    "a merge with no mapping": ("plans: {<<: 1}", "(expected a mapping or list of mappings for merging"),
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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_is_refused_with_what_to_do(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "plans.yaml"
    path.write_bytes("# \u00fc\nplans: {}".encode(encoding))
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert len(caught.value.problems) == 1 and "UTF-8" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        *[(key, "true or false") for key in ("no", "on")],
        *[(key, "a number") for key in ("7", "1.5")],
        *[("~", "nothing"), ("2024-01-01", "a date")],
        *[(key, None) for key in ("1e3", "'no'")],
    ],
)
def test_a_plan_whose_name_yaml_reads_as_something_else_is_named(tmp_path: Path, key: str, kind: str | None) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(f"plans: {{{key}: {{endpoints: [{NEXT}]}}}}")
    if kind is None:
        assert list(read_file(path)[0].plans) == [key.strip("'")]
        return
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert caught.value.problems == [f"PROXY_CONFIG: plans.{key}: YAML reads this key as {kind}; put it in quotes"]


def test_a_name_that_yaml_reads_as_a_number_is_to_be_put_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(f"plans: {{free: {{endpoints: [{NEXT}]}}}}\ntenants: [{{id: 7, plan: free}}]")
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert caught.value.problems[0].startswith("PROXY_CONFIG: tenants.0.id: Input should be text; put it in quotes")


@pytest.mark.parametrize("start", ["", "\ufeff", "\r\n\t "])
def test_a_file_may_be_json_as_programs_write_it(tmp_path: Path, start: str) -> None:
    """With tabs, and escapes of characters in two halves."""
    document = {"plans": {"free": {"endpoints": [NEXT], "image_hosts": {"allow": ["*.example.com"]}}}}
    path = tmp_path / "plans.json"
    path.write_text(start + json.dumps(document, indent="\t").replace("/", "\\/").replace("\n", "\r\n"))
    assert list(read_file(path)[0].plans) == ["free"]
    path.write_text(json.dumps({"plans": {"\U0001f600": {"endpoints": [NEXT]}}}))
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert caught.value.problems[0].startswith("PROXY_CONFIG: plans.\U0001f600: String should match pattern")


def test_a_key_set_that_is_deep_is_named_by_the_way_to_it(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    identity = document["tenants"][0]["identity"][0]
    del identity["jwks_url"]
    identity["jwks"] = {"keys": [], "deep": "here"}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(document).replace('"here"', "[" * 500 + "]" * 500))
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    (problem,) = [one for one in caught.value.problems if "tenants.0.identity.0.jwks.deep." in one]
    assert problem.endswith("…: is nested too deeply") and len(problem) < 200, problem


def test_a_key_that_stands_twice_in_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    path.write_text(f'{{"plans": {{"free": {{"endpoints": ["{NEXT}"]}},\n"free": {{"endpoints": ["{NEXT}"]}}}}}}')
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert caught.value.problems == ["PROXY_CONFIG: plans.free: stands at line 1 and again at line 2; keep one"]


def test_a_key_that_stands_many_times_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text("plans:\n" + f"  free: {{endpoints: [{NEXT}]}}\n" * 100)
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert caught.value.problems == ["PROXY_CONFIG: plans.free: stands at line 2 and again at line 3; keep one"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_schema_may_be_in_any_encoding_of_json(tmp_path: Path, encoding: str) -> None:
    """As editors on Windows save it."""
    schema = {"type": "object", "properties": {"text": {"type": "string", "title": "\u00fcber"}}}
    (tmp_path / "schema.json").write_bytes(json.dumps(schema, ensure_ascii=False).encode(encoding))
    path = tmp_path / "plans.yaml"
    path.write_text("plans: {free: {endpoints: [acme/own]}}\nendpoints: [{id: acme/own, schema: schema.json}]")
    assert "acme/own" in read_file(path)[1]

"""How a dry run describes each kind of change."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.stores.audit import Change
from proxy.tenants.plan_diff import describe_dry_run, format_changes


def list_fields(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    (change,) = describe_dry_run([Change("plan.change", "", "p", before=before, after=after)])["changes"]
    fields: list[dict[str, Any]] = change["fields"]
    return fields


@pytest.mark.parametrize(
    ("before", "after", "fields"),
    [
        ({"a": 1}, {"a": 2}, [{"field": "a", "from": 1, "to": 2}]),
        ({"a": None}, {"a": 2}, [{"field": "a", "from": None, "to": 2}]),
        ({"a": 1}, {"a": True}, []),
        ({"a": 1, "b": 2}, {"b": 2}, [{"field": "a", "from": 1}]),
        ({}, {"a": 0}, [{"field": "a", "to": 0}]),
        ({"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "c": 1}}, [{"field": "a.b", "from": 1, "to": 2}]),
        ({}, {"a": {"b": 1}}, [{"field": "a.b", "to": 1}]),
        ({"a": {"b": 1}}, {}, [{"field": "a", "from": {"b": 1}}]),
        ({"a": ["x", "y"]}, {"a": ["y", "z"]}, [{"field": "a", "from": "x"}, {"field": "a", "to": "z"}]),
        ({"a": ["x", "x"]}, {"a": ["x"]}, [{"field": "a", "from": "x"}]),
        ({"a": []}, {"a": [{"b": 1}]}, [{"field": "a", "to": {"b": 1}}]),
        ({"a": [1]}, {"a": [True]}, [{"field": "a", "from": 1}, {"field": "a", "to": True}]),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, [{"field": "a", "from": ["x", "y"], "to": ["y", "x"]}]),
        ({"a": {"b": 1}}, {"a": [1]}, [{"field": "a", "from": {"b": 1}, "to": [1]}]),
    ],
)
def test_each_field_that_differs_is_named(
    before: dict[str, Any], after: dict[str, Any], fields: list[dict[str, Any]]
) -> None:
    assert list_fields(before, after) == fields


def test_a_created_plan_or_tenant_is_described_without_its_defaults() -> None:
    guests = {"enabled": True, "plan": None, "per_address": "60/hour", "share": 0.25}
    document = {"id": "acme", "plan": "free", "allowed_origins": [], "guests": guests}
    (change,) = describe_dry_run([Change("tenant.create", "acme", "acme", after=document)])["changes"]
    assert (change["action"], change["kind"], change["id"]) == ("create", "tenant", "acme")
    assert {"field": "plan", "to": "free"} in change["fields"]
    assert {"field": "guests.enabled", "to": True} in change["fields"]
    assert not [one for one in change["fields"] if one["field"] in ("id", "allowed_origins")]


def test_a_secret_in_a_url_is_not_described() -> None:
    before = {"url": "https://user:hunter22@idp.example/", "hooks": ["https://a.example/?token=abcdef"]}
    after = {"url": "https://idp.example/?signature=0123456789", "hooks": [{"url": "https://u:hunter23@b.example/"}]}
    fields = list_fields(before, after)
    assert len(fields) == 3
    text = repr(fields) + format_changes([{"action": "change", "kind": "plan", "id": "p", "fields": fields}])
    assert not [secret for secret in ("hunter22", "hunter23", "abcdef", "0123456789") if secret in text]
    assert "idp.example" in text


def test_a_line_has_no_control_character() -> None:
    fields = list_fields({"claim": "a"}, {"claim": "\x1b[2J\u202e\n"})
    text = format_changes([{"action": "change", "kind": "plan", "id": "p", "fields": fields}])
    assert text.isascii() and text.replace("\n", "").isprintable() and text.count("\n") == 1

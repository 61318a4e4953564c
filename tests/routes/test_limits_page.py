"""docs/limits.md and the published schema match the program."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import pytest
import yaml

from proxy.calls.idempotency import KEPT_SECONDS
from proxy.jobs.reconciler import QUIET_SECONDS
from proxy.limits.leases import LEASE_SECONDS
from proxy.limits.quotas import COMPUTE_SECONDS_CEILING, JOB_SECONDS
from proxy.limits.usage import DEFAULT_DAYS, UNITS
from proxy.tenants.plan_file import json_schema, read_file
from proxy.tenants.plans import Plan, PlanFile, Quota

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "limits.md").read_text()
SCHEMA = DOCS / "plan-file.schema.json"
(EXAMPLE,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)


def test_the_published_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema()


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_command_prints_the_same_schema_in_every_process(seed: str) -> None:
    line = [sys.executable, "-m", "proxy", "tenants", "schema"]
    environ = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": seed}
    assert subprocess.run(line, env=environ, capture_output=True, text=True, check=True).stdout == SCHEMA.read_text()


def test_the_example_sets_every_field_of_a_plan_file(tmp_path: Path) -> None:
    (tmp_path / "plans.yaml").write_text(EXAMPLE)
    file, catalog = read_file(tmp_path / "plans.yaml")
    document = yaml.safe_load(EXAMPLE)
    assert set(document["plans"]["team"]) == set(Plan.model_fields)
    assert file.plans["team"].concurrency.subject == 2 and file.tenants[0].guests.per_address == "20/hour"
    assert catalog.prices == {"fal-ai/llava-next": 0.0006, "fal-ai/llavav15-13b": 0.0004}
    assert jsonschema_rs.is_valid(json.loads(SCHEMA.read_text()), document)


PER_IP = {"per": "ip", "unit": "requests", "limit": 1, "window": "day"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"plans": {"team": {"endpoints": ["a/b"], "rate_limits": {"ip": "60 a minute"}}}},
        {"plans": {"team": {"endpoints": ["a/b"], "quotas": [PER_IP]}}},
        {"plans": {"team": {"endpoints": ["a/b"], "quotas": [{**PER_IP, "per": "address", "window": "lifetime"}]}}},
        {"plans": {"team": {"endpoints": ["a/b"], "concurrency": {"subject": 0}}}},
        {"plans": {"team": {"endpoint": ["a/b"]}}},
        {"plans": {}, "tenants": [{"id": "No Name", "plan": "team"}]},
        *(
            {"plans": {}, "tenants": [{"id": "a", "plan": "b", "guests": {"share": one}}]}
            for one in (0, 1.01, True, "1")
        ),
        {"tenants": []},
    ],
)
def test_the_schema_refuses_what_the_program_refuses(wrong: dict[str, Any]) -> None:
    assert not jsonschema_rs.is_valid(json.loads(SCHEMA.read_text()), wrong)
    with pytest.raises(ValueError, match="validation error"):
        PlanFile.model_validate(wrong)


def test_every_unit_and_window_is_on_the_page() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.M)
    assert set(UNITS) == set(get_args(Quota.model_fields["unit"].annotation)) <= set(rows)
    for window in get_args(Quota.model_fields["window"].annotation):
        assert f"`{window}`" in PAGE


def test_the_figures_of_the_page_are_those_of_the_program() -> None:
    said = " ".join(PAGE.split())
    assert "without news for ten minutes" in said and LEASE_SECONDS == 600 > QUIET_SECONDS
    assert "| `compute_seconds` | 60 |" in said and COMPUTE_SECONDS_CEILING == 60
    assert "more than a day after the last news" in said and JOB_SECONDS == 86_400
    assert "kept for 24 hours" in said and KEPT_SECONDS == 86_400
    assert "the last 30 days by default" in said and DEFAULT_DAYS == 30

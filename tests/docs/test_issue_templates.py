"""The forms of new issues are valid for GitHub, and send vulnerabilities elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / ".github" / "ISSUE_TEMPLATE"
FORMS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml")) if path.stem != "config"}
KINDS = {"markdown", "input", "textarea", "dropdown", "checkboxes"}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_a_form_has_what_github_requires(form: dict[str, Any]) -> None:
    assert form["name"] and form["description"] and set(form) <= {"name", "description", "labels", "body"}
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in form["body"]} <= KINDS and fields
    assert all(part["attributes"]["label"] for part in fields)
    assert len({part["id"] for part in fields}) == len(fields)
    assert any(part.get("validations", {}).get("required") for part in fields)


def test_an_issue_cannot_be_opened_without_a_form() -> None:
    assert set(FORMS) == {"bug", "feature"}
    assert yaml.safe_load((FOLDER / "config.yml").read_text()) == {"blank_issues_enabled": False}


def test_the_form_for_faults_links_the_security_policy_first() -> None:
    first = FORMS["bug"]["body"][0]
    assert first["type"] == "markdown" and "(../security/policy)" in first["attributes"]["value"]

"""Numbers of a plan file that YAML 1.1 reads as others than people do."""

from __future__ import annotations

import pytest

from proxy.tenants.plan_yaml import parse_document, parse_text


@pytest.mark.parametrize("number", ["010", "0_7", "-017", "1:30", "1:30.5"])
def test_a_number_in_an_old_base_is_a_problem(number: str) -> None:
    text = f"plans: {{free: {{quotas: [{{limit: {number}}}]}}}}"
    _, problems = parse_document(text)
    assert len(problems) == 1 and problems[0].startswith(f"plans.free.quotas.0.limit: YAML reads {number} ")
    with pytest.raises(ValueError, match="base 8 or 60"):
        parse_text(text)


@pytest.mark.parametrize(
    "value", ["0", "10", "-1", "0.5", "1_000", "1e3", "0x10", '"010"', '"1:30"', "089", "2026-01-01"]
)
def test_numbers_and_texts_with_one_reading_are_no_problem(value: str) -> None:
    assert parse_document(f"limit: {value}")[1] == []

"""Statements: months, exact amounts, and prices."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from proxy.errors import BadRequest
from proxy.limits.statements import Line, Statement, parse_month, to_decimal
from proxy.limits.usage import Period

NOW = datetime(2026, 2, 14, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-02", date(2026, 2, 1), date(2026, 2, 28)),
        ("2024-02", date(2024, 2, 1), date(2024, 2, 29)),
        ("2025-12", date(2025, 12, 1), date(2025, 12, 31)),
        ("0001-01", date(1, 1, 1), date(1, 1, 31)),
    ],
)
def test_a_month_has_its_days(text: str, first: date, last: date) -> None:
    assert parse_month(text, NOW) == Period(first, last)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026",
        "2026-1",
        "2026-00",
        "2026-13",
        "0000-01",
        "2026-02-01",
        "202602",
        "2026-02\n",
        "２０２６-02",
        "9" * 5000,
    ],
)
def test_a_malformed_month_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="must be a month such as 2026-01"):
        parse_month(text, NOW)


@pytest.mark.parametrize("text", ["2026-03", "9999-12"])
def test_a_month_that_has_not_begun_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=f"{text} has not begun"):
        parse_month(text, NOW)


def test_a_month_begins_at_its_first_moment_in_utc() -> None:
    begin = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    assert parse_month("2026-03", begin).first == date(2026, 3, 1)
    with pytest.raises(BadRequest):
        parse_month("2026-03", begin - 1)


@pytest.mark.parametrize(
    "millionths", [0, 1, 10, -1, -999_999, -(10**6), 999_999, 10**6, 1_500_000, 2**63 + 1, 10**24 + 1]
)
def test_amounts_are_exact(millionths: int) -> None:
    text = to_decimal(millionths)
    assert Decimal(text).scaleb(6) == millionths and not text.endswith(".")


def test_the_price_is_the_mean_of_the_month() -> None:
    # A minute at a cent a second, and a minute at two.
    line = Line(2, {"compute_seconds": 120_000_000, "usd": 1_800_000})
    assert line.describe()["usd_per_compute_second"] == "0.015"
    # Rounded to the nearest millionth.
    assert Line(1, {"compute_seconds": 3_000_000, "usd": 2}).describe()["usd_per_compute_second"] == "0.000001"
    assert Line(1, {"upload_bytes": 5}).describe()["usd_per_compute_second"] is None


def test_the_total_is_the_sum_of_the_lines() -> None:
    lines = {"a": Line(2, {"usd": 2**62 + 7, "requests": 2}), "b": Line(1, {"usd": 2**62 + 1})}
    total = Statement("acme", parse_month("2026-01", NOW), True, lines, {}).total
    assert (total.calls, total.used["usd"], total.used["requests"]) == (3, 2**63 + 8, 2)

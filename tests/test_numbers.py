"""Numbers from outside: what is read, and what is not."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.clock import to_iso
from proxy.numbers import MOST, number_in_range, parse_decimal, parse_whole


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), ("0099", 99), ("100", 100)])
def test_a_whole_number_is_read(text: str, number: int) -> None:
    assert parse_whole(text, 100) == number


@pytest.mark.parametrize(
    "text",
    ["", "²", "١", "１", "+1", "-1", " 1", "1 ", "1\n", "1_0", "0x1", "1.0", "1e1", "101", "9" * 5000, "0" * 5000],
)
def test_text_that_is_no_whole_number_is_none(text: str) -> None:
    assert parse_whole(text, 100) is None


def test_a_whole_number_below_the_least_is_none() -> None:
    assert parse_whole("1", 5, least=1) == 1 and parse_whole("0", 5, least=1) is None


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("1.5", 1.5), ("007.250", 7.25), ("1e-05", 1e-05), ("1e+01", 10)]
)
def test_a_decimal_number_is_read(text: str, number: float) -> None:
    assert parse_decimal(text, 100) == number


@pytest.mark.parametrize(
    "text",
    ["", "nan", "inf", "Infinity", "-1", "+1", " 1", "1_0", "１", ".5", "1.", "1e400", "1e999", "101", "9" * 400],
)
def test_text_that_is_no_decimal_number_is_none(text: str) -> None:
    assert parse_decimal(text, 100) is None


@pytest.mark.parametrize(
    "value", [None, True, False, "1", [1], {}, -1, -0.001, 100.5, math.inf, -math.inf, math.nan, 10**400]
)
def test_values_that_are_no_number_of_the_range_are_none(value: object) -> None:
    assert number_in_range(value, 100) is None


@given(st.text(st.sampled_from("0123456789²１_+-. e"), max_size=25))
def test_any_text_is_read_as_python_reads_it_or_not_at_all(text: str) -> None:
    whole, decimal = parse_whole(text, MOST), parse_decimal(text, MOST)
    assert whole is None or (whole == int(text) and text.isascii() and text.isdigit())
    assert decimal is None or decimal == float(text)


def test_a_moment_behind_the_calendar_is_written_as_its_last_second() -> None:
    """A float has no room for the microseconds of a second so late: it rounds them to the next year."""
    behind = datetime.max.replace(tzinfo=UTC).timestamp()
    assert to_iso(behind) == to_iso(4e11) == "9999-12-31T23:59:59+00:00"

"""CSV that spreadsheets read and do not run."""

from __future__ import annotations

import csv
import io

import pytest

from proxy.spreadsheets import to_csv


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_cells_come_back_as_they_were() -> None:
    rows = [{"a": 'one, "two"\nthree', "b": 4}, {"b": None, "c": "not asked for"}]
    assert read(to_csv(("a", "b"), rows)) == [["a", "b"], ['one, "two"\nthree', "4"], ["", ""]]
    assert to_csv(("a",), []) == "a\r\n"


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_text_is_no_formula(sign: str) -> None:
    text = f"{sign}HYPERLINK(1)"
    assert read(to_csv(("a", "b"), [{"a": text, "b": -1}])) == [["a", "b"], [f"'{text}", "-1"]]

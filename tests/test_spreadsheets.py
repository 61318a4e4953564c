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


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "＝", "＋", "－", "＠"])
@pytest.mark.parametrize("before", ["x;", "x|", "x\t", "x\r\n", "x; ", 'x;"', '"', " ", ";"])
def test_a_text_is_no_formula_where_a_spreadsheet_splits_it(before: str, sign: str) -> None:
    written = to_csv(("a", "b"), [{"a": 1, "b": f"{before}{sign}1+1;{sign}2"}])
    assert read(written) == [["a", "b"], ["1", f"{before}'{sign}1+1;'{sign}2"]]


@pytest.mark.parametrize("text", ["alice@acme.example", "a-b", "1+1=2", "tier:gold; region=eu", "x; y", "'", ""])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert read(to_csv(("a", "b"), [{"a": 1, "b": text}]))[1] == ["1", text]

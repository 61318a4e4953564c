"""Tables as CSV (RFC 4180), for people who open them in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

MEDIA_TYPE = "text/csv; charset=utf-8; header=present"
#: What makes a cell a formula where it begins with it, in half and full width.
_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
#: A formula at the beginning of a text, or behind what some spreadsheets split it at: a tab, the end of a line, or, in
#: countries with a decimal comma, a semicolon. They drop spaces and quotes before it.
_FORMULA = re.compile(rf"""(^|[;|\t\r\n])([\s"]*)(?=[{_SIGNS}])|^(?=[\t\r\n])""")


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Write a header and rows. What a row lacks, or has as None, is an empty cell.

    What a spreadsheet would run as a formula gets an apostrophe in front of it (OWASP, "CSV Injection").
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_to_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _to_cell(value: object) -> str:
    text = "" if value is None else str(value)
    return _FORMULA.sub(r"\1\2'", text) if isinstance(value, str) else text

"""Parts of a page of the docs, as a benchmark writes them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def write_paragraph(text: str) -> str:
    """A paragraph as the other pages have it."""
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False) + "\n"


def write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---:" if cell.replace(",", "").replace(".", "").lstrip("-").isdigit() else "---" for cell in rows[0]]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def write_number(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

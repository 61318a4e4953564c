"""The section of docs/performance.md about a million jobs: `python -m tests.bench.million_page`.

Reads build/bench-million.json, as `python -m tests.bench.million` leaves it, and leaves the other sections as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.goals import goals_of_million, rows_of
from tests.bench.markdown import write_paragraph, write_table
from tests.bench.processes import ROOT
from tests.bench.rounds import ratio

Report = Mapping[str, Any]
#: The heading of the section, and of the one behind it.
MILLION, NEXT = "## A million jobs", "## What saves work"
TITLES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def describe_million(million: Report) -> str:
    """The section about a million jobs."""
    databases: Report = million["databases"]
    titles = [TITLES[kind] for kind in databases]
    shares = [
        f"{ratio(full, empty, 'per_second'):.2f} for a {workload} on {title}"
        for title, found in zip(titles, databases.values(), strict=True)
        for workload, turns in found["results"].items()
        for empty, full in [turns.values()]
    ]
    where = million["machine"]
    words = (
        f"""A database has {million["jobs"]:,} jobs and {million["rows"]:,} sums of usage in 90 days, nine of ten of one
        tenant with 20,000 users, the others of 50 tenants. The table shows the milliseconds from a request to its
        answer. `{{80 days}}` is a period. Measured on {where["cores"]} cores of {where["cpu"]}, Python
        {where["python"].split()[0]}, load {where["load_before"]} before.""",
        f"Of the calls a second on an empty database, it answers {', '.join(shares)}." if shares else "",
    )
    paths = next(iter(databases.values()))["pages"]
    rows = [[f"`{path}`", *(f"{found['pages'][path]:,.0f}" for found in databases.values())] for path in paths]
    goals = write_table(["figure", "goal", "reached", "met"], rows_of(list(goals_of_million(databases.values()))))
    table = write_table(["first page of", *titles], rows)
    return f"{MILLION}\n\n{write_paragraph(' '.join(words))}\n{goals}\n\n{table}\n"


def replace_section(written: str, section: str) -> str:
    """Put a section in the place of the one with its heading, or before the one about what saves work."""
    heading = section.partition("\n")[0]
    before, found, rest = written.partition(f"{heading}\n")
    if not found:
        before, next_heading, rest = written.partition(NEXT)
        return f"{before}{section}\n{next_heading}{rest}"
    return f"{before}{section}\n## {rest.partition('## ')[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.million_page", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--input", type=Path, default=ROOT / "build" / "bench-million.json")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    section = describe_million(json.loads(options.input.read_text()))
    options.output.write_text(replace_section(options.output.read_text(), section))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()

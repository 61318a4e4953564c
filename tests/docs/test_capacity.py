"""docs/capacity.md quotes figures of other pages correctly, and one of its own is measured here."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import yaml

from proxy.pictures.cleaner import ONE_PICTURE
from proxy.settings import DEFAULTS
from tests.bench.retention import fill
from tests.deploy.containers import ROOT
from tests.docs.test_docs import page, rows, section

FIGURES = rows(section(page("capacity"), "What one process takes"))
OTHERS = [(cells[0], cells[1], link[1]) for cells in FIGURES if (link := re.search(r"\(([a-z]+)\.md#", cells[2]))]
JOBS = 5000


@pytest.mark.parametrize(("what", "figure", "source"), OTHERS, ids=[what for what, _, _ in OTHERS])
def test_a_quoted_figure_is_on_the_page_that_it_comes_from(what: str, figure: str, source: str) -> None:
    numbers = re.findall(r"\d[\d,.]*\d|\d", figure)
    text = page(source)
    assert numbers and [number for number in numbers if number not in text] == [], (
        f"docs/{source}.md was measured again"
    )


def test_the_memory_of_a_process_at_its_limits_adds_up() -> None:
    text = section(page("capacity"), "Memory")
    worked, stream, stated = (
        int(number)
        for pattern in (r"(\d+) MiB after some work", r"(\d+) KiB for each", r"needs about (\d+) MiB")
        for number in re.findall(pattern, text)
    )
    streams, bodies = (int(DEFAULTS[name]) for name in ("PROXY_MAX_STREAMS", "PROXY_MAX_BODY_MEMORY"))
    assert worked + stream * streams / 1024 + bodies / 2**20 == pytest.approx(stated, rel=0.05)
    chart = yaml.safe_load((ROOT / "helm" / "values.yaml").read_text())
    limit = chart["resources"]["limits"]["memory"]
    assert f"The chart gives it {limit}," in text and int(limit.removesuffix("Gi")) * 1024 > stated
    assert f"{ONE_PICTURE.memory_bytes // 2**20} MiB for each of `PROXY_PICTURE_PROCESSES`" in text


def size_with(path: Path, jobs: int) -> int:
    asyncio.run(fill(f"sqlite:///{path}", jobs))
    return path.stat().st_size


def test_a_job_takes_as_much_of_the_database_as_the_page_says(tmp_path: Path) -> None:
    (figure,) = [re.findall(r"[\d.]+", cells[1])[0] for cells in FIGURES if cells[0].startswith("the database")]
    taken = size_with(tmp_path / "many.db", JOBS) - size_with(tmp_path / "few.db", 1)
    assert taken / JOBS / 1000 == pytest.approx(float(figure), rel=0.2)

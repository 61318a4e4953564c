"""What the benchmark's proxies start with."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.tenants.plan_file import read_file
from tests.bench.contestants import ALLOCATOR, EVERYTHING_ON, LIMITS_OFF, PLAN_FILE
from tests.bench.processes import ROOT


@pytest.mark.parametrize("limits", [EVERYTHING_ON, LIMITS_OFF], ids=["everything on", "limits off"])
def test_the_proxy_accepts_the_plan_files_of_the_benchmark(tmp_path: Path, limits: str) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(PLAN_FILE.format(limits=limits, identity="[]"))
    plans, _ = read_file(path)
    assert list(plans.plans) == ["bench"]


def test_the_allocator_is_set_as_in_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert all(f"{name}={value}" in dockerfile for name, value in ALLOCATOR.items())

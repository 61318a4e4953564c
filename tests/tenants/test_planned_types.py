"""Types of files in a plan file: one that no file can have is named."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.catalog import built_in
from proxy.tenants.plan_file import problems_of


def problems(*types: str) -> list[str]:
    plan: dict[str, Any] = {"endpoints": ["fal-ai/llava-next"], "uploads": {"content_types": list(types)}}
    return problems_of({"plans": {"free": plan}, "tenants": []}, built_in())


@pytest.mark.parametrize("name", ["png", "image/*", "*/*", "text/plain; charset=utf-8", ".png", "image/", "", "a/b/c"])
def test_a_name_that_is_no_media_type_is_a_problem(name: str) -> None:
    (problem,) = problems("image/png", name)
    assert problem.startswith(f"plans.free.uploads.content_types: {name} is no media type")


@pytest.mark.parametrize("name", ["image/jpg", "IMAGE/PNG", "image/svg+xml", "application/vnd.ms-excel", "audio/x-m4a"])
def test_a_media_type_is_no_problem(name: str) -> None:
    assert problems(name) == []

"""An input as the gate checks it."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.catalog import built_in
from proxy.errors import InvalidInput
from proxy.limits.inputs import check_input
from proxy.tenants.plans import Plan
from tests.support.images import PIXEL
from tests.support.limited import NEXT

OWN_FILES = "https://v3.fal.media"
FREE = Plan(endpoints=frozenset(built_in().ids()))


def checked(body: dict[str, Any], limits: Plan = FREE, endpoint: str = NEXT) -> dict[str, Any]:
    known = built_in().get(endpoint)
    assert known is not None
    return check_input(known, limits, {"image_url": PIXEL, "prompt": "?", **body}, own_files=OWN_FILES)


def problems(body: dict[str, Any], limits: Plan = FREE) -> list[tuple[list[str | int], str]]:
    with pytest.raises(InvalidInput) as refused:
        checked(body, limits)
    return [(one["loc"], one["type"]) for one in refused.value.details]


def each(text: str) -> list[str]:
    return text.split()

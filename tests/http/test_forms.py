"""Our own forms: what a client means counts, and what is wrong is said in the words of JSON."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import BadRequest
from proxy.http.bodies import check_form
from proxy.routes.jobs import NewJob
from proxy.routes.sessions import Mint
from proxy.tenants.plans import PlanFile
from proxy.uploads.parts import Complete


@pytest.mark.parametrize("seconds", [60, 60.0, 6e1])
def test_a_whole_number_may_have_a_point(seconds: float) -> None:
    form = check_form(Mint, {"subject": "alice", "ttl_seconds": seconds, "limits": {"max_tokens": seconds}})
    assert (form.ttl_seconds, form.limits.max_tokens) == (60, 60)
    assert isinstance(form.ttl_seconds, int) and isinstance(form.limits.max_tokens, int)


@pytest.mark.parametrize("seconds", [60.5, 1e300, float("inf"), float("nan"), "60", True, [60.0]])
def test_what_is_no_whole_number_is_refused(seconds: Any) -> None:
    with pytest.raises(BadRequest, match=r"^ttl_seconds: "):
        check_form(Mint, {"subject": "alice", "ttl_seconds": seconds})


@pytest.mark.parametrize(
    ("form", "document", "where"),
    [
        (Mint, [], "the body"),
        (Mint, None, "the body"),
        (NewJob, {"endpoint": "fal-ai/llava-next", "input": []}, "input"),
        (Complete, {"parts": ["x"]}, "parts.0"),
    ],
)
def test_a_value_in_place_of_an_object_is_refused_with_its_place(form: Any, document: Any, where: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_form(form, document)
    assert str(refused.value) == f"{where}: Input should be a JSON object"


def test_a_value_in_place_of_an_array_is_refused_with_its_place() -> None:
    with pytest.raises(BadRequest) as refused:
        check_form(PlanFile, {"plans": {"free": {"endpoints": "all"}}, "tenants": {}, "endpoints": 1})
    assert str(refused.value) == "; ".join(
        f"{where}: Input should be a JSON array" for where in ("plans.free.endpoints", "tenants", "endpoints")
    )

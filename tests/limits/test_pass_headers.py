"""Which headers a plan passes on to fal, and how an answer names those that it drops."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from proxy.upstream.wishes import DROPPED
from tests.support.images import PIXEL
from tests.support.limited import assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

INPUT = {"image_url": PIXEL, "prompt": "?"}
RUN, SUBMIT, STREAM = (
    f"/fal/{path}" for path in ("run/fal-ai/llava-next", "queue/fal-ai/llava-next", "run/fal-ai/llava-next/stream")
)
GOOD = {
    "x-fal-store-io": "0",
    "x-fal-no-retry": "true",
    "x-fal-runner-hint": "session-7",
    "x-fal-tags": "team=design,env=a b",
}
PLANS = {"open": plan(pass_headers=sorted(GOOD)), "tags": plan(pass_headers=["x-fal-tags"]), "closed": plan()}


@pytest.fixture(scope="module")
def shared_stack_of_plans(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("pass-headers"), PLANS) as stack:
        yield stack


@pytest.fixture
def plans(shared_stack_of_plans: Stack, sandbox: SandboxControl) -> Stack:
    return shared_stack_of_plans


def call(stack: Stack, tenant: str, path: str = RUN, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with stack.client(stack.token(tenant=tenant), headers=named) as client:
        return client.post(path, json=INPUT)


def at_fal(stack: Stack) -> dict[str, str]:
    (received,) = [one for one in stack.sandbox.requests() if one["method"] == "POST"]
    return {name: value for name, value in received["headers"] if name in GOOD}


@pytest.mark.parametrize("path", [RUN, SUBMIT, STREAM])
@pytest.mark.parametrize(
    ("tenant", "dropped"),
    [
        ("open", None),
        ("tags", "x-fal-no-retry, x-fal-runner-hint, x-fal-store-io"),
        ("closed", "x-fal-no-retry, x-fal-runner-hint, x-fal-store-io, x-fal-tags"),
    ],
)
def test_a_plan_lets_the_headers_pass_that_it_names(plans: Stack, path: str, tenant: str, dropped: str | None) -> None:
    answer = call(plans, tenant, path, **GOOD)
    assert (answer.status_code, answer.headers.get(DROPPED)) == (200, dropped)
    assert at_fal(plans) == {name: value for name, value in GOOD.items() if name not in (dropped or "").split(", ")}


def test_a_repeated_call_names_the_same_dropped_headers(plans: Stack) -> None:
    key = {"idempotency-key": "a-key-of-the-test"}
    answers = [call(plans, "tags", SUBMIT, **GOOD, **key) for _ in range(2)]
    assert [one.headers.get("idempotency-replayed") for one in answers] == [None, "true"]
    assert len({one.headers[DROPPED] for one in answers}) == 1


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_the_native_api_names_the_same_dropped_headers(plans: Stack, accept: str) -> None:
    body = {"endpoint": "fal-ai/llava-next", "input": INPUT}
    with plans.client(plans.token(tenant="tags"), headers={**GOOD, "accept": accept}) as client:
        answer = client.post("/v1/jobs", json=body)
    assert answer.status_code in (200, 202)
    assert answer.headers[DROPPED] == "x-fal-no-retry, x-fal-runner-hint, x-fal-store-io"
    assert at_fal(plans) == {"x-fal-tags": GOOD["x-fal-tags"]}


TAG = "k" * 64 + "=" + "v" * 256


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-fal-store-io", "1"),
        ("x-fal-store-io", "false"),
        ("x-fal-no-retry", "0"),
        ("x-fal-no-retry", "TRUE"),
        ("x-fal-runner-hint", "a b"),
        ("x-fal-runner-hint", "h" * 257),
        ("x-fal-tags", ""),
        ("x-fal-tags", "team"),
        ("x-fal-tags", "=design"),
        ("x-fal-tags", "Team=design"),
        ("x-fal-tags", "fal.team=design"),
        ("x-fal-tags", "team=design, env=prod"),
        ("x-fal-tags", "k" * 65 + "=v"),
        ("x-fal-tags", "k=" + "v" * 257),
        ("x-fal-tags", ",".join(f"k{n}=v" for n in range(11))),
        ("x-fal-tags", ",".join([TAG] * 4)),
    ],
)
def test_a_value_that_fal_does_not_know_is_refused(plans: Stack, name: str, value: str) -> None:
    body = assert_refused_with(call(plans, "open", **{name: value}), 400, "bad_request")
    assert body["message"].startswith(f"{name} must be ")
    assert not plans.sandbox.requests()
    # A header that is not passed on may have any value.
    assert call(plans, "closed", **{name: value}).headers[DROPPED] == name


def test_the_largest_values_pass(plans: Stack) -> None:
    tags = ",".join(f"k{n}=v" for n in range(9)) + "," + TAG
    assert call(plans, "open", **{"x-fal-tags": tags, "x-fal-runner-hint": "h" * 256}).status_code == 200
    assert at_fal(plans) == {"x-fal-tags": tags, "x-fal-runner-hint": "h" * 256}


def test_a_header_that_comes_twice_is_refused(plans: Stack) -> None:
    headers = [("authorization", f"Bearer {plans.token(tenant='open')}"), *[("x-fal-tags", "a=b")] * 2]
    answer = httpx.post(plans.url + RUN, json=INPUT, headers=headers, trust_env=False, verify=False, timeout=60)
    assert_refused_with(answer, 400, "bad_request")


def test_an_answer_without_wishes_names_nothing(plans: Stack) -> None:
    assert DROPPED not in call(plans, "closed").headers

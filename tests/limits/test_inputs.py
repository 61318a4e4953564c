"""What may go into a model: token and prompt ceilings, as the gate checks them and as a caller sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.catalog import TOKEN_FIELDS, endpoint_from
from proxy.errors import InvalidInput
from proxy.limits.inputs import MAX_TOKENS, check_input
from tests.limits.input_checks import FREE, OWN_FILES, checked, problems
from tests.support.images import PIXEL
from tests.support.limited import COUNTING, NEXT, Client, assert_refused_with, limited_proxy, per, plan, posts
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

LLAMA = "fal-ai/llava-llama3-8b-v11"


@pytest.mark.parametrize("name", TOKEN_FIELDS)
def test_both_spellings_of_the_token_ceiling_count(name: str) -> None:
    limits = FREE.model_copy(update={"max_tokens": 100})
    assert checked({name: 100}, limits)[name] == 100
    assert problems({name: 101}, limits) == [(["body", name], "less_than_equal")]
    assert problems({name: 4097})[0][0] == ["body", name]


def test_neither_spelling_hides_the_other() -> None:
    limits = FREE.model_copy(update={"max_tokens": 100})
    for low, high in (TOKEN_FIELDS, reversed(TOKEN_FIELDS)):
        assert problems({low: 1, high: 101}, limits) == [(["body", high], "less_than_equal")]


@pytest.mark.parametrize(
    ("endpoint", "most", "filled"),
    [
        (NEXT, 100, {"max_tokens": 64}),
        (NEXT, 32, {"max_tokens": 32}),
        (COUNTING, 32, {"max_new_tokens": 32}),
        (LLAMA, 256, {"max_new_tokens": 256}),
        (LLAMA, 255, {"max_new_tokens": 255}),
        (NEXT, None, {}),
    ],
)
def test_a_ceiling_that_is_not_given_is_filled_in(endpoint: str, most: int | None, filled: dict[str, int]) -> None:
    limits = FREE.model_copy(update={"max_tokens": most})
    sent = checked({}, limits, endpoint)
    assert sent == {"image_url": PIXEL, "prompt": "?", **filled}


@pytest.mark.parametrize(
    "value", [-5, 0, 1.5, "100", None, True, [1], 1e400, 10**6 + 1, 10**15, 1e15, 1e300, 2**64 - 1, 1e19]
)
@pytest.mark.parametrize("name", TOKEN_FIELDS)
def test_a_lax_schema_of_the_operator_does_not_lift_the_token_ceiling(name: str, value: object) -> None:
    """What is reserved is this number: a negative one would fill the quota up."""
    lax = endpoint_from({"id": "fal-ai/own", "input": {"type": "object"}})
    with pytest.raises(InvalidInput) as refused:
        check_input(lax, FREE, {name: value}, own_files=OWN_FILES)
    assert [one["loc"] for one in refused.value.details] == [["body", name]]


def test_a_plan_cannot_allow_more_tokens_than_a_ledger_holds() -> None:
    lax = endpoint_from({"id": "fal-ai/own", "input": {"type": "object", "properties": {"max_tokens": {}}}})
    generous = FREE.model_copy(update={"max_tokens": 10**15})
    assert check_input(lax, generous, {}, own_files=OWN_FILES) == {"max_tokens": MAX_TOKENS}
    with pytest.raises(InvalidInput, match=f"A call may ask for {MAX_TOKENS} tokens at most"):
        check_input(lax, generous, {"max_tokens": 10**12}, own_files=OWN_FILES)


def test_the_length_of_a_prompt() -> None:
    limits = FREE.model_copy(update={"max_prompt_chars": 5})
    assert checked({"prompt": "äöü😀!"}, limits)["prompt"] == "äöü😀!"
    assert problems({"prompt": "äöü😀!."}, limits) == [(["body", "prompt"], "string_too_long")]


def test_all_problems_are_named_at_once() -> None:
    limits = FREE.model_copy(update={"max_prompt_chars": 5, "max_tokens": 9})
    found = problems({"prompt": "too long", "max_tokens": 10, "image_url": "ftp://a/", "temperature": 3}, limits)
    assert sorted(str(where[-1]) for where, _ in found) == ["image_url", "max_tokens", "prompt", "temperature"]


# --- as a caller sees it


@pytest.fixture(scope="module")
def ceilings(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    quotas = [per("tenant", "requests", 100), per("tenant", "tokens", 10_000)]
    limits = {"narrow": plan(max_tokens=48, max_prompt_chars=40, quotas=quotas, image_schemes=["data"])}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("ceilings"), limits) as stack:
        yield stack


@pytest.fixture
def alice(ceilings: Stack, sandbox: SandboxControl) -> Iterator[Client]:
    with Client(ceilings, ceilings.token(tenant="narrow")) as client:
        yield client


def test_fal_receives_the_plans_ceiling_where_the_caller_gives_none(alice: Client, sandbox: SandboxControl) -> None:
    assert alice.run().status_code == 200
    alice.submitted(endpoint=COUNTING)
    alice.submitted(max_new_tokens=7)
    sent = [{name: record["json"].get(name) for name in TOKEN_FIELDS} for record in posts(sandbox)]
    assert sent == [
        {"max_tokens": 48, "max_new_tokens": None},
        {"max_tokens": None, "max_new_tokens": 48},
        {"max_tokens": None, "max_new_tokens": 7},
    ]


def test_a_whole_number_with_a_point_reaches_fal_without_it(alice: Client, sandbox: SandboxControl) -> None:
    assert alice.run(max_tokens=8.0).status_code == 200
    alice.submitted(endpoint=COUNTING, max_new_tokens=7.0)
    sent = [next(record["json"][name] for name in TOKEN_FIELDS if name in record["json"]) for record in posts(sandbox)]
    assert json.dumps(sent) == "[8, 7]"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 49},
        {"max_new_tokens": 49},
        {"prompt": "x" * 41},
        {"image_url": "https://example.com/cat.png"},
        {"images": [{"image_url": "http://10.0.0.1/"}]},
    ],
)
@pytest.mark.parametrize("kind", ["run", "queue"])
def test_an_input_over_a_ceiling_is_422_and_costs_nothing(
    alice: Client, sandbox: SandboxControl, kind: str, wrong: dict[str, Any]
) -> None:
    before = alice.facts()
    answer: httpx.Response = (alice.run if kind == "run" else alice.submit)(**{"prompt": "?", **wrong})
    body = assert_refused_with(answer, 422, "invalid_input")
    assert [one["loc"][1] for one in body["detail"]] == list(set(wrong) - {"image_url"} or wrong)
    assert alice.facts() == before
    assert not posts(sandbox)


def test_a_picture_that_was_uploaded_is_let_through_whatever_the_schemes(alice: Client, ceilings: Stack) -> None:
    wanted = {"content_type": "image/png", "file_name": "a.png"}
    slot = alice.call("POST", "rest/storage/upload/initiate", wanted).json()
    picture = Path(__file__).parents[1] / "pictures" / "chelsea.png"
    alice.http.put(slot["upload_url"], content=picture.read_bytes(), headers={"content-type": "image/png"})
    answer = alice.run(image_url=slot["file_url"])
    assert answer.status_code == 200 and "451 × 300" in answer.json()["output"]

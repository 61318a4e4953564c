"""The configuration: what holds now, what another file would change, and that file applied."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
import yaml

from tests.console.operators import Operator, assert_refused
from tests.console.test_tenants import entries
from tests.support.limited import operating
from tests.support.stack import Stack

PAGE, COMPARE, APPLY = "/console/configuration", "/console/configuration/compare", "/console/configuration/apply"


def shown(operator: Operator) -> Any:
    match = re.search(r"<pre[^>]*>(.*?)</pre>", operator.get(PAGE).text, re.DOTALL)
    assert match
    return yaml.safe_load(html.unescape(match[1]))


def with_plan(operator: Operator, max_tokens: int) -> str:
    """The file that holds, with another ceiling in one plan."""
    document = shown(operator)
    document["plans"]["globex"]["max_tokens"] = max_tokens
    return yaml.safe_dump(document)


def hidden(page: str, name: str) -> str:
    match = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert match, page
    return html.unescape(match[1])


def ceiling(proxy: Stack) -> object:
    with operating(proxy) as admin:
        return admin.get("/v1/admin/tenants/globex").raise_for_status().json()["limits"]["max_tokens"]


def test_the_current_configuration_is_shown_as_a_plan_file(viewer: Operator) -> None:
    document = shown(viewer)
    assert set(document["plans"]) == {"acme", "globex"}
    assert {one["id"] for one in document["tenants"]} == {"acme", "globex"}
    assert document["endpoints"][0]["price_per_compute_second"] == 0.001


def test_the_same_file_changes_nothing(admin: Operator) -> None:
    page = admin.post(COMPARE, {"file": yaml.safe_dump(shown(admin))}).text
    assert "holds already" in page and "Apply" not in page


def test_a_file_is_compared_and_then_applied(proxy: Stack, admin: Operator) -> None:
    before = entries(proxy)
    answer = admin.post(COMPARE, {"file": with_plan(admin, 77)})
    assert (
        answer.status_code == 200 and "Change plan globex" in answer.text and "<code>max_tokens</code>" in answer.text
    )
    assert ceiling(proxy) != 77 and entries(proxy) == before
    fields = {name: hidden(answer.text, name) for name in ("file", "digest")}
    assert admin.post(APPLY, fields).headers["location"] == PAGE
    assert ceiling(proxy) == 77 and shown(admin)["plans"]["globex"]["max_tokens"] == 77
    last = entries(proxy)[-1]
    assert (last["by"], last["action"], last["target"]) == ("console:PROXY_ADMIN_TOKEN", "plan.change", "globex")


def test_a_file_is_not_applied_if_its_changes_are_no_longer_those_shown(proxy: Stack, admin: Operator) -> None:
    first, second = with_plan(admin, 91), with_plan(admin, 92)
    page = admin.post(COMPARE, {"file": first}).text
    # Meanwhile another operator applies another file.
    other = admin.post(COMPARE, {"file": second}).text
    admin.post(APPLY, {"file": second, "digest": hidden(other, "digest")})
    assert ceiling(proxy) == 92
    text = assert_refused(admin.post(APPLY, {"file": first, "digest": hidden(page, "digest")}), 400, "bad_request")
    assert "compare it again" in text and ceiling(proxy) == 92
    assert_refused(admin.post(APPLY, {"file": first}), 400, "bad_request")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "plans: [",
        "plans: {a: {}}\nplans: {b: {}}",
        "plans: 1",
        "[]",
        "plans: {free: {endpoints: [fal-ai/no-such-endpoint]}}",
        "plans: {free: {endpoints: [fal-ai/llava-next]}}\ntenants: [{id: x, plan: nobodys}]",
        "plans: {free: {endpoints: [fal-ai/llava-next], secret: 1}}",
        "plans: {free: &a {endpoints: [fal-ai/llava-next]}, other: *a}",
        "plans: {free: !!python/object/apply:os.system [id]}",
        "plans: " + "9" * 5000,
        "[" * 3000,
        "#" * (256 * 1024 + 1),
    ],
    ids=lambda text: text[:30],
)
@pytest.mark.parametrize("path", [COMPARE, APPLY])
def test_a_file_that_is_wrong_changes_nothing(proxy: Stack, admin: Operator, path: str, text: str) -> None:
    before = entries(proxy)
    assert_refused(admin.post(path, {"file": text, "digest": ""}), 400, "bad_request")
    assert entries(proxy) == before


def test_a_file_that_is_too_long_is_refused(admin: Operator) -> None:
    assert_refused(admin.post(COMPARE, {"file": "#" * 1024 * 1024}), 413, "body_too_large")


def test_only_an_admin_compares_and_applies(proxy: Stack, viewer: Operator, night_shift: Operator) -> None:
    for operator in (viewer, night_shift):
        assert "Compare" not in operator.get(PAGE).text
        for path in (COMPARE, APPLY):
            assert_refused(operator.post(path, {"file": "plans: {}"}), 403, "not_allowed")


def test_text_of_a_file_does_not_become_markup(admin: Operator) -> None:
    document = shown(admin)
    document["plans"]["globex"]["max_prompt_chars"] = 1234
    text = yaml.safe_dump(document) + "# <img src=x onerror=alert(1)>\"'&\n"
    page = admin.post(COMPARE, {"file": text}).text
    assert "<img" not in page and hidden(page, "file") == text

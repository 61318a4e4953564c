"""New names of users, keys and grants show all of themselves; names that are there already go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.limited import Client, assert_refused_with, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

UNSEEN = ["\x80", "\x9b", "\u00ad", "\u061c", "\u200b", "\u200e", "\u200f", "\u2028", "\u2029", "\u202a", "\u202e"]
UNSEEN += ["\u2060", "\u2066", "\u2069", "\ufeff", "\ufffb"]
SEEN = ["ali\u0301", "می\u200cخواهم", "👩\u200d💻", "क\u094d\u200dष", "жанна", "a\u00a0b"]
GRANT = {"unit": "usd", "amount": 1, "reason": "r"}
OVERRIDE = {"plan": "acme", "until": "2999-01-01"}
TURNED = "al\u202eice"
SAID = "subject: has the character U+202E, which is not seen; leave it out."


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("names"), {"acme": plan()}) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with operating(proxy) as client:
        yield client


def make_with(proxy: Stack, subject: str) -> dict[str, httpx.Response]:
    """What each way to make a name of a user answers."""
    with proxy.client(proxy.tenant_key("acme")) as backend, operating(proxy) as operator:
        minted = {"tenant": "acme", "subject": subject}
        return {
            "mint": backend.post("/v1/sessions", json={"subject": subject}),
            "admin mint": operator.post("/v1/admin/sessions", json=minted),
            "grant": operator.post("/v1/admin/tenants/acme/grants", json={**GRANT, "subject": subject}),
            "override": operator.put(f"/v1/admin/tenants/acme/overrides/{subject}", json=OVERRIDE),
        }


@pytest.mark.parametrize("way", ["mint", "admin mint", "grant", "override"])
def test_a_new_user_with_a_character_that_is_not_seen_is_refused(proxy: Stack, way: str) -> None:
    assert assert_refused_with(make_with(proxy, TURNED)[way], 400, "bad_request")["detail"] == SAID


@pytest.mark.parametrize("unseen", UNSEEN)
def test_each_of_them_is_refused(proxy: Stack, unseen: str) -> None:
    with proxy.client(proxy.tenant_key("acme")) as backend:
        answer = backend.post("/v1/sessions", json={"subject": f"a{unseen}b"})
    assert f"U+{ord(unseen):04X}" in assert_refused_with(answer, 400, "bad_request")["detail"]


@pytest.mark.parametrize("name", SEEN)
def test_names_in_any_script_are_let_in(proxy: Stack, name: str) -> None:
    assert {way: answer.status_code for way, answer in make_with(proxy, name).items()} == {
        "mint": 201,
        "admin mint": 201,
        "grant": 201,
        "override": 200,
    }


def test_a_user_who_has_such_a_name_goes_on(proxy: Stack, operator: httpx.Client) -> None:
    """A session from before works, and the user of its calls gets the next one."""
    name = "old\u200buser"
    with Client(proxy, proxy.token(name, tenant="acme")) as user:
        assert user.submit().status_code == 200
    assert [answer.status_code for answer in make_with(proxy, name).values()] == [201, 201, 201, 200]
    assert operator.get("/v1/admin/jobs", params={"tenant": "acme", "subject": name}).json()["jobs"]
    assert operator.request("DELETE", f"/v1/admin/tenants/acme/overrides/{name}").status_code == 204


@pytest.mark.parametrize(
    ("path", "form", "field"),
    [
        ("/v1/admin/tenants/acme/keys", {"name": TURNED}, "name"),
        ("/v1/admin/tenants/acme/grants", {**GRANT, "reason": TURNED}, "reason"),
    ],
)
def test_what_operators_read_shows_all_of_itself(
    operator: httpx.Client, path: str, form: dict[str, Any], field: str
) -> None:
    answer = operator.post(path, json=form)
    assert assert_refused_with(answer, 400, "bad_request")["detail"] == f"{field}: {SAID[9:-1]}"

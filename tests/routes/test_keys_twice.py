"""JSON bodies of the proxy's own routes: a key twice in one is refused, as readers differ in which of them counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.http.bodies import FORM_BYTES
from proxy.routes.openapi import describe_routes
from tests.support.limited import ADMIN_TOKEN, NEXT, assert_refused_with, limited_proxy, plan, posts
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

ORIGIN = "https://app.example"
TENANTS = {"acme": {"allowed_origins": [ORIGIN], "guests": {"enabled": True}}}
NAMES = {"tenant": "acme", "subject": "alice"}
TWICE = '{"x": 1, "x": 2}'


def list_forms() -> Iterator[tuple[str, str]]:
    """List the method and the path of each route below /v1 that takes JSON."""
    for path, routes in json.loads(describe_routes("https://proxy.example"))["paths"].items():
        for method, route in routes.items():
            takes: dict[str, Any] = route.get("requestBody", {}).get("content", {}) if isinstance(route, dict) else {}
            if "application/json" in takes and path.startswith("/v1/"):
                yield method.upper(), path


FORMS = sorted(list_forms())


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("twice")
    with limited_proxy(shared_sandbox, folder, {"acme": plan()}, tenants=TENANTS) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def credential_for(proxy: Stack, path: str) -> str:
    if path.startswith("/v1/admin"):
        return ADMIN_TOKEN
    return proxy.tenant_key("acme") if path == "/v1/sessions" else proxy.token("alice", tenant="acme")


@pytest.mark.parametrize(("method", "path"), FORMS)
def test_a_key_that_stands_in_a_form_twice_is_named(proxy: Stack, method: str, path: str) -> None:
    filled = re.sub(r"{(\w+)}", lambda match: NAMES[match[1]], path)
    headers = {"content-type": "application/json", "origin": ORIGIN}
    with proxy.client(credential_for(proxy, path)) as client:
        answer = client.request(method, filled, content=TWICE, headers=headers)
    assert assert_refused_with(answer, 400, "bad_request")["detail"] == "x: stands in the body twice; keep one."


def test_all_forms_are_tried() -> None:
    assert len(FORMS) > 12 and {("POST", "/v1/jobs"), ("POST", "/v1/estimate")} <= {*FORMS}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/estimate"])
@pytest.mark.parametrize("size", [1, FORM_BYTES, 4 * FORM_BYTES])
@pytest.mark.parametrize("value", ['"prompt": "%s", "prompt": "?"', '"more": [{"k:k": "%s", "k\\u003ak": {}}]'])
def test_an_input_with_a_key_twice_is_refused_whatever_its_size(proxy: Stack, path: str, size: int, value: str) -> None:
    sent = len(posts(proxy.sandbox))
    body = f'{{"endpoint": "{NEXT}", "input": {{{value.replace("%s", "x:" * size)}}}}}'
    with proxy.client(proxy.token("alice", tenant="acme")) as alice:
        answer = alice.post(path, content=body, headers={"content-type": "application/json"})
    assert "stands in the body twice" in assert_refused_with(answer, 400, "bad_request")["detail"]
    assert len(posts(proxy.sandbox)) == sent

"""A body can take minutes to come. A credential that ends meanwhile does nothing any more."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from tests.console.operators import COOKIE, Operator, new_token, operator_of
from tests.support.audit_log import read_entries
from tests.support.images import png
from tests.support.limited import NEXT, asking, limited_proxy, operating, plan, posts
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PAGE = "https://app.host.example"
JOB = {"endpoint": NEXT, "input": asking("?")}
#: The routes of the operator that take a form, and a form that they take.
ADMIN: dict[tuple[str, str], dict[str, Any]] = {
    ("PUT", "/tenants"): {"plans": {"late": {"endpoints": [NEXT]}}},
    ("POST", "/tenants/acme/keys"): {"name": "late"},
    ("POST", "/tenants/acme/grants"): {"unit": "requests", "amount": 5, "reason": "late"},
    ("PUT", "/tenants/acme/overrides/alice"): {"plan": "acme", "until": "2099-01-31"},
    ("POST", "/sessions"): {"tenant": "acme", "subject": "alice"},
    ("DELETE", "/sessions"): {"tenant": "acme", "subject": "alice"},
    ("POST", "/tokens"): {"name": "late", "role": "admin"},
}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    plans, host = {"acme": plan(), "host": plan()}, {"allowed_origins": [PAGE], "guests": {"enabled": True}}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("slow"), plans, tenants={"host": host}) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def send_in_two(
    proxy: Stack, method: str, path: str, headers: dict[str, str], body: bytes, meanwhile: Callable[[], None]
) -> tuple[int, str | None]:
    """Send a body, and do something when the proxy has let the request in and waits for it: status and code."""
    named = {"host": urlsplit(proxy.url).netloc, "content-length": str(len(body)), "expect": "100-continue", **headers}
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""])
    with closing(socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port or 0), timeout=60)) as connection:
        connection.sendall(head.encode())
        awaited = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(awaited), socket.MSG_WAITALL) == awaited
        meanwhile()
        connection.sendall(body)
        answer = HTTPResponse(connection, method=method)
        answer.begin()
        return answer.status, answer.headers.get("x-fal-error-type")


def send_json(proxy: Stack, method: str, path: str, token: str, form: Any, meanwhile: Callable[[], None]) -> Any:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    return send_in_two(proxy, method, path, headers, json.dumps(form).encode(), meanwhile)


def entries_of(proxy: Stack) -> list[dict[str, Any]]:
    return read_entries(proxy.settings.stores.database_url.reveal())


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_a_revoked_admin_token_changes_nothing(proxy: Stack, method: str, path: str) -> None:
    with operating(proxy) as operator:
        before: list[dict[str, Any]] = []

        def revoke() -> None:
            operator.delete("/v1/admin/tokens/stolen").raise_for_status()
            before.extend(entries_of(proxy))

        token = new_token(proxy, "stolen", "admin")
        answer = send_json(proxy, method, f"/v1/admin{path}", token, ADMIN[method, path], revoke)
        assert answer == (401, "unauthenticated") and entries_of(proxy) == before
        kept = new_token(proxy, "kept", "admin")
        status, _ = send_json(proxy, method, f"/v1/admin{path}", kept, ADMIN[method, path], lambda: None)
        assert 200 <= status < 300
        for token in operator.get("/v1/admin/tokens").json()["tokens"]:
            operator.delete(f"/v1/admin/tokens/{token['name']}")


def test_an_operator_whose_token_is_revoked_changes_nothing_at_the_console(proxy: Stack) -> None:
    def act(browser: Operator, meanwhile: Callable[[], None]) -> int:
        fields = urlencode({"csrf": browser.csrf()}).encode()
        headers = {
            "cookie": f"{COOKIE}={browser.cookie}",
            "origin": proxy.url,
            "content-type": "application/x-www-form-urlencoded",
        }
        return send_in_two(proxy, "POST", "/console/tenants/acme/suspend", headers, fields, meanwhile)[0]

    with operating(proxy) as operator, operator_of(proxy, new_token(proxy, "browser", "operator")) as browser:
        assert act(browser, lambda: None) == 303
        operator.post("/v1/admin/tenants/acme/resume").raise_for_status()
        assert act(browser, lambda: operator.delete("/v1/admin/tokens/browser").raise_for_status() and None) == 401
        assert operator.get("/v1/admin/tenants/acme").json()["suspended_at"] is None


@pytest.mark.parametrize(("method", "status"), [("POST", 201), ("DELETE", 204)])
def test_a_revoked_tenant_key_mints_no_session_and_signs_no_user_out(proxy: Stack, method: str, status: int) -> None:
    with operating(proxy) as operator:
        made = operator.post("/v1/admin/tenants/acme/keys", json={"name": "leaked"}).json()

        def send(meanwhile: Callable[[], None]) -> Any:
            return send_json(proxy, method, "/v1/sessions", made["key"], {"subject": "mallory"}, meanwhile)

        assert send(lambda: None)[0] == status
        revoke = lambda: operator.delete(f"/v1/admin/keys/{made['id']}").raise_for_status() and None  # noqa: E731
        assert send(revoke) == (401, "unauthenticated")


CALLS: dict[str, tuple[str, Any, dict[str, str]]] = {
    "run": (f"/fal/run/{NEXT}", asking("?"), {}),
    "submit": (f"/fal/queue/{NEXT}", asking("?"), {}),
    "stream": (f"/fal/run/{NEXT}/stream", asking("?"), {}),
    "native": ("/v1/jobs", JOB, {}),
    "native-events": ("/v1/jobs", JOB, {"accept": "text/event-stream"}),
    "once": (f"/fal/run/{NEXT}", asking("?"), {"idempotency-key": "a-slow-call"}),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_revoked_session_makes_no_call(proxy: Stack, call: str) -> None:
    path, body, more = CALLS[call]
    token = proxy.token(f"victim-{call}", tenant="acme")
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", **more}

    def send(meanwhile: Callable[[], None]) -> tuple[int, str | None]:
        return send_in_two(proxy, "POST", path, headers, json.dumps(body).encode(), meanwhile)

    def sign_out() -> None:
        with proxy.client(token) as client:
            answer: httpx.Response = client.delete("/v1/session")
            assert answer.status_code == 204

    assert send(sign_out) == (401, "session_revoked") and posts(proxy.sandbox) == []
    token = proxy.token(f"user-{call}", tenant="acme")
    headers["authorization"] = f"Bearer {token}"
    assert 200 <= send(lambda: None)[0] < 300


def test_a_revoked_session_gets_no_stored_answer(proxy: Stack) -> None:
    token = proxy.token("reader", tenant="acme")
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "idempotency-key": "stored"}
    body = json.dumps(asking("?")).encode()
    with proxy.client(token) as client:

        def sign_out() -> None:
            assert client.delete("/v1/session").status_code == 204

        for meanwhile, expected in ((lambda: None, 200), (lambda: None, 200), (sign_out, 401)):
            assert send_in_two(proxy, "POST", f"/fal/run/{NEXT}", headers, body, meanwhile)[0] == expected
    assert len(posts(proxy.sandbox)) == 1


def test_a_guest_whose_page_is_allowed_no_more_gets_no_session(proxy: Stack) -> None:
    headers = {"origin": PAGE, "content-type": "application/json"}

    def send(meanwhile: Callable[[], None]) -> tuple[int, str | None]:
        return send_in_two(proxy, "POST", "/v1/sessions/guest", headers, b"{}", meanwhile)

    def shut_out() -> None:
        with operating(proxy) as operator:
            tenant = {"id": "host", "plan": "host", "guests": {"enabled": True}}
            operator.put("/v1/admin/tenants", json={"plans": {"host": plan()}, "tenants": [tenant]}).raise_for_status()

    assert send(lambda: None)[0] == 201
    assert send(shut_out) == (403, "origin_not_allowed")


@pytest.mark.parametrize(("is_revoked", "expected"), [(False, (200, None)), (True, (404, "not_found"))])
def test_an_upload_of_a_revoked_session_is_not_completed(
    proxy: Stack, is_revoked: bool, expected: tuple[int, str | None]
) -> None:
    wanted = {"content_type": "image/png", "file_name": "a.png"}
    with proxy.client(proxy.token("sender", tenant="acme")) as client:
        begun = client.post("/fal/rest/storage/upload/initiate-multipart", json=wanted).raise_for_status()
        path = urlsplit(begun.json()["upload_url"]).path
        part = client.put(f"{path}/1", content=png(500)).raise_for_status().json()

        def sign_out() -> None:
            assert not is_revoked or client.delete("/v1/session").status_code == 204

        body = json.dumps({"parts": [part]}).encode()
        headers = {"content-type": "application/json"}
        assert send_in_two(proxy, "POST", f"{path}/complete", headers, body, sign_out) == expected

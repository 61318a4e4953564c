"""Which credentials the sandbox accepts, and the headers that every answer carries."""

from __future__ import annotations

import httpx
import pytest

from proxy.sandbox.app import SANDBOX_KEY
from proxy.sandbox.auth import UNWANTED_HEADERS
from tests.sandbox.conftest import Fal

GUARDED = [
    ("POST", "/run/fal-ai/llava-next"),
    ("GET", "/run/fal-ai/llava-next/health"),
    ("POST", "/run/fal-ai/llava-next/stream"),
    ("POST", "/queue/fal-ai/llava-next"),
    ("GET", "/queue/fal-ai/llava-next/requests/x/status"),
    ("GET", "/queue/fal-ai/llava-next/requests/x/status/stream"),
    ("GET", "/queue/fal-ai/llava-next/requests/x"),
    ("PUT", "/queue/fal-ai/llava-next/requests/x/cancel"),
    ("POST", "/rest/storage/upload/initiate"),
    ("POST", "/rest/storage/upload/initiate-multipart"),
    ("POST", "/rest/storage/auth/token"),
    ("POST", "/rest/tokens/"),
    ("POST", "/rest/tokens/realtime"),
    ("GET", "/elsewhere"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_requests_without_a_key_are_refused(fal: Fal, stranger: httpx.Client, method: str, path: str) -> None:
    answer = stranger.request(method, fal.url + path)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Authorization header is required"})


@pytest.mark.parametrize(
    "credentials", ["Key wrong", f"Bearer {SANDBOX_KEY}", f"key {SANDBOX_KEY}", SANDBOX_KEY, f"Key  {SANDBOX_KEY}", ""]
)
def test_only_the_exact_credentials_are_taken(fal: Fal, stranger: httpx.Client, credentials: str) -> None:
    answer = fal.client.post("/run/fal-ai/llava-next", headers={"authorization": credentials})
    assert (answer.status_code, answer.json()) == (401, {"detail": "invalid key credentials"})


def test_two_authorization_headers_are_refused(fal: Fal, stranger: httpx.Client) -> None:
    headers = [("authorization", f"Key {SANDBOX_KEY}"), ("authorization", f"Key {SANDBOX_KEY}")]
    assert stranger.post(fal.url + "/run/fal-ai/llava-next", headers=headers).status_code == 401


@pytest.mark.parametrize("header", ["cookie", "x-fal-target-url"])
@pytest.mark.parametrize(
    "path", ["/run/fal-ai/llava-next", "/queue/fal-ai/llava-next", "/rest/tokens/", "/cdn/files/upload"]
)
def test_a_header_that_only_a_leak_sends_is_refused(fal: Fal, stranger: httpx.Client, path: str, header: str) -> None:
    answer = fal.client.post(path, headers={header: "a=b"})
    assert (answer.status_code, header in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/rest/.well-known/jwks.json"), ("GET", "/_sandbox/requests"), ("GET", "/_sandbox/jobs")],
)
def test_some_routes_need_no_key(fal: Fal, stranger: httpx.Client, method: str, path: str) -> None:
    assert stranger.request(method, fal.url + path).status_code == 200


@pytest.mark.parametrize("path", ["/run/.well-known/jwks.json", "/queue/.well-known/jwks.json"])
def test_the_key_set_is_open_on_one_host_only(fal: Fal, stranger: httpx.Client, path: str) -> None:
    assert stranger.get(fal.url + path).status_code == 401


def test_every_answer_carries_what_must_be_stripped(fal: Fal, stranger: httpx.Client) -> None:
    job = fal.finished()
    answers = [
        fal.run(),
        fal.client.post("/run/fal-ai/llava-next/stream", json=fal.input()),
        fal.client.get(job["status_url"]),
        fal.client.get(job["status_url"] + "/stream"),
        fal.client.get(job["response_url"]),
        fal.client.put(job["cancel_url"]),
        fal.client.post("/rest/tokens/", json={"allowed_apps": []}),
        fal.client.get("/cdn/files/b/no/where"),
        fal.client.get("/nowhere"),
        fal.run("[[fault status=503]]"),
        stranger.get(fal.url + "/run/x/y"),
    ]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in UNWANTED_HEADERS} == UNWANTED_HEADERS


def test_a_browser_may_ask_before_it_uploads(fal: Fal, stranger: httpx.Client) -> None:
    answer = stranger.options(fal.url + "/cdn/files/b/x/y")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "*")


@pytest.mark.parametrize("path", ["/", "/rest", "/rest/storage/upload/initiate/", "/cdn/files", "/queue", "/nowhere"])
def test_unknown_paths_are_json_404_and_never_a_redirect(fal: Fal, path: str) -> None:
    answer = fal.client.get(path)
    assert (answer.status_code, list(answer.json())) == (404, ["detail"])


def test_a_wrong_method_is_json_405(fal: Fal) -> None:
    answer = fal.client.get("/rest/storage/upload/initiate")
    assert (answer.status_code, list(answer.json())) == (405, ["detail"])

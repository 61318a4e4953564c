"""Private answers forbid caching and type sniffing, and each of these headers occurs once."""

from __future__ import annotations

import pytest

from tests.routes.jobs import JOBS, SSE, new
from tests.security.calls import call, submit
from tests.security.hostile import NEXT, NOBODYS
from tests.security.shape import BODY
from tests.security.wire import Answer, Wire
from tests.support.stack import Stack

FROM = [{}, {"origin": "{other}"}, {"origin": "https://evil.example"}]
ORIGINS = pytest.mark.parametrize("origin", FROM, ids=["no-page", "own-page", "foreign-page"])
#: Method, path and body; whether it is refused.
PRIVATE: list[tuple[str, str, bytes | None]] = [
    ("GET", "/v1/session", None),
    ("GET", "/v1/usage", None),
    ("GET", "/v1/endpoints", None),
    ("GET", f"/v1/endpoints/{NEXT}", None),
    ("GET", "/v1/jobs", None),
    ("POST", "/v1/estimate", b'{"endpoint":"fal-ai/llava-next","input":{}}'),
    ("GET", f"/v1/jobs/{NOBODYS}", None),
    ("GET", "/v1/session?unknown=1", None),
    ("POST", "/v1/sessions/cookie", None),
    ("POST", f"/fal/run/{NEXT}", BODY),
    ("POST", f"/fal/run/{NEXT}", b"{}"),
    ("POST", f"/fal/queue/{NEXT}", BODY),
    ("POST", "/fal/rest/storage/upload/initiate", b'{"content_type": "image/png"}'),
    ("GET", "/nothing/here", None),
    ("PATCH", "/v1/session", None),
    ("GET", "/livez", None),
]


def assert_private(answer: Answer, caching: str = "no-store") -> None:
    assert answer.all("cache-control") == [caching], answer
    assert answer.all("x-content-type-options") == ["nosniff"], answer
    assert "Origin" in ", ".join(answer.all("vary")).split(", "), answer


def headers_of(stack: Stack, token: str, origin: dict[str, str]) -> dict[str, str]:
    named = {name: value.format(other=stack.other_origin) for name, value in origin.items()}
    return {"authorization": f"Bearer {token}", "content-type": "application/json", **named}


@ORIGINS
@pytest.mark.parametrize(("method", "path", "body"), PRIVATE, ids=lambda value: str(value)[:40])
def test_an_answer_is_private(
    stack: Stack, wire: Wire, method: str, path: str, body: bytes | None, origin: dict[str, str]
) -> None:
    for token in (stack.token(), stack.token(ttl_seconds=-1)):
        assert_private(wire.exchange(method, path, headers_of(stack, token, origin).items(), body or b""))


@ORIGINS
def test_polls_and_results_are_private_each_time(stack: Stack, wire: Wire, origin: dict[str, str]) -> None:
    token = stack.token()
    job, headers = submit(wire, token), headers_of(stack, token, origin)
    for _ in range(4):
        assert_private(wire.exchange("GET", f"/fal/queue/{NEXT}/requests/{job}/status", headers.items()))
    for path in (f"/fal/queue/{NEXT}/requests/{job}", f"/v1/jobs/{job}/result", f"/v1/jobs/{job}"):
        assert_private(wire.exchange("GET", path, headers.items()))
    assert_private(call(wire, "protocol", token, "GET", f"queue/{NEXT}/requests/{job}/status"))


@ORIGINS
def test_streams_are_private_and_not_compressed(stack: Stack, wire: Wire, origin: dict[str, str]) -> None:
    token = stack.token()
    job, headers = submit(wire, token), headers_of(stack, token, origin)
    for method, path, body in (
        ("GET", f"/fal/queue/{NEXT}/requests/{job}/status/stream", b""),
        ("GET", f"{JOBS}/{job}/events", b""),
        ("HEAD", f"{JOBS}/{job}/events", b""),
        ("POST", f"/fal/run/{NEXT}/stream", BODY),
    ):
        answer = wire.exchange(method, path, headers.items(), body)
        assert answer.all("content-type") == ["text/event-stream; charset=utf-8"], answer
        assert_private(answer, "no-store, no-transform")


@ORIGINS
def test_the_answer_to_a_submit_varies_with_the_accept_header(stack: Stack, origin: dict[str, str]) -> None:
    headers = headers_of(stack, stack.token(), origin)
    with stack.client("", headers=headers) as client:
        quick = new("[[pace run_seconds=0 queue_positions=0]]")
        for accept, json in (({}, quick), (SSE, quick), ({}, {}), (SSE, {})):
            answer = client.post(JOBS, json=json, headers=accept)
            assert set(answer.headers["vary"].split(", ")) == {"Origin", "Accept"}
            assert answer.headers["cache-control"].startswith("no-store")
        assert client.get(JOBS).headers["vary"] == "Origin"


def test_public_answers_may_be_cached(stack: Stack, wire: Wire) -> None:
    described = wire.exchange("GET", "/openapi.json", [])
    assert_private(described, "public, max-age=3600")
    page = wire.exchange("GET", "/", [])
    assert page.status == 200
    assert_private(page, "no-cache")
    # A refusal at the same address is not.
    assert_private(wire.exchange("POST", "/openapi.json", []))
    assert_private(wire.exchange("GET", "/no-such-file.js", []))

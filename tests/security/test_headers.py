"""The exact headers that reach fal and that come back, both sides sending everything that must not cross."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import IncompleteRead
from urllib.parse import urlsplit

import pytest

from proxy import __version__
from proxy.sandbox.app import SANDBOX_KEY
from proxy.sandbox.auth import UNWANTED_HEADERS
from tests.security.calls import JSON, SURFACES, call, submit
from tests.security.hostile import NEXT
from tests.security.shape import BODY, assert_refusal
from tests.security.wire import Answer, Wire
from tests.support.images import PIXEL_PNG
from tests.support.stack import Stack

EVENTS = "text/event-stream"

#: Headers that a caller may send. Only the first two and wishes for files are passed on; the rest belongs to the hop,
#: to the browser or to fal.
CALLERS = {
    "x-fal-queue-priority": "low",
    "x-fal-request-timeout": "30.50",
    "accept": "text/html, */*",
    "accept-encoding": "gzip, br, zstd",
    "accept-language": "en",
    "user-agent": "evil/1.0",
    "origin": "https://evil.example",
    "referer": "https://evil.example/page",
    "cookie": "fal_session=stale; other=1",
    "forwarded": "for=1.2.3.4",
    "x-forwarded-for": "1.2.3.4",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "https",
    "x-real-ip": "1.2.3.4",
    "via": "1.1 evil",
    "te": "trailers",
    "keep-alive": "timeout=5",
    "connection": "keep-alive, x-hop",
    "x-hop": "1",
    "proxy-authorization": "Basic Zm9vOmJhcg==",
    "sec-fetch-site": "cross-site",
    "sec-ch-ua": "evil",
    "range": "bytes=0-1",
    "if-none-match": "*",
    "x-fal-runner-hint": "hint",
    "x-fal-store-io": "0",
    "x-fal-no-retry": "1",
    "x-fal-retry-config": "{}",
    "x-fal-user-id": "someone",
    "x-fal-tags": "a=b",
    "x-fal-object-lifecycle": "{}",
    "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds":9}',
    "x-fal-cdn-token": "token",
    "x-fal-cdn-authorization": "Bearer token",
    "x-fal-file-name": "evil",
    "x-fal-client-proxy": "evil",
    "x-fal-user-agent": "evil",
    "x-fal-webhook": "https://evil.example",
    "x-fal-unheard-of": "1",
    "x-app-fal-disable-fallback": "1",
    "x-app-fal-can-disable-filter": "1",
    "x-http-method-override": "DELETE",
    "x-request-id": "request-of-the-caller",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
#: In addition to those that the sandbox adds to every answer.
FALS = {
    "www-authenticate": "Key",
    "proxy-authenticate": "Basic",
    "location": "https://evil.example/",
    "content-location": "https://evil.example/",
    "refresh": "0;url=https://evil.example/",
    "link": "<https://evil.example/>; rel=preload",
    "clear-site-data": '"*"',
    "content-disposition": "attachment",
    "etag": '"1"',
    "cache-control": "public, max-age=86400",
    "x-frame-options": "ALLOWALL",
    "x-request-id": "request-of-fal",
    "x-fal-internal": "1",
    "x-powered-by": "fal",
    "x-fal-runner-hints": "hint",
    "x-fal-billable-units": "1.5",
    "x-fal-error-type": "none",
    "x-fal-request-timeout-type": "user",
    "x-fal-needs-retry": "0",
    "x-fal-retryable": "false",
    # Short: further tries to open a stream wait for so long.
    "retry-after": "2",
}
#: With the values that must arrive; `x-fal-request-id` is fal's own, other for each call.
PASSED_BACK = {
    name: FALS[name]
    for name in (
        "x-fal-billable-units",
        "x-fal-error-type",
        "x-fal-request-timeout-type",
        "x-fal-needs-retry",
        "x-fal-retryable",
        "retry-after",
    )
}
PRIVATE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
#: The proxy's CORS headers for a page that is not allowed: no origin is named, so the page cannot read the answer.
TO_A_FOREIGN_PAGE = {
    "access-control-allow-credentials": "true",
    "access-control-expose-headers": "x-fal-request-id, x-fal-billable-units, x-fal-error-type, "
    "x-fal-request-timeout-type, x-request-id, retry-after, ratelimit, ratelimit-policy, quota, quota-policy, "
    "idempotency-replayed, location, link, content-disposition, x-fal-proxy-dropped",
    "vary": "Origin",
}


@dataclass(frozen=True)
class Case:
    """One kind of call: how it is made, and its headers at fal beside those that every call has."""

    name: str
    method: str
    path: str
    at_fal: tuple[tuple[str, str], ...]
    answers: str = JSON
    #: Answered from the job's one status stream, which is opened without any caller's headers.
    is_shared: bool = False

    def __str__(self) -> str:
        return self.name


#: Shorter than the plan keeps files; fal's calls know one of both headers.
LIFECYCLE = '{"expiration_duration_seconds":9}'
JSON_BODY = (("accept", JSON), ("content-type", JSON), ("content-length", str(len(BODY))))
OUTPUTS = ("x-fal-object-lifecycle-preference", LIFECYCLE)
CALL = (*JSON_BODY, OUTPUTS)
#: The plan drops all other wishes, and the answer says so.
DROPPED = {
    "x-fal-proxy-dropped": "x-app-fal-can-disable-filter, x-app-fal-disable-fallback, x-fal-no-retry, "
    "x-fal-retry-config, x-fal-runner-hint, x-fal-store-io, x-fal-tags, x-fal-user-id"
}
CASES = [
    Case("run", "POST", f"run/{NEXT}", CALL),
    Case("stream", "POST", f"run/{NEXT}/stream", (("accept", EVENTS), *CALL[1:]), EVENTS),
    Case("submit", "POST", f"queue/{NEXT}", CALL),
    Case("status", "GET", f"queue/{NEXT}/requests/{{job}}/status?logs=1", (("accept", EVENTS),), JSON, True),
    Case("status stream", "GET", f"queue/{NEXT}/requests/{{job}}/status/stream", (("accept", EVENTS),), EVENTS, True),
    Case("result", "GET", f"queue/{NEXT}/requests/{{job}}", (("accept", JSON),)),
    Case("cancel", "PUT", f"queue/{NEXT}/requests/{{job}}/cancel", (("accept", JSON), ("content-length", "0"))),
]
UPLOAD = b'{"content_type":"image/png","file_name":"a.png"}'
SENT_TO_INITIATE = (
    *JSON_BODY[:2],
    ("content-length", str(len(UPLOAD))),
    ("x-fal-object-lifecycle", LIFECYCLE),
    ("x-fal-object-lifecycle-preference", LIFECYCLE),
)


@pytest.fixture(params=SURFACES)
def surface(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send(stack: Stack, wire: Wire, surface: str, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """Make one call of alice's with everything in `CALLERS`."""
    return call(wire, surface, stack.token(), method, path, body, {**CALLERS, **headers})


def own_job(stack: Stack, wire: Wire) -> str:
    job = submit(wire, stack.token())
    stack.sandbox.forget()
    return job


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_these_headers_reach_fal_and_come_back(stack: Stack, wire: Wire, surface: str, case: Case) -> None:
    path = case.path.format(job=own_job(stack, wire)) if "{job}" in case.path else case.path
    stack.sandbox.fault("headers", headers=FALS)
    answer = send(stack, wire, surface, case.method, path, BODY if case.method == "POST" else b"")
    assert answer.status in (200, 202, 400), answer
    (received,) = stack.sandbox.requests()
    wishes = [] if case.is_shared else forwarded_headers()
    assert sorted(map(tuple, received["headers"])) == sorted([*always(stack), *wishes, *case.at_fal])
    dropped = DROPPED if case.method == "POST" else {}
    assert came_back(answer) == expected_back(answer, case.answers, {} if case.is_shared else PASSED_BACK) | dropped


def test_a_call_without_fals_options_has_none_at_fal(stack: Stack, wire: Wire) -> None:
    headers = [("authorization", f"Key {stack.token()}"), ("content-type", JSON)]
    assert wire.exchange("POST", f"/fal/run/{NEXT}", headers, BODY).status == 200
    (received,) = stack.sandbox.requests()
    assert sorted(map(tuple, received["headers"])) == sorted([*always(stack), *JSON_BODY])


@pytest.mark.parametrize(
    ("sent", "at_fal"),
    [
        ("3.3333333333333335", "3.3333333333333335"),
        ("1.0000000000000002", "1.0000000000000002"),
        ("86400", "86400.0"),
        ("2." + "0" * 64, "2.0"),
    ],
)
def test_a_timeout_is_passed_on_with_all_its_digits(stack: Stack, wire: Wire, sent: str, at_fal: str) -> None:
    headers = [("authorization", f"Key {stack.token()}"), ("content-type", JSON), ("x-fal-request-timeout", sent)]
    assert wire.exchange("POST", f"/fal/run/{NEXT}", headers, BODY).status == 200
    (received,) = stack.sandbox.requests()
    assert dict(received["headers"])["x-fal-request-timeout"] == at_fal


def test_an_upload_takes_neither_key_nor_session_to_the_files(stack: Stack, wire: Wire, surface: str) -> None:
    stack.sandbox.fault("headers", headers=FALS)
    answer = send(stack, wire, surface, "POST", "rest/storage/upload/initiate", UPLOAD)
    assert answer.status == 200, answer
    (initiate,) = stack.sandbox.requests()
    assert sorted(map(tuple, initiate["headers"])) == sorted([*always(stack), *forwarded_headers(), *SENT_TO_INITIATE])
    # The answer is the proxy's own document: it has none of fal's headers.
    assert came_back(answer) == {"content-type": JSON, **TO_A_FOREIGN_PAGE, **PRIVATE}
    stack.sandbox.forget()
    slot = urlsplit(answer.json()["upload_url"])
    assert f"{slot.scheme}://{slot.netloc}" == stack.url and not slot.query
    put = wire.exchange("PUT", slot.path, [*CALLERS.items(), ("content-type", "image/png")], PIXEL_PNG)
    assert put.status == 200, put
    (received,) = stack.sandbox.requests()
    wanted = [host_of(stack), ("content-type", "image/png"), ("content-length", str(len(PIXEL_PNG)))]
    assert sorted(map(tuple, received["headers"])) == sorted(wanted)
    assert came_back(put) == expected_back(put, JSON)


@pytest.mark.parametrize(
    # A stream is opened again until it is given up, at the times that fal names.
    "case",
    [
        pytest.param(case, id=str(case), marks=pytest.mark.slow if case.name == "status stream" else ())
        for case in CASES
    ],
)
def test_an_error_of_fal_returns_no_more_headers(stack: Stack, wire: Wire, case: Case) -> None:
    path = case.path.format(job=own_job(stack, wire)) if "{job}" in case.path else case.path
    stack.sandbox.fault("status", status=418, headers={**FALS, "x-fal-request-id": "fals-own"})
    try:
        answer = send(stack, wire, "hosts", case.method, path, BODY if case.method == "POST" else b"")
    except IncompleteRead as cut:
        # The stream had begun, as a further try takes a moment at random.
        assert case.name == "status stream" and b"bad_upstream" in cut.partial
        assert b"fals-own" not in cut.partial and b"evil" not in cut.partial
        return
    if case.name == "status stream":
        # fal's stream serves all its watchers: its refusal is not the answer to one of them.
        assert_refusal(answer, 502, "bad_upstream")
        assert not set(FALS.values()) & set(came_back(answer).values()) - {"1"}
        return
    assert answer.status == 418
    assert came_back(answer) == expected_back(answer, JSON) | (DROPPED if case.method == "POST" else {})


@pytest.mark.parametrize(
    "value", ["text/html", "text/html; charset=utf-8", "image/svg+xml", "application/json, text/html"]
)
def test_a_page_in_fals_answer_cannot_run_on_the_proxys_origin(stack: Stack, wire: Wire, value: str) -> None:
    stack.sandbox.fault("status", status=200, text="<script>alert(1)</script>", content_type=value)
    answer = send(stack, wire, "hosts", "POST", f"run/{NEXT}", BODY)
    assert answer.all("content-security-policy") == ["sandbox; default-src 'none'"]
    assert answer.all("x-content-type-options") == ["nosniff"]


def test_an_allowed_page_is_named_and_no_other(stack: Stack, wire: Wire) -> None:
    """fal allows every origin (`*`); the tenant's own list counts."""
    answer = send(stack, wire, "protocol", "POST", f"run/{NEXT}", BODY, origin=stack.other_origin)
    assert answer.all("access-control-allow-origin") == [stack.other_origin]
    assert answer.all("vary") == ["Origin"]
    for origin in ("https://evil.example", "null", f"{stack.other_origin}.evil.example", f"{stack.other_origin}0"):
        answer = send(stack, wire, "protocol", "POST", f"run/{NEXT}", BODY, origin=origin)
        assert answer.all("access-control-allow-origin") == []


def host_of(stack: Stack) -> tuple[str, str]:
    return ("host", urlsplit(stack.sandbox.url).netloc)


def always(stack: Stack) -> list[tuple[str, str]]:
    return [
        host_of(stack),
        ("authorization", f"Key {SANDBOX_KEY}"),
        ("accept-encoding", "identity"),
        ("user-agent", f"fal-proxy/{__version__}"),
        ("x-fal-client-proxy", f"fal-proxy/{__version__}"),
    ]


def forwarded_headers() -> list[tuple[str, str]]:
    return [("x-fal-queue-priority", "low"), ("x-fal-request-timeout", "30.5")]


def came_back(answer: Answer) -> dict[str, str]:
    """All headers but those of the connection and the server's own; each occurs once."""
    names = [name for name, _ in answer.headers]
    assert len(set(names)) == len(names), names
    hop = {"date", "content-length", "transfer-encoding", "connection"}
    found = {name: value for name, value in answer.headers if name not in hop}
    assert found.pop("x-request-id") == CALLERS["x-request-id"]
    return found


def expected_back(answer: Answer, content_type: str, passed: dict[str, str] = PASSED_BACK) -> dict[str, str]:
    expected = {**passed, **TO_A_FOREIGN_PAGE, "content-type": content_type, **PRIVATE}
    (expected["x-fal-request-id"],) = answer.all("x-fal-request-id")
    assert expected["x-fal-request-id"]
    if content_type == EVENTS:
        expected |= {"content-type": f"{EVENTS}; charset=utf-8", "cache-control": "no-store, no-transform"}
        expected["x-accel-buffering"] = "no"
    return expected


def test_the_sandbox_sends_the_headers_that_must_not_pass(stack: Stack) -> None:
    """The tests above mean something only if the sandbox sends those headers."""
    assert {"set-cookie", "access-control-allow-origin", "server", "x-fal-cdn-token"} <= set(UNWANTED_HEADERS)
    with Wire(stack.sandbox.url) as direct:
        stack.sandbox.fault("headers", headers=FALS)
        key = [("authorization", f"Key {SANDBOX_KEY}"), ("content-type", JSON)]
        sent = dict(direct.exchange("POST", f"/run/{NEXT}", key, BODY).headers)
    assert {**UNWANTED_HEADERS, **FALS}.items() <= sent.items()

"""Every refusal once, with its code; a refused call does not reach fal."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from pathlib import Path

import pytest

from proxy.app import create_app
from proxy.settings import read
from proxy.upstream.client import Timeouts
from tests.security.calls import JSON, SURFACES, call, slot, submit
from tests.security.hostile import NEXT
from tests.security.shape import BODY, assert_refusal
from tests.security.wire import Answer, Wire
from tests.support.images import PIXEL_PNG
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import free_port, running
from tests.support.stack import Stack, plan_file, proxy_in_front_of, sandbox_environ
from tests.support.waiting import wait_until

RUN = f"/fal/run/{NEXT}"
#: Paths that need a credential, with their methods.
DOORS = [
    ("POST", "/api/fal/proxy"),
    ("POST", RUN),
    ("GET", f"/fal/queue/{NEXT}/requests/x/status"),
    ("POST", "/v1/sessions"),
    ("POST", "/v1/sessions/cookie"),
    ("GET", "/v1/session"),
    ("DELETE", "/v1/session"),
    ("GET", "/v1/endpoints"),
    ("GET", f"/v1/endpoints/{NEXT}"),
    ("POST", "/v1/estimate"),
]


@pytest.fixture
def own(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    """A proxy of the test's own, not in dev mode, with an unused flood guard."""
    with proxy_in_front_of(sandbox, tmp_path) as stack:
        yield stack


def run(wire: Wire, headers: dict[str, str], path: str = RUN) -> Answer:
    return wire.exchange("POST", path, {"content-type": JSON, **headers}.items(), BODY)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# --- who is asking


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_every_path_refuses_a_call_without_a_credential(stack: Stack, wire: Wire, method: str, path: str) -> None:
    assert_refusal(
        wire.exchange(method, path, [("x-fal-target-url", f"https://fal.run/{NEXT}")]), 401, "unauthenticated"
    )
    assert not stack.sandbox.requests()


def test_a_wrong_credential_is_never_ignored(stack: Stack, wire: Wire) -> None:
    """The first credential decides, even when a good one follows in another place."""
    good = stack.token()
    for value in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {good}",
        good,
        f"Bearer {good} x",
        f"Key {good}, Bearer {good}",
        f"Bearer {good}  x",
        f"Bearer\t{good}",
        f"Bearer \t{good}",
    ):
        headers = {"authorization": value, "x-fal-proxy-session": good, "cookie": f"fal_session={good}"}
        assert_refusal(run(wire, headers), 401, "unauthenticated")
        assert_refusal(run(wire, {"authorization": value}, f"/s/{good}/api/fal/proxy"), 401, "unauthenticated")
    for value in ("", "x", good[:-1], f"{good}x", "x" * 5000, good.swapcase()):
        assert_refusal(
            run(wire, {"x-fal-proxy-session": value, "cookie": f"fal_session={good}"}), 401, "unauthenticated"
        )
    twice = [("authorization", f"Bearer {good}")] * 2
    assert_refusal(wire.exchange("POST", RUN, [*twice, ("content-type", JSON)], BODY), 401, "unauthenticated")
    twice = [("x-fal-proxy-session", good)] * 2
    assert_refusal(wire.exchange("POST", RUN, [*twice, ("content-type", JSON)], BODY), 401, "unauthenticated")
    assert not stack.sandbox.requests()


@pytest.mark.parametrize("surface", SURFACES)
def test_invalid_sessions_are_refused(stack: Stack, wire: Wire, surface: str) -> None:
    target = ("POST", f"run/{NEXT}", BODY)
    assert_refusal(call(wire, surface, stack.token(ttl_seconds=-1), *target), 401, "session_expired")
    assert_refusal(call(wire, surface, stack.token(tenant="nobody"), *target), 401, "unauthenticated")
    revoked = stack.token("revoked")
    assert wire.exchange("DELETE", "/v1/session", bearer(revoked).items()).status == 204
    assert_refusal(call(wire, surface, revoked, *target), 401, "session_revoked")
    assert not stack.sandbox.requests()


def test_a_tenant_key_counts_in_one_place_only(stack: Stack, wire: Wire) -> None:
    """Paths end up in many logs, and any page makes the browser send a cookie."""
    key = stack.tenant_key()
    origin = {"origin": stack.other_origin}
    assert_refusal(run(wire, {"x-fal-proxy-session": key}), 401, "unauthenticated")
    assert_refusal(run(wire, {"cookie": f"fal_session={key}", **origin}), 401, "unauthenticated")
    assert_refusal(call(wire, "session in the path", key, "POST", f"run/{NEXT}", BODY), 401, "unauthenticated")
    for wrong in (key[:-1], key + "x", key[:20] + "x" + key[21:], f"fpk_{'0' * 16}_{key.rpartition('_')[2]}"):
        assert_refusal(run(wire, bearer(wrong)), 401, "unauthenticated")
    assert not stack.sandbox.requests()
    assert run(wire, bearer(key)).status == 200


# --- from which page


def test_a_cookie_counts_only_from_a_page_that_may_call(stack: Stack, wire: Wire) -> None:
    cookie = {"cookie": f"fal_session={stack.token()}"}
    for more in (
        {},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": f"{stack.other_origin}.evil.example"},
        {"origin": "https://app.globex.example"},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"referer": f"{stack.other_origin}/page"},
    ):
        for path in (RUN, "/api/fal/proxy", "/v1/sessions/cookie"):
            headers = {**cookie, **more, "x-fal-target-url": f"https://fal.run/{NEXT}"}
            assert_refusal(run(wire, headers, path), 403, "origin_not_allowed")
        revoke = wire.exchange("DELETE", "/v1/session", {**cookie, **more}.items())
        assert_refusal(revoke, 403, "origin_not_allowed")
    assert not stack.sandbox.requests()
    for more in ({"origin": stack.other_origin}, {"origin": stack.url}, {"sec-fetch-site": "same-origin"}):
        assert run(wire, {**cookie, **more}).status == 200


def test_guests_come_from_a_tenants_own_pages(own: Stack) -> None:
    with Wire(own.url) as wire:
        for headers in (
            {},
            {"origin": "null"},
            {"origin": "https://evil.example"},
            {"origin": "https://app.globex.example"},
        ):
            answer = wire.exchange("POST", "/v1/sessions/guest", headers.items())
            assert_refusal(answer, 403, "origin_not_allowed")
        for tenant in ("globex", "small", "nobody"):
            form = json.dumps({"tenant": tenant}).encode()
            headers = {"origin": own.other_origin, "content-type": JSON}
            assert_refusal(
                wire.exchange("POST", "/v1/sessions/guest", headers.items(), form), 403, "origin_not_allowed"
            )
        for origin in ("https://evil.example", "https://app.globex.example", "null"):
            headers = {"origin": origin, "content-type": JSON}
            named = wire.exchange("POST", "/v1/sessions/guest", headers.items(), b'{"tenant":"acme"}')
            assert_refusal(named, 403, "origin_not_allowed")
        welcome = wire.exchange("POST", "/v1/sessions/guest", [("origin", own.other_origin)])
        assert welcome.status == 201
        (cookie,) = welcome.all("set-cookie")
        assert {"HttpOnly", "Secure", "SameSite=lax"} <= set(cookie.split("; "))
        # The guests' plan is narrower than the tenant's.
        guest = bearer(welcome.json()["token"])
        assert_refusal(run(wire, guest, "/fal/run/fal-ai/llavav15-13b"), 403, "endpoint_not_allowed")
        assert run(wire, guest).status == 200


def test_a_preflight_from_a_foreign_page_is_refused(stack: Stack, wire: Wire) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = wire.exchange("OPTIONS", "/api/fal/proxy", asked.items())
    assert (answer.status, answer.json()["error_type"]) == (403, "origin_not_allowed")
    assert answer.all("access-control-allow-origin") == []
    asked = {"origin": stack.other_origin, "access-control-request-method": "POST"}
    headers = {**asked, "access-control-request-headers": "authorization, x-fal-target-url"}
    answer = wire.exchange("OPTIONS", "/api/fal/proxy", headers.items())
    assert (answer.status, answer.all("access-control-allow-origin")) == (200, [stack.other_origin])


# --- what they may do


def test_the_scope_of_a_session_and_of_a_plan(stack: Stack, wire: Wire) -> None:
    for token, path in (
        (stack.token(endpoints=["fal-ai/llavav15-13b"]), RUN),
        (stack.token(endpoints=[]), RUN),
        (stack.token(endpoints=["fal-ai/flux/dev"]), "/fal/run/fal-ai/flux/dev"),
        (stack.token(tenant="small"), "/fal/queue/fal-ai/llavav15-13b"),
        (stack.token(tenant="small", endpoints=["fal-ai/llavav15-13b"]), "/fal/run/fal-ai/llavav15-13b"),
        (stack.tenant_key("small"), "/fal/run/fal-ai/llavav15-13b/stream"),
    ):
        assert_refusal(run(wire, bearer(token), path), 403, "endpoint_not_allowed")
    assert not stack.sandbox.requests()


def test_keys_mint_and_sessions_do_not(stack: Stack, wire: Wire) -> None:
    form, session, key = b'{"subject":"eve"}', stack.token(), stack.tenant_key()
    headers = {**bearer(session), "content-type": JSON}
    assert_refusal(wire.exchange("POST", "/v1/sessions", headers.items(), form), 403, "not_allowed")
    assert_refusal(wire.exchange("POST", "/v1/sessions/cookie", bearer(key).items()), 403, "not_allowed")
    assert_refusal(wire.exchange("DELETE", "/v1/session", bearer(key).items()), 403, "not_allowed")
    wider = b'{"subject":"eve","endpoints":["fal-ai/llava-next","fal-ai/llavav15-13b"]}'
    headers = {**bearer(stack.tenant_key("small")), "content-type": JSON}
    assert_refusal(wire.exchange("POST", "/v1/sessions", headers.items(), wider), 403, "endpoint_not_allowed")
    longer = wire.exchange("POST", "/v1/sessions", headers.items(), b'{"subject":"eve","ttl_seconds":100000000}')
    token = longer.json()["token"]
    stack.clock.advance(901)
    assert_refusal(run(wire, bearer(token)), 401, "session_expired")


def test_a_flood_of_guests_gets_429_with_retry_after(own: Stack) -> None:
    with Wire(own.url) as wire:
        answers = [wire.exchange("POST", "/v1/sessions/guest", [("origin", own.other_origin)]) for _ in range(61)]
    assert [answer.status for answer in answers[:60]] == [201] * 60
    assert_refusal(answers[60], 429, "rate_limited")
    assert answers[60].json()["scope"] == "ip" and answers[60].json()["retry_after"] >= 1


def test_unknown_paths_and_methods_are_refused(own: Stack) -> None:
    headers = bearer(own.token()).items()
    with Wire(own.url) as wire:
        for path in (
            "/",
            "/nothing",
            "/v1",
            "/v1/",
            "/api/fal/proxy/",
            "/api/fal",
            "/fal",
            "/s//api/fal/proxy",
            "/uploads/",
            "//",
        ):
            assert_refusal(wire.exchange("GET", path, headers), 404, "not_found")
        for method, path in (
            ("GET", "/v1/sessions"),
            ("PUT", "/v1/session"),
            ("POST", "/livez"),
            ("DELETE", "/v1/endpoints"),
        ):
            assert_refusal(wire.exchange(method, path, headers), 405, "method_not_allowed")
        for path in ("/v1/endpoints/fal-ai/flux/dev", "/v1/endpoints/fal-ai", "/v1/endpoints/"):
            assert_refusal(wire.exchange("GET", path, headers), 404, "not_found")
        for method in ("PATCH", "DELETE", "HEAD"):
            refused = wire.exchange(method, "/api/fal/proxy", headers)
            assert_refusal(refused, 405, "method_not_allowed", has_body=method != "HEAD")
            assert refused.all("allow") == ["GET, POST, PUT"]


# --- fal's failures: a call that may have run is a 500, which no client repeats; one that is safe to repeat says so

LOST = [
    {"fault": "drop", "when": "before"},
    {"fault": "drop", "when": "lost"},
    {"fault": "drop", "when": "during"},
    {"fault": "redirect", "status": 307},
    {"fault": "redirect", "status": 303},
    {"fault": "nginx", "status": 502},
    {"fault": "nginx", "status": 503},
    {"fault": "nginx", "status": 504},
    {"fault": "huge", "bytes": 5 * 2**20},
    {"fault": "headers", "headers": {"content-encoding": "gzip"}},
]


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: "-".join(map(str, fault.values()))[:30])
def test_a_lost_answer_is_not_repeated_by_the_proxy(stack: Stack, wire: Wire, fault: dict[str, object]) -> None:
    token = stack.token()
    job, upload = submit(wire, token), slot(wire, token)
    stack.sandbox.forget()
    stack.sandbox.fault(**fault)  # type: ignore[arg-type]
    for path in (f"run/{NEXT}", f"queue/{NEXT}"):
        assert_refusal(call(wire, "hosts", token, "POST", path, BODY), 500, "upstream_ambiguous")
    for method, tail in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel")):
        answer = call(wire, "protocol", token, method, f"queue/{NEXT}/requests/{job}{tail}")
        assert_refusal(answer, 502, "bad_upstream")
        assert answer.json()["scope"] == "upstream"
    wish = b'{"content_type":"image/png","file_name":"a.png"}'
    assert_refusal(call(wire, "hosts", token, "POST", "rest/storage/upload/initiate", wish), 502, "bad_upstream")
    assert_refusal(wire.exchange("PUT", upload, [("content-type", "image/png")], PIXEL_PNG), 502, "bad_upstream")
    # The proxy repeats no call that may run or change something.
    assert [record["method"] for record in stack.sandbox.requests() if record["method"] != "GET"] == [
        "POST",
        "POST",
        "PUT",
        "POST",
        "PUT",
    ]


def submit_alone(stack: Stack, token: str) -> str:
    with Wire(stack.url) as own:
        return submit(own, token)


def test_a_read_on_a_connection_that_is_just_closed_is_repeated(stack: Stack, wire: Wire) -> None:
    token = stack.token()
    # These leave connections in the pool: what the proxy asks for earlier jobs meanwhile may take one of them.
    stack.sandbox.fault("delay", delay=0.3, times=3, on={"operation": "submit"})
    with ThreadPoolExecutor(3) as threads:
        job, *_ = threads.map(lambda _: submit_alone(stack, token), range(3))
    stack.sandbox.fault("drop", when="before", times=1, on={"operation": "result"})
    answer = call(wire, "protocol", token, "GET", f"queue/{NEXT}/requests/{job}")
    assert answer.status in (200, 400), answer
    assert len([one for one in stack.sandbox.requests() if one["path"].endswith(job)]) == 2


def test_a_key_that_fal_refuses_is_not_the_callers_fault(stack: Stack, wire: Wire) -> None:
    """A 401 would make the app log its user out."""
    token = stack.token()
    job, upload = submit(wire, token), slot(wire, token)
    stack.sandbox.fault("status", status=401)
    for path in (f"run/{NEXT}", f"run/{NEXT}/stream", f"queue/{NEXT}"):
        assert_refusal(call(wire, "hosts", token, "POST", path, BODY), 500, "upstream_rejected_key")
    for tail in ("/status", "/status/stream", ""):
        answer = call(wire, "hosts", token, "GET", f"queue/{NEXT}/requests/{job}{tail}")
        assert_refusal(answer, 500, "upstream_rejected_key")
    # Files go to a signed URL, without the key.
    assert_refusal(wire.exchange("PUT", upload, [("content-type", "image/png")], PIXEL_PNG), 502, "bad_upstream")


def test_a_refusal_of_the_file_store_is_not_quoted(stack: Stack, wire: Wire) -> None:
    """File stores quote the refused signature in their answer."""
    path = slot(wire, stack.token())
    stack.sandbox.fault("status", status=400, body={"StringToSign": "the-signature"})
    answer = wire.exchange("PUT", path, [("content-type", "image/png")], PIXEL_PNG)
    assert_refusal(answer, 502, "bad_upstream")
    assert b"the-signature" not in answer.body


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"file_url": "https://v3.fal.media/files/a.png"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "https://evil.example/x"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "https://v3.fal.media.evil.example/x"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "http://v3.fal.media/x"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "https://u@v3.fal.media/x"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "https://v3.fal.media:8443/x"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "file:///etc/passwd"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "http://169.254.169.254/latest"},
        {"file_url": "https://v3.fal.media/x", "upload_url": "https://["},
        {"file_url": "https://v3.fal.media/x", "upload_url": 5},
        {"file_url": "javascript:alert(1)", "upload_url": "https://v3.fal.media/x"},
    ],
)
def test_files_go_to_fals_own_store_and_nowhere_else(stack: Stack, wire: Wire, body: object) -> None:
    stack.sandbox.fault("status", status=200, body=body)
    wish = b'{"content_type":"image/png","file_name":"a.png"}'
    answer = call(wire, "hosts", stack.token(), "POST", "rest/storage/upload/initiate", wish)
    assert_refusal(answer, 502, "bad_upstream")


#: What becomes part of paths, headers and keys is of a narrow alphabet.
NO_IDS = [
    "",
    "../../x",
    "a/b",
    "a b",
    "a\r\nx: y",
    "a\x00b",
    "é",
    "%2e",
    "a?b",
    "a#b",
    "x" * 129,
    ["a"],
    {"a": 1},
    True,
]


@pytest.mark.parametrize(
    "body", [None, {}, [], "x", {"request_id": None}, {"request_id": 5}, *({"request_id": id_} for id_ in NO_IDS)]
)
def test_a_job_without_an_id_belongs_to_no_caller(stack: Stack, wire: Wire, body: object) -> None:
    stack.sandbox.fault("status", status=200, body=body)
    assert_refusal(call(wire, "protocol", stack.token(), "POST", f"queue/{NEXT}", BODY), 500, "upstream_ambiguous")


def test_headers_of_fal_that_cannot_be_sent_on_do_not_lose_an_answer(stack: Stack, wire: Wire) -> None:
    stack.sandbox.fault(
        "headers", headers={"x-fal-billable-units": "\xe6\x97\xa5", "content-type": "text/\xe6\x97\xa5"}
    )
    answer = call(wire, "protocol", stack.token(), "POST", f"run/{NEXT}", BODY)
    assert answer.status == 200 and answer.json()["output"]
    assert answer.all("x-fal-billable-units") == [] and answer.all("content-type") == ["application/octet-stream"]


@pytest.mark.parametrize("id_", ["a b", "a/b", "x" * 129, "%0d%0a"])
def test_a_malformed_id_of_fal_is_not_sent_as_a_header(stack: Stack, wire: Wire, id_: str) -> None:
    stack.sandbox.fault("headers", headers={"x-fal-request-id": id_})
    answer = call(wire, "protocol", stack.token(), "POST", f"run/{NEXT}", BODY)
    assert answer.status == 200 and answer.all("x-fal-request-id") == []


@pytest.mark.parametrize(
    ("given", "passed"),
    [("7", ["7"]), ("86400", ["86400"]), *((wait, []) for wait in ["86401", "9" * 5000, "-1", "nan", "1e9", "soon"])],
)
def test_the_waiting_time_that_fal_names_is_passed_on(stack: Stack, wire: Wire, given: str, passed: list[str]) -> None:
    stack.sandbox.fault("status", status=418, headers={"retry-after": given})
    answer = call(wire, "protocol", stack.token(), "POST", f"run/{NEXT}", BODY)
    assert answer.status == 418 and answer.all("retry-after") == passed


@pytest.mark.parametrize("id_", NO_IDS)
def test_a_status_is_about_the_job_that_was_asked_for(stack: Stack, wire: Wire, id_: object) -> None:
    """The client's next URLs are built from the id in the status."""
    token = stack.token()
    job = call(wire, "hosts", token, "POST", f"queue/{NEXT}", BODY).json()["request_id"]
    document = {
        "status": "IN_QUEUE",
        "request_id": id_,
        "status_url": "https://evil.example/",
    }
    stack.sandbox.fault("status", status=202, body=document, on={"operation": "status"})
    stack.sandbox.fault("status", status=503, on={"operation": "status-stream"})
    answer = call(wire, "hosts", token, "GET", f"queue/{NEXT}/requests/{job}/status")
    assert answer.status == 202 and answer.json()["request_id"] == job
    assert answer.json()["status_url"] == f"{stack.url}/fal/queue/{NEXT}/requests/{job}/status"


def test_an_unreachable_fal_is_reported(sandbox: SandboxControl, tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    environ = {f"FAL_{name}_URL": f"{closed}/{name.lower()}" for name in ("RUN", "QUEUE", "REST")}
    with proxy_in_front_of(sandbox, tmp_path, environ=environ) as stack, Wire(stack.url) as wire:
        for path in (f"run/{NEXT}", f"run/{NEXT}/stream", f"queue/{NEXT}"):
            answer = call(wire, "hosts", stack.token(), "POST", path, BODY)
            assert_refusal(answer, 503, "upstream_unavailable")
            assert answer.all("retry-after") == ["1"] and answer.json()["scope"] == "upstream"


#: A tenth of a second for fal, as no operator would set it.
HURRIED = Timeouts(read=0.1, result=0.1, run=0.1, status_stream=0.1)


def test_a_silent_fal_is_reported(sandbox: SandboxControl, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'proxy.db'}",
        "PROXY_PUBLIC_URL": url,
    }
    settings = read({**sandbox_environ(sandbox.url), **own})
    with proxy_in_front_of(sandbox, tmp_path) as patient, Wire(patient.url) as wire:
        token = patient.token()
        job = submit(wire, token)
    app = create_app(settings, timeouts=HURRIED, plan_file=plan_file("http://localhost:1", url))
    with running(app, port=port), Wire(url) as wire:
        sandbox.fault("hang")
        for path in (f"run/{NEXT}", f"queue/{NEXT}"):
            assert_refusal(call(wire, "hosts", token, "POST", path, BODY), 500, "upstream_ambiguous")
        for method, tail in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel")):
            answer = call(wire, "hosts", token, method, f"queue/{NEXT}/requests/{job}{tail}")
            assert_refusal(answer, 504, "upstream_timeout")
        # A stream begins at once. It ends with an error or is cut, but never shows the job as completed.
        try:
            stream = call(wire, "hosts", token, "GET", f"queue/{NEXT}/requests/{job}/status/stream").body
        except IncompleteRead as cut:
            stream = cut.partial
        assert b"COMPLETED" not in stream


# --- callers that hang up


def test_a_caller_who_hangs_up_in_a_body_is_no_failure(own: Stack) -> None:
    with Wire(own.url) as wire:
        upload = slot(wire, own.token())
        own.sandbox.forget()
        begun = [
            ("POST", RUN, own.token()),
            ("POST", "/fal/rest/storage/upload/initiate", own.token()),
            ("POST", "/v1/sessions", own.tenant_key()),
            ("PUT", upload, own.token()),
        ]
        for method, path, token in begun:
            kind = "image/png" if path == upload else JSON
            lines = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: {kind}\r\n"
            with socket.create_connection(wire.address, 60) as caller:
                caller.sendall(f"{lines}content-length: 1000\r\n\r\nbegun".encode())
        counted = metrics_with(wire, hung_up=len(begun))
        assert b'error_type="internal"} 0.0' in counted
    assert not [call for call in own.sandbox.requests() if call["host"] != "cdn"]


def metrics_with(wire: Wire, hung_up: int) -> bytes:
    """The proxy's metrics, as soon as they count so many callers who hung up."""

    def metrics() -> bytes:
        said = wire.exchange("GET", "/metrics").body
        found = re.findall(rb'fal_proxy_requests_total\{status="499".*\} (\S+)', said)
        return said if sum(map(float, found)) >= hung_up else b""

    return wait_until(metrics, "not all who hung up are counted")


# --- the proxy's own store


def test_no_call_passes_while_a_store_is_down(own: Stack, tmp_path: Path) -> None:
    with Wire(own.url) as wire:
        job = submit(wire, own.token())
        with sqlite3.connect(tmp_path / "proxy.db") as database:
            for table in ("jobs", "uploads"):
                database.execute(f"DROP TABLE {table}")
        own.sandbox.forget()
        for method, path in (
            ("POST", f"run/{NEXT}"),
            ("POST", f"queue/{NEXT}"),
            ("GET", f"queue/{NEXT}/requests/{job}x"),
        ):
            refused = call(wire, "hosts", own.token("bob"), method, path, BODY if method == "POST" else b"")
            assert_refusal(refused, 503, "store_unavailable")
            assert refused.all("retry-after") == ["1"]
        upload = wire.exchange("PUT", "/uploads/x", [("content-type", "image/png")], PIXEL_PNG)
        assert_refusal(upload, 503, "store_unavailable")
        assert not own.sandbox.requests()


def test_while_revocations_cannot_be_read_every_session_is_refused(own: Stack, tmp_path: Path) -> None:
    with Wire(own.url) as wire:
        token = own.token()
        assert run(wire, bearer(token)).status == 200
        with sqlite3.connect(tmp_path / "proxy.db") as database:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                if not table.startswith("sqlite_"):
                    database.execute(f'DROP TABLE "{table}"')
        own.sandbox.forget()
        own.clock.advance(5)
        assert_refusal(run(wire, bearer(token)), 503, "store_unavailable")
        assert_refusal(wire.exchange("GET", "/v1/session", bearer(token).items()), 503, "store_unavailable")
        assert wire.exchange("GET", "/livez").status == 200
        assert not own.sandbox.requests()

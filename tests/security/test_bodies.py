"""How much of a body is read, and when: nothing before the caller is allowed to call."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proxy.http.json_bounds import MAX_DEPTH, MAX_VALUES
from tests.server.talk import talk
from tests.support.images import PIXEL, PIXEL_PNG
from tests.support.limited import NEXT
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of
from tests.support.waiting import wait_until

MIB = 1024 * 1024
FORMS = ["/v1/sessions", "/v1/sessions/guest", "/v1/admin/sessions", "/v1/admin/tenants/acme/keys"]
ADMIN = "an-admin-token-of-more-than-32-bytes"


@pytest.fixture(scope="module")
def shared_small(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy that holds 8 MiB of bodies in total, and 2 MiB per address."""
    environ = {"PROXY_MAX_BODY_MEMORY": str(8 * MIB), "PROXY_ADMIN_TOKEN": ADMIN}
    with proxy_in_front_of(shared_sandbox, tmp_path_factory.mktemp("small"), environ=environ) as stack:
        yield stack


@pytest.fixture
def small(shared_small: Stack, sandbox: SandboxControl) -> Stack:
    return shared_small


def question(**more: Any) -> dict[str, Any]:
    return {"image_url": PIXEL, "prompt": "?", **more}


def nest(levels: int) -> bytes:
    return json.dumps(question())[:-1].encode() + b', "more": ' + b"[" * levels + b"]" * levels + b"}"


def check_refusal(answer: httpx.Response, status: int, code: str, words: str) -> None:
    assert (answer.status_code, answer.json()["error_type"]) == (status, code), answer.text
    assert words in answer.json()["message"]


def port_of(stack: Stack) -> int:
    return int(stack.url.rpartition(":")[2])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/sessions/guest", (), 403),
        ("/v1/sessions/guest", ("origin: https://evil.example",), 403),
        ("/v1/sessions", (), 401),
        ("/v1/admin/sessions", (), 401),
        ("/v1/admin/tenants", (), 401),
        ("/v1/jobs", (), 401),
        (f"/fal/run/{NEXT}", (), 401),
        (f"/fal/queue/{NEXT}", ("authorization: Bearer none",), 401),
        ("/fal/rest/storage/upload/initiate", (), 401),
        ("/api/fal/proxy", (f"x-fal-target-url: https://fal.run/{NEXT}",), 401),
    ],
)
def test_a_caller_who_may_not_ask_is_refused_before_the_body_is_there(
    small: Stack, path: str, headers: tuple[str, ...], status: int
) -> None:
    method = "PUT" if path.endswith("/tenants") else "POST"
    head = [
        f"{method} {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        "content-length: 12000000",
        *headers,
    ]
    answer, closed = talk(port_of(small), "\r\n".join([*head, "", "{"]).encode())
    assert closed and answer.startswith(f"HTTP/1.1 {status} ".encode()), answer


@pytest.mark.parametrize("path", [f"/fal/run/{NEXT}", f"/fal/queue/{NEXT}", "/v1/jobs"])
@pytest.mark.parametrize("key", [{}, {"idempotency-key": "one-of-many"}], ids=["plain", "with a key"])
def test_a_caller_who_has_no_calls_left_is_refused_before_the_body_is_read(
    sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory, path: str, key: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("few")
    limits = {"rate_limits": {"session": "1/minute"}, "poll_limits": {"session": "1/minute"}}
    plans = {"plans": {"few": {"endpoints": [NEXT], **limits}}, "tenants": [{"id": "acme", "plan": "few"}]}
    (folder / "plans.yaml").write_text(json.dumps(plans))
    with proxy_in_front_of(sandbox, folder, environ={"PROXY_CONFIG": str(folder / "plans.yaml")}) as stack:
        token = stack.token(ttl_seconds=60)
        with stack.client(token) as alice:
            assert alice.post(f"/fal/run/{NEXT}", json=question(), headers=key).status_code == 200
            # A repetition would be a poll.
            assert alice.get("/v1/jobs").status_code == 200
        more = [f"{name}: {value}-more" for name, value in key.items()]
        lines = [
            f"POST {path} HTTP/1.1",
            "host: x",
            f"authorization: Bearer {token}",
            "content-length: 90",
            *more,
            "",
            "{",
        ]
        answer, closed = talk(port_of(stack), "\r\n".join(lines).encode())
        assert closed and answer.startswith(b"HTTP/1.1 429 "), answer


@pytest.mark.parametrize("path", FORMS)
def test_forms_of_the_proxy_must_be_small(small: Stack, path: str) -> None:
    credential = ADMIN if "admin" in path else small.tenant_key()
    with small.client(credential, headers={"origin": small.other_origin}) as backend:
        body = {"subject": "x", "tenant": "acme", "name": "x" * 70_000}
        check_refusal(backend.post(path, json=body), 413, "body_too_large", "65536 bytes")


@pytest.mark.parametrize("key", [{}, {"idempotency-key": "deep"}], ids=["plain", "with a key"])
@pytest.mark.parametrize("levels", [MAX_DEPTH, 254, 300, 1023, 40_000])
def test_json_that_is_too_deep_is_refused_alike_with_a_key_and_without(
    stack: Stack, key: dict[str, str], levels: int
) -> None:
    with stack.client(headers={"content-type": "application/json", **key}) as alice:
        for path in (f"/fal/run/{NEXT}", f"/fal/queue/{NEXT}"):
            check_refusal(alice.post(path, content=nest(levels)), 400, "bad_request", "nested deeper")
        body = b'{"endpoint": "%s", "input": %s}' % (NEXT.encode(), nest(levels))
        check_refusal(alice.post("/v1/jobs", content=body), 400, "bad_request", "nested deeper")


@pytest.mark.parametrize("text", [b"null", b"[]", b'"x"', b"1", b"true", b"0"])
@pytest.mark.parametrize("key", [{}, {"idempotency-key": "no-object"}], ids=["plain", "with a key"])
def test_json_that_is_no_object_is_refused_alike_with_a_key_and_without(
    stack: Stack, text: bytes, key: dict[str, str]
) -> None:
    with stack.client(headers={"content-type": "application/json", **key}) as alice:
        for host in ("run", "queue"):
            check_refusal(alice.post(f"/fal/{host}/{NEXT}", content=text), 422, "invalid_input", "object")
            target = {"x-fal-target-url": f"https://{'' if host == 'run' else 'queue.'}fal.run/{NEXT}"}
            check_refusal(alice.post("/api/fal/proxy", content=text, headers=target), 422, "invalid_input", "object")


def test_json_with_too_many_values_is_refused(stack: Stack) -> None:
    with stack.client(headers={"content-type": "application/json"}) as alice:
        many = json.dumps(question())[:-1].encode() + b', "more": [' + b"1," * MAX_VALUES + b"1]}"
        check_refusal(
            alice.post(f"/fal/run/{NEXT}", content=many), 400, "bad_request", f"more than {MAX_VALUES} values"
        )


def test_text_that_looks_deep_is_not(stack: Stack) -> None:
    with stack.client() as alice:
        for text in ("[" * 3000, '\\"[{' * 300, "," * 3000):
            assert alice.post(f"/fal/run/{NEXT}", json=question(prompt=text)).status_code == 200


def test_a_refusal_names_only_the_first_problems(stack: Stack) -> None:
    with stack.client() as alice:
        answer = alice.post(f"/fal/run/{NEXT}", json=question(images=[7] * 5000))
        assert answer.status_code == 200 or len(answer.json()["detail"]) <= 100


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "identity, gzip", "GZIP", "aes128gcm"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_compressed_body_is_refused_and_its_coding_is_named(stack: Stack, coding: str, is_packed: bool) -> None:
    plain = json.dumps(question()).encode()
    body = gzip.compress(plain) if is_packed else plain
    json_headers = {"content-type": "application/json", "content-encoding": coding}
    with stack.client(headers=json_headers) as alice:
        answers = [alice.post(path, content=body) for path in (f"/fal/run/{NEXT}", "/v1/jobs")]
        answers.append(alice.post("/fal/rest/storage/upload/initiate", content=body))
        answers.append(alice.post("/v1/uploads", content=body, headers={"content-type": "image/png"}))
        form = {"content-type": "multipart/form-data; boundary=b"}
        answers.append(alice.post("/v1/uploads", content=b"--b\r\n" + body, headers=form))
    for answer in answers:
        check_refusal(answer, 415, "unsupported_media_type", coding.strip()[:2])
        assert answer.headers["accept-encoding"] == "identity"
    assert stack.sandbox.requests() == []


@pytest.mark.parametrize(
    "header", ["Content-Encoding: gzip", "content-encoding: br", "Content-Transfer-Encoding: base64"]
)
def test_a_file_of_a_form_that_has_a_coding_is_refused(stack: Stack, header: str) -> None:
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n{header}\r\n\r\n'
    form = {"content-type": "multipart/form-data; boundary=b"}
    with stack.client(headers=form) as alice:
        answer = alice.post("/v1/uploads", content=head.encode() + PIXEL_PNG + b"\r\n--b--\r\n")
        plain = head.replace(header, f"{header.partition(':')[0]}: {'binary' if 'Transfer' in header else 'identity'}")
        accepted = alice.post("/v1/uploads", content=plain.encode() + PIXEL_PNG + b"\r\n--b--\r\n")
    check_refusal(answer, 415, "unsupported_media_type", header.split()[1])
    assert accepted.status_code == 201


NOT_JSON = {
    "number is infinity": b'{"max_tokens": 1e400}',
    "UTF-8 byte order mark": b"\xef\xbb\xbf{}",
    "empty document": b"",
    "trailing comma": b'{"prompt": "a",}',
    "not valid UTF-8": "{}".encode("utf-16"),
    "expected a JSON value": b"prompt=a",
}


@pytest.mark.parametrize("reason", NOT_JSON)
def test_what_is_not_json_is_said(stack: Stack, reason: str) -> None:
    with stack.client(headers={"content-type": "application/json"}) as alice:
        answer = alice.post(f"/fal/run/{NEXT}", content=NOT_JSON[reason])
    check_refusal(answer, 400, "bad_request", reason)
    assert "The body is not JSON (line 1, column " in answer.json()["message"]


def test_a_body_with_the_identity_coding_is_accepted(stack: Stack) -> None:
    with stack.client(headers={"content-encoding": "identity"}) as alice:
        assert alice.post(f"/fal/run/{NEXT}", json=question()).status_code == 200


def test_bodies_of_one_address_have_a_limit_that_is_released(small: Stack) -> None:
    """Each of eight connections sends a megabyte of a body and waits: an address may hold two of them."""
    token = small.token()
    lines = [f"POST /fal/run/{NEXT} HTTP/1.1", "host: x", f"authorization: Bearer {token}", "content-length: 1500000"]
    begun = "\r\n".join([*lines, "content-type: application/json", "", '{"prompt": "']).encode() + b"x" * MIB
    held = []
    try:
        for _ in range(8):
            wire = socket.create_connection(("127.0.0.1", port_of(small)), timeout=60)
            wire.sendall(begun)
            held.append(wire)
        with small.client(token) as alice:

            def refusal() -> httpx.Response | None:
                answer = alice.post(f"/fal/run/{NEXT}", json=question(prompt="x" * MIB))
                return answer if answer.status_code == 503 else None

            answer = wait_until(refusal, "a body beyond the bound was taken")
            check_refusal(answer, 503, "overloaded", "Too many large bodies")
            assert answer.json()["scope"] == "ip"
            assert answer.headers["retry-after"] == "1"
            # Small bodies do not count.
            assert alice.post(f"/fal/run/{NEXT}", json=question()).status_code == 200
            assert body_bytes(alice) <= 2 * MIB
            for wire in held:
                wire.close()
            wait_until(lambda: body_bytes(alice) == 0, "bodies of callers who hung up are still counted")
            assert alice.post(f"/fal/run/{NEXT}", json=question(prompt="x" * MIB)).status_code != 503
            wait_until(lambda: body_bytes(alice) == 0, "the body of a call that is over is still counted")
    finally:
        for wire in held:
            wire.close()


def body_bytes(client: httpx.Client) -> float:
    (line,) = [one for one in client.get("/metrics").text.splitlines() if one.startswith("fal_proxy_body_bytes ")]
    return float(line.split()[1])

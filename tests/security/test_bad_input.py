"""Bad input: each kind is answered with its code in the one shape, and fal hears nothing of it."""

from __future__ import annotations

import gzip
import json
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.security.calls import JSON, SURFACES, call, slot, submit
from tests.security.hostile import NEXT
from tests.security.shape import BODY, INPUT, assert_refusal
from tests.security.wire import Answer, Wire
from tests.support.images import PIXEL_PNG
from tests.support.stack import Stack

#: Above `PROXY_MAX_BODY_BYTES`.
TOO_MANY_BYTES = 13 * 2**20
CALLS = [f"run/{NEXT}", f"run/{NEXT}/stream", f"queue/{NEXT}"]


def change_input(**fields: Any) -> bytes:
    return json.dumps({**INPUT, **fields}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in INPUT.items() if key != name}).encode()


def splice(text: str) -> bytes:
    """A lawful input with more JSON text in it, which Python's own encoder would not write."""
    return BODY[:-1] + b"," + text.encode("latin-1") + b"}"


NOT_JSON = {
    "nothing": b"",
    "white space": b" \n ",
    "cut": BODY[:-1],
    "more than one": BODY + BODY,
    "a form": b"prompt=x&image_url=y",
    "single quotes": b"{'prompt': 'x'}",
    "a trailing comma": BODY[:-1] + b",}",
    "a comment": b"/* x */" + BODY,
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "invalid UTF-8": splice('"x":"\xff\xfe"'),
    "overlong UTF-8": splice('"x":"\xc0\xaf"'),
    "half a surrogate": splice('"x":"\\ud800"'),
    "a NUL": BODY + b"\0",
    "a raw line break in a string": splice('"x":"a\nb"'),
    "NaN": splice('"temperature":NaN'),
    "Infinity": splice('"temperature":-Infinity'),
    "a number beyond doubles": splice('"temperature":1e999'),
    "an integer beyond doubles": splice('"max_tokens":' + "9" * 400),
    "gzip": gzip.compress(BODY),
    "100,000 levels": b"[" * 100_000,
    "1,100 closed levels": splice('"x":' + "[" * 1100 + "]" * 1100),
    "more levels than can be sent on": splice('"x":' + "[" * 500 + "]" * 500),
}
INVALID = {
    "null": b"null",
    "a list": b"[]",
    "a string": b'"prompt"',
    "a number": b"1e9",
    "true": b"true",
    "an empty object": b"{}",
    "no prompt": without("prompt"),
    "no picture": without("image_url"),
    "a number as prompt": change_input(prompt=5),
    "null as prompt": change_input(prompt=None),
    "a list as prompt": change_input(prompt=["x"]),
    "a prompt beyond the plan": change_input(prompt="x" * 16_001),
    "an empty picture": change_input(image_url=""),
    "null as picture": change_input(image_url=None),
    "an object as picture": change_input(image_url={"url": "x"}),
    "a billion tokens": splice('"max_tokens":1e9'),
    "a billion tokens, spelled the other way": splice('"max_new_tokens":1000000000'),
    "one token too many": change_input(max_tokens=4097),
    "no tokens": change_input(max_tokens=0),
    "tokens to give back": change_input(max_tokens=-1),
    "half a token": change_input(max_tokens=1.5),
    "tokens as text": change_input(max_tokens="64"),
    "true tokens": change_input(max_tokens=True),
    "null tokens": change_input(max_tokens=None),
    "more tokens than 64 bits hold": splice('"max_tokens":' + "9" * 30),
    "fewer tokens than 64 bits hold": splice('"max_tokens":-' + "9" * 30),
    "too hot": change_input(temperature=1.0001),
    "too cold": change_input(temperature=-1),
    "a warm word": change_input(temperature="warm"),
    "top_p of 2": change_input(top_p=2),
    "a key twice, the last one wrong": splice('"max_tokens":1,"max_tokens":5000'),
}
CONTENT_TYPES = [
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/problem+json",
    "application/jsonp",
    "application/json, text/plain",
    "application/octet-stream",
    "*/*",
    ";",
]
HEADERS = [
    *(("x-fal-queue-priority", value) for value in ("high", "", "Normal", "low,normal", "low low")),
    *(
        ("x-fal-request-timeout", value)
        for value in (
            "",
            "abc",
            "0",
            "-5",
            "1",
            "nan",
            "inf",
            "1e9",
            "86401",
            "5s",
            "0x10",
            "1." + "0" * 60,
            "2." + "0" * 65,
        )
    ),
]


@pytest.fixture
def nothing_reaches_fal(stack: Stack) -> Iterator[None]:
    yield
    assert not stack.sandbox.requests()


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.usefixtures("nothing_reaches_fal")
def test_a_body_that_is_not_json_is_refused(stack: Stack, wire: Wire, path: str) -> None:
    for name, body in NOT_JSON.items():
        expect(call(wire, "hosts", stack.token(), "POST", path, body), 400, "bad_request", name)


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.usefixtures("nothing_reaches_fal")
def test_json_that_is_no_valid_input_is_refused(stack: Stack, wire: Wire, path: str) -> None:
    for name, body in INVALID.items():
        expect(call(wire, "protocol", stack.token(), "POST", path, body), 422, "invalid_input", name)


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_a_narrow_plan_has_its_own_ceilings(stack: Stack, wire: Wire) -> None:
    token = stack.token(tenant="small")
    for body in (change_input(max_tokens=129), change_input(max_new_tokens=129), change_input(prompt="x" * 501)):
        expect(call(wire, "hosts", token, "POST", f"run/{NEXT}", body), 422, "invalid_input", body[:60])
    path = "run/fal-ai/llavav15-13b"
    expect(call(wire, "hosts", token, "POST", path, BODY), 403, "endpoint_not_allowed", path)


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_all_problems_are_named_at_once_and_no_picture_is_quoted(stack: Stack, wire: Wire) -> None:
    body = change_input(max_tokens="x", temperature=9, prompt=None, image_url=["data:" + "x" * 100_000])
    answer = call(wire, "hosts", stack.token(), "POST", f"run/{NEXT}", body)
    expect(answer, 422, "invalid_input", "all")
    where = {tuple(problem["loc"]) for problem in answer.json()["detail"]}
    assert where == {("body", name) for name in ("max_tokens", "temperature", "prompt", "image_url")}
    assert len(answer.body) < 4000


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_another_content_type_is_refused(stack: Stack, wire: Wire) -> None:
    for content_type in CONTENT_TYPES:
        answer = call(wire, "hosts", stack.token(), "POST", f"run/{NEXT}", BODY, {"content-type": content_type})
        expect(answer, 415, "unsupported_media_type", content_type)


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.usefixtures("nothing_reaches_fal")
def test_headers_that_fal_would_not_understand_are_refused(stack: Stack, wire: Wire, path: str) -> None:
    for name, value in HEADERS:
        answer = call(wire, "protocol", stack.token(), "POST", path, BODY, {name: value})
        expect(answer, 400, "bad_request", f"{name}: {value}")


def test_malformed_headers_on_a_poll_do_not_reach_fal(stack: Stack, wire: Wire) -> None:
    job = submit(wire, stack.token())
    stack.sandbox.forget()
    for name, value in HEADERS:
        for tail in ("", "/status", "/status/stream"):
            path = f"queue/{NEXT}/requests/{job}{tail}"
            expect(call(wire, "hosts", stack.token(), "GET", path, headers={name: value}), 400, "bad_request", name)
    assert not stack.sandbox.requests()


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.usefixtures("nothing_reaches_fal")
def test_query_keys_are_not_passed_on(stack: Stack, wire: Wire, surface: str) -> None:
    for key in ("fal_jwt_token", "fal_max_queue_length", "logs", "x"):
        answer = call(wire, surface, stack.token(), "POST", f"queue/{NEXT}?{key}=1", BODY)
        expect(answer, 400, "bad_target", key)
    answer = call(wire, surface, stack.token(), "POST", f"queue/{NEXT}?fal_webhook=https%3A%2F%2Fevil.example", BODY)
    expect(answer, 400, "webhook_not_allowed", surface)


def test_fal_gets_the_checked_value_of_a_repeated_key(stack: Stack, wire: Wire) -> None:
    """Of a key that occurs twice, fal gets only the value that the proxy has checked."""
    body = splice('"max_tokens":1000000000,"max_tokens":7')
    assert call(wire, "hosts", stack.token(), "POST", f"run/{NEXT}", body).status == 200
    (received,) = stack.sandbox.requests()
    assert received["json"] == {**INPUT, "max_tokens": 7}
    assert received["body_size"] == len(BODY) + len(b',"max_tokens":7')


def test_unknown_fields_are_passed_on_to_fal(stack: Stack, wire: Wire) -> None:
    more = {"seed": 2**63, "nested": {"a": [1, None, "é 🌍"]}}
    assert call(wire, "hosts", stack.token(), "POST", f"run/{NEXT}", change_input(**more)).status == 200
    (received,) = stack.sandbox.requests()
    assert received["json"] == {**INPUT, **more}


# --- size


def head(path: str, token: str, *more: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Key {token}", f"content-type: {JSON}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    "path", [f"/fal/{path}" for path in CALLS] + ["/v1/sessions", "/fal/rest/storage/upload/initiate"]
)
@pytest.mark.usefixtures("nothing_reaches_fal")
def test_a_body_that_is_declared_too_large_is_refused_unread(stack: Stack, wire: Wire, path: str) -> None:
    answer = wire.raw(head(path, stack.tenant_key(), f"content-length: {TOO_MANY_BYTES}"))
    assert_refusal(answer, 413, "body_too_large")
    assert answer.all("connection") == ["close"]


def test_a_body_on_a_poll_has_a_limit_too(stack: Stack, wire: Wire) -> None:
    """The proxy does not read it and may answer before the limit is reached; either way there is one answer."""
    token = stack.token()
    job = submit(wire, token)
    stack.sandbox.move_job(job, "COMPLETED")
    for tail in ("", "/status"):
        path = f"/fal/queue/{NEXT}/requests/{job}{tail}"
        answer = wire.raw(head(path, token, f"content-length: {TOO_MANY_BYTES}", method="GET"), "GET")
        wire.close()
        if answer.status != 200:
            assert_refusal(answer, 413, "body_too_large")


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_a_body_that_is_sent_too_large_is_refused(stack: Stack, wire: Wire) -> None:
    body = change_input(prompt="x" * TOO_MANY_BYTES)
    sent, answer = flood(stack, wire, f"content-length: {len(body)}", pieces(body))
    assert_refusal(answer, 413, "body_too_large")
    assert sent <= len(body)


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_chunks_that_add_up_to_too_much_are_refused(stack: Stack, wire: Wire) -> None:
    body = change_input(prompt="x" * TOO_MANY_BYTES)
    _, answer = flood(stack, wire, "transfer-encoding: chunked", (*map(chunk, pieces(body)), b"0\r\n\r\n"))
    assert_refusal(answer, 413, "body_too_large")


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_chunks_without_end_are_cut_off(stack: Stack, wire: Wire) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(4096):
            yield chunk(b"x" * 65536)
        raise AssertionError("a quarter of a gigabyte was taken")

    sent, answer = flood(stack, wire, "transfer-encoding: chunked", endless())
    assert_refusal(answer, 413, "body_too_large")
    assert sent < 64 * 2**20


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_contradicting_lengths_are_refused(stack: Stack, wire: Wire) -> None:
    for lines in (
        ("content-length: 5", "content-length: 6"),
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: -1",),
        ("content-length: +5",),
        ("content-length: " + "9" * 40,),
        ("transfer-encoding: chunked, identity",),
    ):
        answer = wire.raw(head(f"/fal/run/{NEXT}", stack.token(), *lines) + b"5\r\nhello\r\n0\r\n\r\n")
        assert answer.status == 400, lines
        wire.close()


def flood(stack: Stack, wire: Wire, length: str, body: Iterator[bytes] | tuple[bytes, ...]) -> tuple[int, Answer]:
    """Send as much of a body as the proxy accepts; return the number of bytes and the answer."""
    connection = socket.create_connection(wire.address, 60)
    with connection:
        connection.sendall(head(f"/fal/run/{NEXT}", stack.token(), length))
        sent = 0
        try:
            for piece in body:
                connection.sendall(piece)
                sent += len(piece)
                if select.select([connection], [], [], 0)[0]:
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass
        return sent, wire.answer(connection, "POST")


def pieces(body: bytes) -> tuple[bytes, ...]:
    return tuple(body[start : start + 65536] for start in range(0, len(body), 65536))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# --- the proxy's own forms


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_a_malformed_request_for_a_session_is_refused(stack: Stack, wire: Wire) -> None:
    key = {"authorization": f"Bearer {stack.tenant_key()}", "content-type": JSON}
    bad: list[Any] = [
        {},
        [],
        None,
        "alice",
        {"subject": ""},
        {"subject": 5},
        {"subject": None},
        {"subject": " alice"},
        {"subject": "a\nb"},
        {"subject": "\x00"},
        {"subject": "x" * 201},
        {"subject": "alice", "ttl_seconds": 0},
        {"subject": "alice", "ttl_seconds": "60"},
        {"subject": "alice", "ttl_seconds": 1.5},
        {"subject": "alice", "ttl_seconds": True},
        {"subject": "alice", "endpoints": NEXT},
        {"subject": "alice", "endpoints": [5]},
        {"subject": "alice", "tenant": "globex"},
        {"subject": "alice", "plan": "full"},
        {"subject": "alice", "guest": False},
    ]
    for form in bad:
        answer = wire.exchange("POST", "/v1/sessions", key.items(), json.dumps(form).encode())
        expect(answer, 400, "bad_request", form)
    for body in (b"{", b"\xff", b"[" * 5000):
        expect(wire.exchange("POST", "/v1/sessions", key.items(), body), 400, "bad_request", body[:10])
    form = b'{"subject":"alice","endpoints":["fal-ai/flux/dev"]}'
    expect(wire.exchange("POST", "/v1/sessions", key.items(), form), 403, "endpoint_not_allowed", form)


@pytest.mark.usefixtures("nothing_reaches_fal")
def test_a_malformed_request_to_begin_an_upload_is_refused(stack: Stack, wire: Wire) -> None:
    path = "rest/storage/upload/initiate"
    for form in (
        {},
        [],
        None,
        {"content_type": ""},
        {"content_type": 5},
        {"content_type": "image/png", "file_name": 5},
    ):
        expect(call(wire, "hosts", stack.token(), "POST", path, json.dumps(form).encode()), 400, "bad_request", form)
    long = {"content_type": "image/png", "file_name": "x" * 1001}
    expect(call(wire, "hosts", stack.token(), "POST", path, json.dumps(long).encode()), 400, "bad_request", "long")
    for kind in ("text/html", "image/svg+xml", "image/*", "image/png, text/html", "application/octet-stream"):
        body = json.dumps({"content_type": kind, "file_name": "a.png"}).encode()
        expect(call(wire, "hosts", stack.token(), "POST", path, body), 415, "unsupported_media_type", kind)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..\\..\\x",
        "a/b/c.png",
        "a?x=1#y.png",
        "a\r\nx: 1.png",
        ".htaccess",
        "é 🌍.png",
        "%2e%2e%2f",
        "",
        "x" * 999,
    ],
)
def test_a_file_name_keeps_no_character_that_is_special_in_a_path(stack: Stack, wire: Wire, name: str) -> None:
    body = json.dumps({"content_type": "image/png", "file_name": name}).encode()
    assert call(wire, "hosts", stack.token(), "POST", "rest/storage/upload/initiate", body).status == 200
    (received,) = stack.sandbox.requests()
    clean = received["json"]["file_name"]
    assert received["json"] == {"content_type": "image/png", "file_name": clean}
    assert clean and len(clean) <= 128 and not clean.startswith(".")
    assert set(clean) <= set("._-") | {one for one in clean if one.isascii() and one.isalnum()}


def test_a_file_must_match_its_announcement_and_comes_once(stack: Stack, wire: Wire) -> None:
    path = slot(wire, stack.token())
    stack.sandbox.forget()
    png = ("content-type", "image/png")
    expect(
        wire.exchange("PUT", path, [("content-type", "text/html")], PIXEL_PNG), 415, "unsupported_media_type", "html"
    )
    chunks = chunk(PIXEL_PNG) + b"0\r\n\r\n"
    lines = f"PUT {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    expect(wire.raw(lines + chunks, "PUT"), 400, "bad_request", "no length")
    lines = f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {10 * 2**20 + 1}\r\n\r\n".encode()
    expect(wire.raw(lines, "PUT"), 413, "body_too_large", "too large")
    for wrong in (
        path[:-1],
        path + "x",
        "/uploads/" + "x" * 43,
        "/uploads/%2e%2e",
        path.swapcase().replace("/UPLOADS", "/uploads"),
    ):
        expect(wire.exchange("PUT", wrong, [png], PIXEL_PNG), 404, "not_found", wrong)
    for method in ("GET", "POST", "DELETE"):
        assert wire.exchange(method, path).status in (404, 405)
    assert not stack.sandbox.requests()
    assert wire.exchange("PUT", path, [png], PIXEL_PNG).status == 200
    # A client repeats a PUT whose answer is lost; another file is refused.
    assert wire.exchange("PUT", path, [png], PIXEL_PNG).status == 200
    expect(wire.exchange("PUT", path, [png], PIXEL_PNG[:-1] + b"x"), 400, "bad_request", "another file")
    assert len(stack.sandbox.requests()) == 1


def test_an_upload_slot_expires(stack: Stack, wire: Wire) -> None:
    path = slot(wire, stack.token())
    stack.sandbox.forget()
    stack.clock.advance(901)
    expect(wire.exchange("PUT", path, [("content-type", "image/png")], PIXEL_PNG), 404, "not_found", "late")
    assert not stack.sandbox.requests()


def expect(answer: Answer, status: int, code: str, what: object) -> None:
    try:
        assert_refusal(answer, status, code)
    except AssertionError as problem:
        raise AssertionError(f"{what!r}: {problem}") from None

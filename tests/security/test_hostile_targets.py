"""Hostile targets over the wire: each is refused with its code, and none reaches fal."""

from __future__ import annotations

from tests.security.hostile import CONTROL, NEXT, PATHS, TARGETS, Row
from tests.security.shape import BODY, assert_refusal
from tests.security.wire import Answer, Wire
from tests.support.stack import Stack

JSON = ("content-type", "application/json")
PROTOCOL = "/api/fal/proxy"


def send(wire: Wire, row: Row, path: str, *headers: tuple[str, str]) -> Answer:
    body = BODY if row.method in ("POST", "PUT", "PATCH") else b""
    return wire.exchange(row.method, path, [JSON, *headers], body)


def check(stack: Stack, row: Row, answer: Answer) -> None:
    assert not stack.sandbox.requests(), "it reached fal"
    assert_refusal(answer, row.status, row.code, has_body=row.method != "HEAD")


def test_every_hostile_url_is_refused(stack: Stack, wire: Wire) -> None:
    key = ("authorization", f"Key {stack.token()}")
    problems = []
    for row in TARGETS:
        if row.is_http:
            wanted = [("x-fal-target-url", value) for value in row.headers]
            try:
                check(stack, row, send(wire, row, PROTOCOL, key, *wanted))
            except AssertionError as problem:
                problems.append(f"{row}: {problem}")
                stack.sandbox.forget()
    assert not problems, "\n\n".join(problems)


def test_every_hostile_url_is_refused_where_the_session_is_in_the_path(stack: Stack, wire: Wire) -> None:
    path = f"/s/{stack.token()}{PROTOCOL}"
    for row in TARGETS[::7]:
        if row.is_http:
            check(stack, row, send(wire, row, path, *(("x-fal-target-url", value) for value in row.headers)))


def test_every_hostile_path_is_refused(stack: Stack, wire: Wire) -> None:
    key = ("authorization", f"Bearer {stack.token()}")
    problems = []
    for row in PATHS:
        answer = send(wire, row, row.headers[0], key)
        try:
            if row.headers[0].isascii():
                check(stack, row, answer)
            else:
                refused_by_the_server(stack, answer)
        except AssertionError as problem:
            problems.append(f"{row}: {problem}")
            stack.sandbox.forget()
    assert not problems, "\n\n".join(problems)


def test_an_encoded_line_break_is_refused(stack: Stack, wire: Wire) -> None:
    """The router's patterns end at a line break: some of these match no route, others hold one in the target."""
    key = ("authorization", f"Key {stack.token()}")
    for path in (f"/fal/run/{NEXT}%0d%0ax-evil:%201", f"/fal/run%0a/{NEXT}", f"/fal%0a/run/{NEXT}"):
        assert wire.exchange("POST", path, [JSON, key], BODY).status in (404, 405)
    assert_refusal(wire.exchange("POST", f"/fal/run/{NEXT}%0a", [JSON, key], BODY), 400, "bad_target")
    assert not stack.sandbox.requests()


def refused_by_the_server(stack: Stack, answer: Answer) -> None:
    """The server refuses malformed HTTP before there is a request, with the same error shape."""
    assert not stack.sandbox.requests(), "it reached fal"
    assert_refusal(answer, 400, "bad_request")


def test_control_characters_are_refused_by_the_server(stack: Stack, wire: Wire) -> None:
    key = ("authorization", f"Key {stack.token()}")
    characters = [chr(code) for code in range(0x80) if CONTROL.match(chr(code)) and chr(code) not in "\r\n"]
    for character in characters:
        target = ("x-fal-target-url", f"https://fal.run/{NEXT}{character}")
        refused_by_the_server(stack, wire.exchange("POST", PROTOCOL, [JSON, key, target], BODY))


def test_a_line_break_only_begins_another_header(stack: Stack, wire: Wire) -> None:
    """A caller that can put line breaks into a header can send any header; the injected one is not passed on either."""
    key = ("authorization", f"Key {stack.token()}")
    target = ("x-fal-target-url", f"https://fal.run/{NEXT}\r\nx-evil: 1")
    assert wire.exchange("POST", PROTOCOL, [JSON, key, target], BODY).status == 200
    (call,) = stack.sandbox.requests()
    assert (call["method"], call["path"]) == ("POST", f"/{NEXT}")
    assert "x-evil" not in dict(call["headers"])


def test_the_host_header_decides_nothing(stack: Stack, wire: Wire) -> None:
    """A target of another host is refused, and a job's URLs point to the proxy, whatever the `host` header says."""
    head = f"POST /fal/queue/{NEXT} HTTP/1.1\r\nhost: evil.example\r\nx-forwarded-host: evil.example\r\n"
    head += (
        f"authorization: Key {stack.token()}\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    )
    answer = wire.raw(head.encode() + BODY)
    assert answer.status == 200
    urls = [answer.json()[name] for name in ("status_url", "response_url", "cancel_url")]
    assert all(url.startswith(f"{stack.settings.server.public_url}/fal/queue/{NEXT}/requests/") for url in urls)


def test_an_absolute_request_target_is_only_its_path(stack: Stack, wire: Wire) -> None:
    """`GET http://evil/…` is a request to a forward proxy, which this is not."""
    key = ("authorization", f"Key {stack.token()}")
    answer = wire.exchange("POST", f"https://fal.run/{NEXT}", [JSON, key], BODY)
    assert answer.status in (404, 405)
    assert wire.exchange("CONNECT", "fal.run:443", [key]).status == 400
    assert not stack.sandbox.requests()

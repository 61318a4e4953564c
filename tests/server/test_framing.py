"""Where a request ends is read in one way only: what is unclear is refused, and its connection closed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.server.framing import MAX_FRAMING_BYTES, MAX_HEADERS
from tests.server.echo import Echo, bodies_of, echo_server, parse_answers
from tests.server.talk import talk

HOST = b"Host: proxy.example\r\n"
MIDDLE = b"GET /middle HTTP/1.1\r\n" + HOST + b"\r\n"
#: The last request: the server closes the connection behind its answer.
NEXT = b"GET /next HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@pytest.fixture(scope="module")
def shared_echo() -> Iterator[Echo]:
    with echo_server() as echo:
        yield echo


@pytest.fixture
def echo(shared_echo: Echo) -> Echo:
    shared_echo.requests.clear()
    return shared_echo


def post(*headers: bytes, body: bytes = b"", path: bytes = b"/first") -> bytes:
    return b"POST %s HTTP/1.1\r\n" % path + HOST + b"".join(one + b"\r\n" for one in headers) + b"\r\n" + body


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


COUNTED = (b"Content-Length: 11\r\n", b"GET /x HTTP")
CHUNKED = (b"Transfer-Encoding: chunked\r\n", b"5\r\nGET /\r\n6\r\nx HTTP\r\n0\r\n\r\n")


@pytest.mark.parametrize("token", [b"h2c", b"websocket", b"TLS/1.0", b"x"])
@pytest.mark.parametrize("framing", [COUNTED, CHUNKED], ids=["counted", "chunked"])
@pytest.mark.parametrize(
    "size", [4096, 40, pytest.param(1, marks=pytest.mark.slow)], ids=["one packet", "several packets", "byte by byte"]
)
def test_an_ignored_upgrade_is_a_request_with_its_body(
    echo: Echo, token: bytes, framing: tuple[bytes, bytes], size: int
) -> None:
    length, body = framing
    request = b"POST /first HTTP/1.1\r\n" + HOST + UPGRADE % token + length + b"\r\n" + body + NEXT
    answer, _ = talk(echo.port, *cut(request, size))
    first, second = bodies_of(parse_answers(answer))
    assert (first["path"], first["body"]) == ("/first", "GET /x HTTP")
    assert second["path"] == "/next" and len(echo.requests) == 2


def test_an_ignored_upgrade_without_a_body_is_followed_by_the_next_request(echo: Echo) -> None:
    first = b"GET /first HTTP/1.1\r\n" + HOST + UPGRADE % b"websocket" + b"\r\n"
    answer, _ = talk(echo.port, first + first + NEXT)
    assert [one["path"] for one in bodies_of(parse_answers(answer))] == ["/first", "/first", "/next"]


def test_an_upgrade_that_closes_is_the_last_request(echo: Echo) -> None:
    request = post(b"Connection: upgrade, close", b"Upgrade: h2c", b"Content-Length: 2", body=b"{}")
    answer, closed = talk(echo.port, request + NEXT)
    assert closed and [one["path"] for one in bodies_of(parse_answers(answer))] == ["/first"]


def test_curl_that_offers_http2_gets_the_answer_to_its_body(echo: Echo) -> None:
    command = ["curl", "-sS", "--http2", "-d", '{"a": 1}', "-H", "content-type: application/json", f"{echo.url}/curl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout)["body"] == '{"a": 1}'


@pytest.mark.tools
def test_the_client_of_the_jdk_that_offers_http2_gets_the_answer_to_its_body(echo: Echo) -> None:
    source = Path(__file__).parent / "fronts" / "Ask.java"
    command = ["java", str(source), f"{echo.url}/jdk", '{"a": 1}']
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    seen = json.loads(done.stdout)
    assert seen["body"] == '{"a": 1}' and "upgrade" in dict(seen["headers"])


def test_a_tunnel_is_refused_and_what_follows_is_not_read(echo: Echo) -> None:
    answer, closed = talk(echo.port, b"CONNECT fal.run:443 HTTP/1.1\r\nHost: fal.run:443\r\n\r\n" + NEXT)
    ((status, headers, body),) = parse_answers(answer)
    document = json.loads(body)
    assert closed and (status, document["error_type"]) == (400, "bad_request") and "CONNECT" in document["message"]
    assert headers["connection"] == "close" and echo.requests == []


@pytest.mark.parametrize("size", [65536, 7], ids=["with the head", "after the head"])
def test_trailers_are_dropped(echo: Echo, size: int) -> None:
    trailers = b"Authorization: Bearer x\r\nX-Forwarded-For: 10.0.0.1\r\nX-Fal-Target-Url: https://evil\r\nHost: b\r\n"
    body = b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n"
    answer, _ = talk(echo.port, *cut(post(b"Transfer-Encoding: chunked", body=body) + NEXT, size))
    first, second = bodies_of(parse_answers(answer))
    assert first["body"] == "{}" and second["path"] == "/next"
    assert [name for name, _ in first["headers"]] == ["host", "transfer-encoding"]


@pytest.mark.parametrize("line", [b"x: " + b"y" * 900 + b"\r\n", b"y" * 1000], ids=["many lines", "one line"])
def test_trailers_are_bounded(echo: Echo, line: bytes) -> None:
    begun = post(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n" + (b"" if line.endswith(b"\n") else b"x: "))
    pieces = [line * 4] * (MAX_FRAMING_BYTES // len(line))
    answer, closed = talk(echo.port, begun, *pieces)
    ((status, _, body),) = parse_answers(answer)
    assert closed and status == 400 and "trailers" in json.loads(body)["message"]


def test_extensions_of_chunks_are_bounded(echo: Echo) -> None:
    """They carry nothing, and count as no byte of the body."""
    pieces = [b"1;x=" + b"y" * 2000 + b"\r\n{\r\n"] * (MAX_FRAMING_BYTES // 2000 + 2)
    answer, closed = talk(echo.port, post(b"Transfer-Encoding: chunked"), *pieces)
    ((status, _, body),) = parse_answers(answer)
    assert closed and status == 400 and "extensions" in json.loads(body)["message"]


def test_an_extension_without_end_is_refused(echo: Echo) -> None:
    pieces = [b"1;x=", *[b"y" * 4096] * (MAX_FRAMING_BYTES // 4096 + 1)]
    answer, closed = talk(echo.port, post(b"Transfer-Encoding: chunked"), *pieces)
    ((status, _, body),) = parse_answers(answer)
    assert closed and status == 400 and "extensions" in json.loads(body)["message"]


def test_packets_may_end_behind_the_line_of_a_chunk(echo: Echo) -> None:
    """As they do if a client writes the line together with the chunk before it."""
    begun = post(b"Transfer-Encoding: chunked", body=b"4e20\r\n")
    pieces = [b"x" * 20_000 + b"\r\n4e20\r\n"] * 3
    answer, _ = talk(echo.port, begun, *pieces, b"x" * 20_000 + b"\r\n0\r\n\r\n" + NEXT)
    first, second = bodies_of(parse_answers(answer))
    assert first["body"] == "x" * 80_000 and second["path"] == "/next"


def test_a_body_may_come_in_chunks_of_one_byte(echo: Echo) -> None:
    body = b"1;a=b\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    answer, _ = talk(echo.port, *cut(post(b"Transfer-Encoding: chunked", body=body), 32_000), NEXT)
    first, second = bodies_of(parse_answers(answer))
    assert first["body"] == "x" * 20_000 and second["path"] == "/next"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://proxy.example", "/"),
        (b"HTTPS://proxy.example?x=1", "/"),
        (b"http://proxy.example/next?x=1", "/next"),
    ],
)
def test_a_target_may_be_a_whole_url(echo: Echo, target: bytes, path: str) -> None:
    """Servers accept it although only proxies are sent it (RFC 9112, section 3.2.2)."""
    answer, _ = talk(echo.port, b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT)
    first, second = bodies_of(parse_answers(answer))
    assert first["path"] == path and second["path"] == "/next"


@pytest.mark.parametrize("framing", [COUNTED, CHUNKED], ids=["counted", "chunked"])
@pytest.mark.parametrize("size", [4096, pytest.param(1, marks=pytest.mark.slow)], ids=["one packet", "byte by byte"])
def test_white_space_around_a_value_is_no_part_of_it(echo: Echo, framing: tuple[bytes, bytes], size: int) -> None:
    """RFC 9110, section 5.5: what a front in between would take away counts for nothing without one either."""
    length, body = framing
    lines = (b"Host:  proxy.example:80 \t", b"Authorization:\tBearer x\t ", b"X-Inner: a \t b", b"X-Empty: \t ")
    head = b"POST /first HTTP/1.1\r\n" + b"\r\n".join((*lines, length.strip() + b"  ")) + b"\r\n\r\n"
    answer, _ = talk(echo.port, *cut(head + body + NEXT, size))
    first, second = bodies_of(parse_answers(answer))
    assert first["body"] == "GET /x HTTP" and second["path"] == "/next"
    name, _, value = length.decode().strip().partition(": ")
    assert first["headers"] == [
        ["host", "proxy.example:80"],
        ["authorization", "Bearer x"],
        ["x-inner", "a \t b"],
        ["x-empty", ""],
        [name.lower(), value],
    ]


REFUSED: dict[str, bytes] = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "the same host twice": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "a list of hosts with spaces": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "length and chunks": post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
    "a length twice": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "a list of lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "a length with a sign": post(b"Content-Length: +3", body=b"abc"),
    "a negative length": post(b"Content-Length: -3", body=b"abc"),
    "a length in hexadecimal": post(b"Content-Length: 0x3", body=b"abc"),
    "a length beyond 64 bits": post(b"Content-Length: 99999999999999999999", body=b"abc"),
    "an empty length": post(b"Content-Length:", body=b"abc"),
    "an unknown coding": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "a coding before chunks": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "a coding after chunks": post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "chunks twice": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "chunks in two headers": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "the identity coding": post(b"Transfer-Encoding: identity", body=b"abc"),
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size with a sign": post(b"Transfer-Encoding: chunked", body=b"+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size in C's form": post(b"Transfer-Encoding: chunked", body=b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size beyond 64 bits": post(b"Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    "a chunk longer than its size": post(b"Transfer-Encoding: chunked", body=b"1\r\n{}\r\n0\r\n\r\n"),
    "chunks that end in line feeds": post(b"Transfer-Encoding: chunked", body=b"2\n{}\n0\n\n"),
    "lines that end in line feeds": b"GET / HTTP/1.1\nHost: a\n\n",
    "a header that ends in a line feed": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "a carriage return in a header": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
    "a zero byte in a header": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
    "a space before the first header": b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost: a\r\nabc\r\n\r\n",
    "too many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * MAX_HEADERS + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a lower-case version": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method that is none": b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a space": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_can_be_read_in_two_ways_is_refused_and_closes_the_connection(echo: Echo, case: str) -> None:
    answer, closed = talk(echo.port, REFUSED[case] + NEXT)
    ((status, headers, body),) = parse_answers(answer)
    document = json.loads(body)
    assert closed and (status, document["error_type"]) == (400, "bad_request"), answer
    assert headers["connection"] == "close" and headers["content-type"] == "application/json"
    assert document["message"] == document["detail"] and document["request_id"]
    assert not any(one["path"] == "/next" for one in echo.requests)


def test_a_request_of_http_1_0_needs_no_host(echo: Echo) -> None:
    answer, closed = talk(echo.port, b"GET /old HTTP/1.0\r\n\r\n")
    assert closed and [one["path"] for one in bodies_of(parse_answers(answer))] == ["/old"]


def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_its_connection(echo: Echo) -> None:
    answer, closed = talk(echo.port, b"GET /stream HTTP/1.0\r\n\r\n")
    ((_, headers, body),) = parse_answers(answer)
    assert closed and body == b"piece 0\npiece 1\npiece 2\n"
    assert "transfer-encoding" not in headers and headers["connection"] == "close"


def test_a_stream_to_http_1_1_is_chunked_and_the_connection_stays(echo: Echo) -> None:
    answer, _ = talk(echo.port, b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT)
    (_, headers, body), (status, _, _) = parse_answers(answer)
    assert (headers["transfer-encoding"], body, status) == ("chunked", b"piece 0\npiece 1\npiece 2\n", 200)


def test_requests_before_a_bad_one_are_answered_first(echo: Echo) -> None:
    answer, closed = talk(echo.port, MIDDLE + MIDDLE + b"garbage\r\n\r\n" + NEXT)
    statuses = [status for status, _, _ in parse_answers(answer)]
    assert closed and statuses[:2] == [200, 200] and statuses[2:] in ([], [400])
    assert len(echo.requests) == 2


def test_a_body_that_breaks_is_refused_and_never_answered_as_a_request(echo: Echo) -> None:
    answer, closed = talk(echo.port, post(b"Transfer-Encoding: chunked"), b"2\r\n{}\r\n", b"zz\r\n" + NEXT)
    assert closed and [status for status, _, _ in parse_answers(answer)] == [400]
    assert echo.requests == []


def test_a_request_whose_body_is_not_read_is_answered_and_ends_the_connection(echo: Echo) -> None:
    answer, closed = talk(echo.port, post(b"Content-Length: 1000", path=b"/refuse"), NEXT)
    ((status, headers, _),) = parse_answers(answer)
    assert closed and (status, headers["connection"]) == (401, "close") and echo.requests == []


def test_an_answer_arrives_while_its_caller_still_sends_a_large_body(echo: Echo) -> None:
    head = post(b"Content-Length: 6000000", path=b"/refuse")
    answer, closed = talk(echo.port, head, *([b"x" * 60000] * 100))
    assert closed and [status for status, _, _ in parse_answers(answer)] == [401]

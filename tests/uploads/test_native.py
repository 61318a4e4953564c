"""`POST /v1/uploads`: the file as the body or in a form, in one call; its URL works in an input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security.wire import Wire
from tests.support.images import png
from tests.support.limited import NEXT, Booked, assert_refused_with
from tests.uploads.conftest import MOST, PNG, Uploads

FILE = png(5000)
PICTURES = Path(__file__).parents[1] / "pictures"
CHELSEA, ROCKET = PICTURES / "chelsea.png", PICTURES / "rocket.jpg"


@pytest.fixture
def alice(uploads: Uploads) -> Iterator[httpx.Client]:
    with uploads.client() as alice:
        yield alice


def test_the_body_is_the_file(uploads: Uploads, alice: httpx.Client) -> None:
    before = uploads.booked().used
    answer = alice.post("/v1/uploads?file_name=../cat%20one.png", content=FILE, headers=PNG)
    assert answer.status_code == 201
    url = answer.json().pop("url")
    assert answer.json() == {"url": url, "content_type": "image/png", "size": len(FILE)}
    assert url.endswith("/cat_one.png") and uploads.has(url, FILE)
    assert uploads.booked() == Booked(before + len(FILE), 0)


def test_a_form_holds_the_file(uploads: Uploads, alice: httpx.Client) -> None:
    answer = alice.post("/v1/uploads", files={"file": ("cat one.png", FILE, "image/png")})
    assert answer.status_code == 201 and answer.json()["size"] == len(FILE)
    assert answer.json()["url"].endswith("/cat_one.png") and uploads.has(answer.json()["url"], FILE)


def test_its_url_works_as_a_picture(uploads: Uploads) -> None:
    content = CHELSEA.read_bytes()
    with uploads.client(tenant="kept") as alice:
        url = alice.post("/v1/uploads", content=content, headers=PNG).json()["url"]
        answer = alice.post(f"/fal/run/{NEXT}", json={"prompt": "What is it?", "image_url": url})
    assert "PNG picture of 451 × 300 pixels" in answer.json()["output"]


def test_a_tenant_key_may_upload_and_sees_rate_limit_headers(uploads: Uploads) -> None:
    with uploads.stack.client(uploads.stack.tenant_key("acme")) as backend:
        answer = backend.post("/v1/uploads", content=FILE, headers=PNG)
    assert answer.status_code == 201
    assert_refused_with(uploads.http.post("/v1/uploads", content=FILE, headers=PNG), 401, "unauthenticated")


def test_pages_of_an_allowed_origin_may_upload(uploads: Uploads, alice: httpx.Client) -> None:
    origin = {"origin": "https://app.acme.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    assert alice.options("/v1/uploads", headers={**origin, **asked}).status_code == 200
    answer = alice.post("/v1/uploads", content=FILE, headers={**PNG, **origin})
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    refused = alice.post("/v1/uploads", content=b"x" * (MOST + 1), headers={**PNG, **origin})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (413, origin["origin"])
    cookie = {"cookie": uploads.stack.cookie(uploads.stack.token("alice")), **PNG}
    assert uploads.http.post("/v1/uploads", content=FILE, headers={**cookie, **origin}).status_code == 201
    foreign = uploads.http.post("/v1/uploads", content=FILE, headers={**cookie, "origin": "https://evil.example"})
    assert_refused_with(foreign, 403, "origin_not_allowed")


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "one byte too many": ({"content": png(MOST + 1)}, 413, "body_too_large"),
    "no length": ({"content": iter([FILE])}, 400, "bad_request"),
    "empty": ({"content": b""}, 400, "bad_request"),
    "a program without a type": ({"content": b"\x7fELF" + bytes(99), "headers": {}}, 415, "unsupported_media_type"),
    "a picture of another type": ({"content": b"II*\0" + bytes(99), "headers": {}}, 415, "unsupported_media_type"),
    "a page": ({"content": b"<html>", "headers": {"content-type": "text/html"}}, 415, "unsupported_media_type"),
    "a drawing": ({"content": b"<svg/>", "headers": {"content-type": "image/svg+xml"}}, 415, "unsupported_media_type"),
    "a program called a picture": ({"content": b"\x7fELF" + bytes(99)}, 415, "unsupported_media_type"),
    "an unknown wish": ({"content": FILE, "params": {"name": "a.png"}}, 400, "bad_request"),
}


@pytest.mark.parametrize(("wrong", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_a_bad_upload_is_refused(
    uploads: Uploads, alice: httpx.Client, wrong: dict[str, Any], status: int, code: str
) -> None:
    before = uploads.booked()
    assert_refused_with(alice.post("/v1/uploads", **{"headers": PNG, **wrong}), status, code)
    assert not uploads.sandbox.requests() and uploads.booked() == before


@pytest.mark.parametrize("size", [1000, 1001])
def test_a_daily_quota_of_bytes_is_enforced(uploads: Uploads, size: int) -> None:
    name = f"quota-{size}"
    with uploads.client(name, "frugal") as client:
        answer = client.post("/v1/uploads", content=png(size), headers=PNG)
    if size > 1000:
        assert_refused_with(answer, 402, "quota_exceeded", "subject")
        assert not uploads.sandbox.requests()
    assert uploads.booked("frugal", name) == Booked(1000 if size == 1000 else 0, 0)


# Forms


def form(*fields: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + field + b"\r\n" for field in fields) + end


def field(content: bytes, name: str = "file", file_name: str = '; filename="a.png"', kind: str = "image/png") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{file_name}\r\nContent-Type: {kind}\r\n\r\n'
    return head.encode() + content


def send(client: httpx.Client, body: bytes, boundary: str = "; boundary=b") -> httpx.Response:
    headers = {"content-type": f"multipart/form-data{boundary}"}
    return client.post("/v1/uploads", content=body, headers=headers)


@pytest.mark.parametrize("size", [MOST, MOST + 1])
def test_the_largest_file_in_a_form_and_one_byte_more(uploads: Uploads, alice: httpx.Client, size: int) -> None:
    answer = send(alice, form(field(png(size))))
    if size > MOST:
        assert_refused_with(answer, 413, "body_too_large")
        assert not uploads.sandbox.requests()
        return
    assert (answer.status_code, answer.json()["size"]) == (201, MOST)


@pytest.mark.parametrize("tail", [b"\r\n", b"\r", b"\r\n--", b"\r\n--a", b"\r\n--c--\r\n", b"--b--"])
def test_a_file_may_look_like_the_end_of_a_form(uploads: Uploads, alice: httpx.Client, tail: bytes) -> None:
    content = FILE + tail
    answer = send(alice, form(field(content)))
    assert answer.status_code == 201 and uploads.has(answer.json()["url"], content)


def test_a_form_may_come_byte_by_byte(uploads: Uploads, alice: httpx.Client) -> None:
    content = png(300)
    body = form(field(content))
    head = f"POST /v1/uploads HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {uploads.stack.token()}\r\n"
    head += f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {len(body)}\r\n\r\n"
    with Wire(uploads.stack.url) as wire:
        connection = wire.connected()
        for byte in head.encode() + body:
            connection.sendall(bytes([byte]))
        answer = wire.answer(connection, "POST")
    assert answer.status == 201 and uploads.has(answer.json()["url"], content)


UNFIT: dict[str, tuple[bytes, str]] = {
    "no boundary": (form(field(FILE)), ""),
    "endless boundary": (form(field(FILE)), f"; boundary={'b' * 300}"),
    "no form": (FILE, "; boundary=b"),
    "another field": (form(field(FILE, name="picture")), "; boundary=b"),
    "no file": (form(field(FILE, file_name="")), "; boundary=b"),
    "a field before": (form(b'Content-Disposition: form-data; name="a"\r\n\r\n1', field(FILE)), "; boundary=b"),
    "a field after": (form(field(FILE), b'Content-Disposition: form-data; name="a"\r\n\r\n1'), "; boundary=b"),
    "two files": (form(field(FILE), field(FILE)), "; boundary=b"),
    "broken off": (form(field(FILE), end=b""), "; boundary=b"),
    "empty file": (form(field(b"")), "; boundary=b"),
    "nothing": (form(), "; boundary=b"),
    "endless head": (form(field(FILE, file_name=f'; filename="{"x" * 20_000}"')), "; boundary=b"),
}


@pytest.mark.parametrize(("body", "boundary"), UNFIT.values(), ids=UNFIT)
def test_a_form_without_exactly_one_file_leaves_nothing_behind(
    uploads: Uploads, alice: httpx.Client, body: bytes, boundary: str
) -> None:
    before = uploads.booked()
    assert_refused_with(send(alice, body, boundary), 400, "bad_request")
    # A transfer that had begun was broken off: fal's store has no file.
    assert not [record for record in uploads.at_files() if record["answered"] == 200]
    assert uploads.booked() == before


def test_a_file_name_is_given_in_the_form_or_the_query_not_in_both(alice: httpx.Client) -> None:
    files = {"file": ("a.png", FILE, "image/png")}
    assert_refused_with(alice.post("/v1/uploads?file_name=b.png", files=files), 400, "bad_request")


def test_types_inside_a_form_are_checked(uploads: Uploads, alice: httpx.Client) -> None:
    for kind, content in (("image/png", b"MZ" + bytes(99)), ("text/html", b"<html>"), ("", b"<html>")):
        assert_refused_with(send(alice, form(field(content, kind=kind))), 415, "unsupported_media_type")
    assert not uploads.sandbox.requests()


@pytest.mark.parametrize(
    "announced",
    [None, "", "application/octet-stream", "binary/octet-stream", "*/*", "*", "image/*", "IMAGE/* ; q=1", "image"],
)
def test_a_file_without_a_type_gets_that_of_its_first_bytes(
    uploads: Uploads, alice: httpx.Client, announced: str | None
) -> None:
    """Pages know no type of many files, and neither do programs that send one as it is."""
    headers = {} if announced is None else {"content-type": announced}
    for answer in (
        alice.post("/v1/uploads?file_name=a", content=FILE, headers=headers),
        send(alice, form(field(FILE, kind=announced or ""))),
    ):
        assert (answer.status_code, answer.json()["content_type"]) == (201, "image/png")
        assert uploads.has(answer.json()["url"], FILE)
    given = uploads.http.post("/fal/cdn/files/upload", content=FILE, headers={**uploads.token(), **headers})
    assert given.status_code == 200
    asked = [one["json"]["content_type"] for one in uploads.sandbox.requests() if one["host"] == "rest" and one["json"]]
    assert asked and set(asked) == {"image/png"}


@pytest.mark.parametrize("announced", ["image/*", "image", "multipart/form-data"])
def test_a_form_whose_file_has_no_certain_type_is_read(uploads: Uploads, alice: httpx.Client, announced: str) -> None:
    """As examples of HTTP libraries for phones write it; a page in the place of a picture is refused as ever."""
    answer = send(alice, form(field(FILE, kind=announced)))
    assert (answer.status_code, answer.json()["content_type"]) == (201, "image/png")
    assert_refused_with(send(alice, form(field(b"<html>", kind=announced))), 415, "unsupported_media_type")


def test_a_file_without_a_type_has_none_where_a_plan_allows_that(uploads: Uploads) -> None:
    with uploads.client(tenant="lax") as client:
        answer = client.post("/v1/uploads", content=FILE)
    assert (answer.status_code, answer.json()["content_type"]) == (201, "application/octet-stream")


@pytest.mark.parametrize(
    "announced", ["image/jpg", "image/pjpeg", "IMAGE/JPEG", "image/jpg ;q=1", "image/jpeg; charset=x"]
)
def test_aliases_of_a_content_type_are_accepted(uploads: Uploads, alice: httpx.Client, announced: str) -> None:
    """In every kind of upload; fal receives the standard name."""
    jpeg, headers = ROCKET.read_bytes()[:50_000], {"content-type": announced}
    answers = [
        alice.post("/v1/uploads?file_name=a.jpg", content=jpeg, headers=headers),
        send(alice, form(field(jpeg, kind=announced))),
    ]
    assert [(one.status_code, one.json()["content_type"]) for one in answers] == [(201, "image/jpeg")] * 2
    assert (
        httpx.get(answers[0].json()["url"], trust_env=False, verify=False, timeout=60).headers["content-type"]
        == "image/jpeg"
    )
    token = uploads.token()
    assert uploads.http.post("/fal/cdn/files/upload", content=jpeg, headers={**token, **headers}).status_code == 200
    assert uploads.http.post("/fal/cdn/files/upload/multipart", headers={**token, **headers}).status_code == 200
    asked = [one["json"]["content_type"] for one in uploads.sandbox.requests() if one["host"] == "rest" and one["json"]]
    assert asked and set(asked) == {"image/jpeg"}
    slot, parts = uploads.slot(content_type=announced), uploads.slot(content_type=announced, in_parts=True)
    assert slot.put(jpeg, **headers).status_code == 200
    assert uploads.slot(content_type="image/jpeg").put(jpeg, **headers).status_code == 200
    assert parts.part(1, jpeg).status_code == 200
    # The content is still checked.
    page = b"<html>"
    assert_refused_with(alice.post("/v1/uploads", content=page, headers=headers), 415, "unsupported_media_type")
    assert_refused_with(uploads.slot(content_type=announced).put(page, **headers), 415, "unsupported_media_type")


def test_two_content_types_are_refused(uploads: Uploads, alice: httpx.Client) -> None:
    two = [("content-type", "image/png"), ("content-type", "text/html")]
    assert_refused_with(alice.post("/v1/uploads", content=FILE, headers=two), 400, "bad_request")
    slot = uploads.slot()
    assert_refused_with(uploads.http.put(slot.upload_url, content=FILE, headers=two), 400, "bad_request")
    assert slot.put(FILE).status_code == 200
    both = {**uploads.token(), "content-type": "image/png, image/png"}
    assert_refused_with(
        uploads.http.post("/fal/cdn/files/upload", content=FILE, headers=both), 415, "unsupported_media_type"
    )

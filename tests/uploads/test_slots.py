"""A slot takes one file, without a credential, until it is used or expires."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from proxy.limits.retries import FREE_FILES, HOUR
from proxy.stores.directory import Revocation
from proxy.stores.sql import SqlStores
from proxy.uploads.slots import SLOT_SECONDS
from proxy.uploads.whole_files import MAX_REPEATABLE_BYTES
from tests.security.shape import assert_refusal
from tests.security.wire import Wire
from tests.support.audit_log import AUTHOR
from tests.support.images import png
from tests.support.limited import Booked, assert_refused_with, operating
from tests.uploads.conftest import MOST, PNG, Slot, Uploads

FILE = png(5000)
WANTED = {"content_type": "image/png", "file_name": "a.png"}


def test_a_file_arrives_and_is_counted_once(uploads: Uploads) -> None:
    before = uploads.booked().used
    slot = uploads.slot()
    assert slot.put(FILE).status_code == 200
    assert uploads.has(slot.file_url, FILE)
    assert uploads.booked() == Booked(before + len(FILE), 0)
    assert len(uploads.at_files()) == 2  # the file, and the test's own download


def test_the_same_file_again_is_accepted_and_any_other_is_refused(uploads: Uploads) -> None:
    """Clients send a PUT again by themselves when its answer is lost."""
    before = uploads.booked().used
    slot = uploads.slot()
    assert slot.put(FILE).status_code == 200
    assert [slot.put(FILE).status_code for _ in range(2)] == [200, 200]
    assert slot.put(chunks(FILE), **{"content-length": str(len(FILE))}).status_code == 200
    others = {
        "another byte": FILE[:-1] + bytes([FILE[-1] ^ 1]),
        "another byte in the middle": FILE[:2500] + bytes([FILE[2500] ^ 1]) + FILE[2501:],
        "shorter": FILE[:-1],
        "longer": FILE + b"x",
    }
    for name, other in others.items():
        assert "with another file" in assert_refused_with(slot.put(other), 400, "bad_request")["message"], name
    assert_refused_with(slot.put(FILE, **{"content-type": "image/jpeg"}), 415, "unsupported_media_type")
    # Nothing went to fal, and nothing was counted.
    assert len(uploads.at_files()) == 1 and uploads.booked() == Booked(before + len(FILE), 0)
    uploads.stack.clock.advance(SLOT_SECONDS)
    assert_refused_with(slot.put(FILE), 404, "not_found")


def test_only_a_few_repetitions_are_free(uploads: Uploads) -> None:
    file, slot = png(MOST), uploads.slot()
    assert slot.put(file).status_code == 200
    # A file of another size is not read, and uses nothing up.
    assert {slot.put(file[:-1]).status_code for _ in range(FREE_FILES + 1)} == {400}
    assert [slot.put(file).status_code for _ in range(FREE_FILES + 1)] == [200] * FREE_FILES + [400]
    uploads.stack.clock.advance(HOUR)


def test_a_large_file_is_not_accepted_again(uploads: Uploads) -> None:
    slot = uploads.slot(tenant="large")
    answers = [slot.put(png(MAX_REPEATABLE_BYTES + 1)) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 400]


def chunks(content: bytes) -> Iterator[bytes]:
    yield from (content[at : at + 700] for at in range(0, len(content), 700))


@pytest.mark.parametrize("host", ["rest.fal.ai", "rest.alpha.fal.ai"])
@pytest.mark.parametrize("query", ["", "?storage_type=fal-cdn-v3", "?storage_type=gcs"])
@pytest.mark.parametrize("kind", ["initiate", "initiate-multipart"])
def test_every_form_of_the_call_leads_to_the_proxy(uploads: Uploads, host: str, query: str, kind: str) -> None:
    target = {"x-fal-target-url": f"https://{host}/storage/upload/{kind}{query}"}
    with uploads.client() as alice:
        wanted = {"content_type": "image/png", "file_name": "a.png"}
        answer = alice.post("/api/fal/proxy", json=wanted, headers=target)
    assert answer.status_code == 200
    assert answer.json()["upload_url"].startswith(f"{uploads.stack.url}/uploads/")
    # It contains nothing of the signed URL.
    assert set(answer.json()) == {"file_url", "upload_url"} and "signature" not in answer.text
    (record,) = uploads.sandbox.requests()
    assert (record["path"], record["query"]) == (f"/storage/upload/{kind}", "storage_type=fal-cdn-v3")


@pytest.mark.parametrize(("tenant", "seconds"), [("acme", 604800), ("frugal", 3600), ("kept", None)])
def test_the_plan_says_how_long_fal_keeps_a_file(uploads: Uploads, tenant: str, seconds: int | None) -> None:
    # No wish makes it more public or longer-lived; 0 means "never" to fal.
    wish = {
        "x-fal-object-lifecycle": '{"expiration_duration_seconds":0,"initial_acl":{"default":"allow"}}',
        "x-fal-object-lifecycle-preference": '{"initial_acl":{"rules":[{"user":"eve","decision":"allow"}]}}',
    }
    with uploads.client(tenant=tenant) as alice:
        alice.post("/fal/rest/storage/upload/initiate", json={"content_type": "image/png"}, headers=wish)
    (record,) = uploads.sandbox.requests()
    lifecycle = dict(record["headers"]).get("x-fal-object-lifecycle")
    assert lifecycle == (None if seconds is None else f'{{"expiration_duration_seconds":{seconds}}}')


@pytest.mark.parametrize("size", [MOST, MOST + 1])
def test_the_largest_file_fits_and_one_byte_more_does_not(uploads: Uploads, size: int) -> None:
    slot = uploads.slot()
    answer = slot.put(png(size))
    if size == MOST:
        assert answer.status_code == 200
        return
    assert_refused_with(answer, 413, "body_too_large")
    assert not uploads.at_files() and uploads.booked().reserved == 0
    assert slot.put(png(MOST)).status_code == 200


NOT_A_PNG = {
    "program for Linux": b"\x7fELF\x02\x01\x01" + bytes(200),
    "program for Windows": b"MZ\x90\x00" + bytes(200),
    "script": b"#!/bin/sh\necho\n",
    "page": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "drawing that runs scripts": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    "other picture": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(200),
    "escaped signature": rb"\x89PNG<html>",
    "signature at the end": b"<html>" + bytes(10) + b"\x89PNG\r\n\x1a\n",
    "end of a PNG": b"<html>IEND\xaeB`\x82",
    "archive": b"PK\x03\x04" + bytes(200),
    "one byte": b"\x89",
}


@pytest.mark.parametrize("content", NOT_A_PNG.values(), ids=NOT_A_PNG)
def test_a_file_whose_content_is_no_picture_is_refused(uploads: Uploads, content: bytes) -> None:
    slot, before = uploads.slot(file_name="cat.png"), uploads.booked()
    body = assert_refused_with(slot.put(content), 415, "unsupported_media_type")
    assert "its first bytes are another type" in body["message"]
    assert not uploads.at_files() and uploads.booked() == before
    assert slot.put(FILE).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-type": "text/html"}, 415, "unsupported_media_type"),
        ({"content-length": "0"}, 400, "bad_request"),
        ({"content-length": str(10**15)}, 413, "body_too_large"),
        ({"content-range": "bytes 0-8/18"}, 400, "bad_request"),
        ({"content-range": "bytes 9-17/18"}, 400, "bad_request"),
        ({"content-range": "bytes */18"}, 400, "bad_request"),
    ],
)
def test_headers_that_do_not_fit_the_slot_are_refused(
    uploads: Uploads, headers: dict[str, str], status: int, code: str
) -> None:
    path = urlsplit(uploads.slot().upload_url).path
    # With `Expect: 100-continue` the body waits for permission: here it never comes.
    all_headers = {"host": "proxy", "expect": "100-continue", **PNG, "content-length": "9", **headers}
    head = "\r\n".join([f"PUT {path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items()), "", ""])
    with Wire(uploads.stack.url) as wire:
        assert_refusal(wire.raw(head.encode(), "PUT"), status, code)
    assert not uploads.at_files()


def test_a_range_that_is_the_whole_file_is_accepted(uploads: Uploads) -> None:
    slot = uploads.slot()
    assert slot.put(FILE, **{"content-range": f"bytes 0-{len(FILE) - 1}/{len(FILE)}"}).status_code == 200
    assert uploads.has(slot.file_url, FILE)


def test_a_file_without_its_length_is_refused(uploads: Uploads) -> None:
    slot = uploads.slot()
    body = assert_refused_with(slot.put(iter([FILE])), 400, "bad_request")
    assert body["message"] == "Send the file with its content-length."
    assert not uploads.at_files() and slot.put(FILE).status_code == 200


def test_a_file_with_two_lengths_is_refused(uploads: Uploads) -> None:
    path = urlsplit(uploads.slot().upload_url).path
    lengths = "content-length: 5000\r\ntransfer-encoding: chunked"
    head = f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n{lengths}\r\n\r\n"
    with Wire(uploads.stack.url) as wire:
        assert wire.raw(head.encode() + FILE, "PUT").status == 400
    uploads.until_idle()
    assert not uploads.at_files()


def test_bytes_beyond_the_announced_end_are_no_part_of_the_file_and_end_the_connection(uploads: Uploads) -> None:
    slot = uploads.slot()
    lines = ("host: x", "content-type: image/png", "content-length: 4000", "", "")
    head = f"PUT {urlsplit(slot.upload_url).path} HTTP/1.1\r\n" + "\r\n".join(lines)
    with Wire(uploads.stack.url) as wire:
        answer = wire.raw(head.encode() + FILE, "PUT")
    assert (answer.status, answer.all("connection")) == (200, ["close"])
    uploads.until_idle()
    assert uploads.has(slot.file_url, FILE[:4000])


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "5000, 5000", "٥"])
def test_a_length_that_is_no_number_is_refused(uploads: Uploads, length: str) -> None:
    head = f"PUT {urlsplit(uploads.slot().upload_url).path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    with Wire(uploads.stack.url) as wire:
        assert wire.raw(head.encode(), "PUT").status == 400
    assert not uploads.at_files()


def test_a_refusal_waits_until_the_file_was_sent(uploads: Uploads) -> None:
    """Many clients lose the answer if the connection closes while they send."""
    path = urlsplit(uploads.slot().upload_url).path
    with Wire(uploads.stack.url) as wire:
        for _ in range(2):
            refused = wire.exchange("PUT", path, PNG.items(), png(3_000_000))
            assert_refusal(refused, 413, "body_too_large")
            assert not refused.all("connection")
        # A body that does not come: late bytes must not be read as the next request.
        head = f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n"
        refused = wire.raw(head.encode(), "PUT")
        assert_refusal(refused, 413, "body_too_large")
        assert refused.all("connection") == ["close"]


def test_an_upload_is_counted_for_the_owner_of_the_slot(uploads: Uploads) -> None:
    slot, tokens = uploads.slot("alice"), uploads.stack.token
    for foreign in (
        {"authorization": f"Bearer {tokens('mallory')}"},
        {"authorization": f"Key {tokens('alice', tenant='lax')}"},
        {"authorization": f"Bearer {uploads.stack.tenant_key('acme')}"},
        {"x-fal-proxy-session": tokens("mallory")},
    ):
        body = assert_refused_with(slot.put(FILE, **foreign), 404, "not_found")
        unknown = assert_refused_with(
            uploads.http.put("/uploads/" + "x" * 43, content=FILE, headers=PNG), 404, "not_found"
        )
        assert {**body, "request_id": ""} == {**unknown, "request_id": ""}
    assert_refused_with(slot.put(FILE, authorization="Bearer nonsense"), 401, "unauthenticated")
    assert not uploads.at_files()
    # Browsers also send old cookies.
    answer = slot.put(FILE, authorization=f"Bearer {tokens('alice')}", cookie="fal_session=stale")
    assert answer.status_code == 200


def test_slots_of_a_revoked_session_are_refused(uploads: Uploads) -> None:
    slot, now = uploads.slot("rosa"), uploads.stack.clock.now()

    async def revoke() -> None:
        stores = SqlStores(uploads.stack.settings.stores.database_url.reveal())
        await stores.directory.revoke(Revocation("acme", None, "rosa", now, now + 10**6), by=AUTHOR)
        await stores.close()

    asyncio.run(revoke())
    uploads.stack.clock.advance(5)
    assert_refused_with(slot.put(FILE), 404, "not_found")
    assert not uploads.at_files()


def test_a_slot_ends_with_the_session_that_asked_for_it(uploads: Uploads) -> None:
    """Also a slot of the Python client, whose upload token has expired before and can be renewed."""
    stack, image = uploads.stack, {"content-type": "image/png"}
    with stack.client(stack.token("sam", ttl_seconds=1200)) as sam:
        whole = Slot(uploads, **sam.post("/fal/rest/storage/upload/initiate", json=WANTED).json())
        parts = Slot(uploads, **sam.post("/fal/rest/storage/upload/initiate-multipart", json=WANTED).json())
        token = sam.post("/fal/rest/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()["token"]
    with stack.client(token) as python:
        begun = python.post("/fal/cdn/files/upload/multipart", headers=image).json()
    from_python = Slot(uploads, begun["access_url"], f"{stack.url}/uploads/{begun['uploadId']}")
    stack.clock.advance(890)
    assert whole.put(FILE).status_code == 200
    stack.clock.advance(300)
    assert {parts.part(1, FILE).status_code, from_python.part(1, FILE).status_code} == {200}
    stack.clock.advance(20)
    uploads.sandbox.forget()
    for slot in (parts, from_python):
        assert_refused_with(slot.part(2, FILE), 404, "not_found")
        assert_refused_with(slot.complete([]), 404, "not_found")
    assert not uploads.at_files()


def test_slots_of_a_revoked_key_are_refused(uploads: Uploads) -> None:
    stack = uploads.stack
    with operating(stack) as operator:
        made = operator.post("/v1/admin/tenants/acme/keys", json={}).json()
        with stack.client(made["key"]) as backend:
            whole = Slot(uploads, **backend.post("/fal/rest/storage/upload/initiate", json=WANTED).json())
            parts = Slot(uploads, **backend.post("/fal/rest/storage/upload/initiate-multipart", json=WANTED).json())
        assert parts.part(1, FILE).status_code == 200
        uploads.sandbox.forget()
        assert operator.delete(f"/v1/admin/keys/{made['id']}").status_code == 204
    assert_refused_with(whole.put(FILE), 404, "not_found")
    assert_refused_with(parts.part(2, FILE), 404, "not_found")
    assert not uploads.at_files()


def test_a_slot_expires(uploads: Uploads) -> None:
    whole, parts = uploads.slot(), uploads.slot(in_parts=True)
    uploads.stack.clock.advance(900)
    assert_refused_with(whole.put(FILE), 404, "not_found")
    sent = parts.parts(FILE)
    uploads.stack.clock.advance(2700)
    assert_refused_with(parts.part(2, FILE), 404, "not_found")
    assert_refused_with(parts.complete(sent), 404, "not_found")


def test_a_slot_is_for_one_request_or_for_parts(uploads: Uploads) -> None:
    whole, parts = uploads.slot(), uploads.slot(in_parts=True)
    assert "at once" in assert_refused_with(whole.part(1, FILE), 400, "bad_request")["message"]
    assert "at once" in assert_refused_with(whole.complete([]), 400, "bad_request")["message"]
    assert "in parts" in assert_refused_with(parts.put(FILE), 400, "bad_request")["message"]
    assert not uploads.at_files()


def test_a_page_of_another_origin_may_upload(uploads: Uploads) -> None:
    origin = {"origin": "https://app.acme.example"}
    slot = uploads.slot(in_parts=True)
    for tail, method in (("", "PUT"), ("/1", "PUT"), ("/complete", "POST")):
        asked = {**origin, "access-control-request-method": method, "access-control-request-headers": "content-type"}
        preflight = uploads.http.options(slot.upload_url + tail, headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin["origin"]
    answer = slot.part(1, FILE, **origin)
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    refused = slot.part(0, FILE, **origin)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, origin["origin"])


def test_a_daily_quota_of_bytes_is_enforced(uploads: Uploads) -> None:
    slots = [uploads.slot("alice", "frugal") for _ in range(3)]
    assert slots[0].put(png(600)).status_code == 200
    refused = assert_refused_with(slots[1].put(png(401)), 402, "quota_exceeded", "subject")
    assert refused["retry_after"] > 0
    assert slots[1].put(png(400)).status_code == 200
    assert_refused_with(slots[2].put(png(1)), 415, "unsupported_media_type")
    assert uploads.booked("frugal", "alice") == Booked(1000, 0)


def test_a_type_without_a_known_signature_passes_if_the_plan_names_it(uploads: Uploads) -> None:
    for kind, content in (("text/plain", b"Hello"), ("application/octet-stream", b"\x7fELF")):
        slot = uploads.slot("alice", "lax", content_type=kind)
        assert slot.put(content, **{"content-type": kind}).status_code == 200
    slot = uploads.slot("alice", "lax", content_type="text/plain")
    assert_refused_with(slot.put(b"MZ\0\0", **{"content-type": "text/plain"}), 415, "unsupported_media_type")


@pytest.mark.parametrize("tail", ["", "/1", "/complete"])
def test_a_refusal_reveals_nothing_of_the_slot(uploads: Uploads, tail: str) -> None:
    slot = uploads.slot(in_parts=tail == "")
    method = httpx.post if tail == "/complete" else httpx.put
    answer = method(slot.upload_url + tail, content=b"{}", headers={"content-type": "application/json"})
    assert answer.status_code in (400, 415)
    assert urlsplit(slot.upload_url).path.rpartition("/")[2] not in answer.text

"""fal's CDN in the host form: its token opens uploads only, and only those of the caller that asked for it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.support.images import png
from tests.support.limited import NEXT, Booked, assert_refused_with
from tests.uploads.conftest import MOST, PNG, Uploads

FIRST, SECOND = png(5000), b"second" * 700


class Multipart:
    """An upload in parts, as the Python client makes one."""

    def __init__(self, uploads: Uploads, bearer: dict[str, str]) -> None:
        self._http, self._bearer = uploads.http, bearer
        wanted = {**bearer, **PNG, "x-fal-file-name": "a.png"}
        begun = self._http.post("/fal/cdn/files/upload/multipart", headers=wanted)
        assert begun.status_code == 200, begun.text
        self.url: str = begun.json()["access_url"]
        self.base = f"{self.url}/multipart/{begun.json()['uploadId']}"

    def part(self, number: int, content: bytes, base: str = "", **headers: str) -> httpx.Response:
        return self._http.put(f"{base or self.base}/{number}", content=content, headers={**self._bearer, **headers})

    def complete(self, parts: list[dict[str, Any]], **headers: str) -> httpx.Response:
        return self._http.post(f"{self.base}/complete", json={"parts": parts}, headers={**self._bearer, **headers})


def test_the_proxy_issues_its_own_upload_token(uploads: Uploads) -> None:
    with uploads.client() as alice:
        answer = alice.post("/fal/rest/storage/auth/token?storage_type=fal-cdn-v3", json={})
    issued = answer.json()
    assert (issued["token_type"], issued["base_url"]) == ("Bearer", f"{uploads.stack.url}/fal/cdn")
    ends = datetime.fromisoformat(issued["expires_at"])
    assert ends.tzinfo is not None and not issued["expires_at"].endswith("Z")
    assert ends == datetime.fromtimestamp(uploads.stack.clock.now() + 900, UTC)
    assert answer.headers["cache-control"] == "no-store"
    assert not uploads.sandbox.requests()


def test_a_file_is_uploaded_in_one_request(uploads: Uploads) -> None:
    before = uploads.booked().used
    headers = {**uploads.token(), **PNG, "x-fal-file-name": "a b.png"}
    answer = uploads.http.post("/fal/cdn/files/upload", content=FIRST, headers=headers)
    assert answer.status_code == 200 and set(answer.json()) == {"access_url"}
    assert answer.json()["access_url"].endswith("/a_b.png") and uploads.has(answer.json()["access_url"], FIRST)
    assert uploads.booked() == Booked(before + len(FIRST), 0)


def test_a_file_is_uploaded_in_parts_and_its_url_works_in_an_input(uploads: Uploads) -> None:
    upload = Multipart(uploads, uploads.token())
    answers = [upload.part(2, SECOND), upload.part(1, FIRST)]
    named = [{"partNumber": 3 - at, "etag": answer.headers["etag"]} for at, answer in enumerate(answers, 1)]
    assert upload.complete(named).json() == {"access_url": upload.url}
    fals = upload.url.replace(f"{uploads.stack.url}/fal/cdn", f"{uploads.sandbox.url}/cdn")
    assert uploads.has(fals, FIRST + SECOND)
    uploads.sandbox.forget()
    with uploads.client() as alice:
        alice.post(f"/fal/run/{NEXT}", json={"prompt": "?", "image_url": upload.url})
    (run,) = [record for record in uploads.sandbox.requests() if record["host"] == "run"]
    assert run["json"]["image_url"] == fals


def test_uploads_need_an_upload_token_and_it_opens_nothing_else(uploads: Uploads) -> None:
    session, key, own = uploads.stack.token(), uploads.stack.tenant_key(), uploads.token()
    upload = Multipart(uploads, own)
    for bearer in ("", f"Bearer {session}", f"Key {key}", "Bearer nonsense", own["authorization"] + "x"):
        headers = {"authorization": bearer} if bearer else {}
        for method, url in (
            ("POST", "/fal/cdn/files/upload"),
            ("POST", "/fal/cdn/files/upload/multipart"),
            ("PUT", f"{upload.base}/1"),
            ("POST", f"{upload.base}/complete"),
        ):
            answer = uploads.http.request(method, url, content=b"{}", headers={**PNG, **headers})
            assert_refused_with(answer, 401, "unauthenticated")
    # The token opens nothing else.
    for method, path in (("POST", f"/fal/run/{NEXT}"), ("POST", "/v1/uploads"), ("GET", "/v1/session")):
        assert_refused_with(uploads.http.request(method, path, headers=own), 401, "unauthenticated")
    assert not uploads.at_files()


def test_the_token_expires_and_ends_with_its_session(uploads: Uploads) -> None:
    def sent(bearer: dict[str, str]) -> httpx.Response:
        return uploads.http.post("/fal/cdn/files/upload", content=FIRST, headers={**bearer, **PNG})

    short = uploads.stack.token(ttl_seconds=60)
    with uploads.stack.client(short) as alice:
        issued = alice.post("/fal/rest/storage/auth/token", json={}).json()
        bearer = {"authorization": f"Bearer {issued['token']}"}
        assert sent(bearer).status_code == 200
        revoked = uploads.token("alice")
        assert alice.delete("/v1/session").is_success
    assert_refused_with(sent(bearer), 401, "session_revoked")
    assert sent(revoked).status_code == 200
    uploads.stack.clock.advance(901)
    assert_refused_with(sent(revoked), 401, "session_expired")


def test_a_tenant_key_gets_an_upload_token_until_it_is_revoked(uploads: Uploads) -> None:
    with uploads.stack.client(uploads.stack.tenant_key("kept")) as backend:
        issued = backend.post("/fal/rest/storage/auth/token", json={}).json()
    headers = {"authorization": f"Bearer {issued['token']}", **PNG}
    assert uploads.http.post("/fal/cdn/files/upload", content=FIRST, headers=headers).status_code == 200
    key = uploads.stack.tenant_key("kept").split("_")[1]
    with uploads.stack.client("an-admin-token-of-the-tests-with-more-than-32-bytes") as operator:
        assert operator.delete(f"/v1/admin/keys/{key}").is_success
    assert_refused_with(
        uploads.http.post("/fal/cdn/files/upload", content=FIRST, headers=headers), 401, "unauthenticated"
    )


def test_only_the_caller_that_began_an_upload_in_parts_may_continue_it(uploads: Uploads) -> None:
    upload, other = Multipart(uploads, uploads.token("alice")), uploads.token("mallory")
    sent = upload.part(1, FIRST).json()
    assert_refused_with(upload.part(2, SECOND, **other), 404, "not_found")
    assert_refused_with(upload.complete([sent], **other), 404, "not_found")
    # Another file name does not find the upload.
    elsewhere = upload.base.replace("/a.png/", "/b.png/")
    assert_refused_with(upload.part(2, SECOND, elsewhere), 404, "not_found")
    assert_refused_with(upload.part(2, SECOND, f"{upload.url}/multipart/{'x' * 43}"), 404, "not_found")
    # A slot for a single request takes no parts.
    whole = uploads.slot("alice").upload_url.rpartition("/")[2]
    assert_refused_with(upload.part(1, FIRST, f"{upload.url}/multipart/{whole}"), 404, "not_found")
    assert upload.complete([sent]).status_code == 200


@pytest.mark.parametrize("path", ["files/upload", "files/upload/multipart"])
def test_limits_of_the_plan_apply_here_too(uploads: Uploads, path: str) -> None:
    bearer = uploads.token()
    headers = {**bearer, "content-type": "text/html"}
    assert_refused_with(
        uploads.http.post(f"/fal/cdn/{path}", content=b"<html>", headers=headers), 415, "unsupported_media_type"
    )
    assert_refused_with(
        uploads.http.post(f"/fal/cdn/{path}", content=b"x", headers=bearer), 415, "unsupported_media_type"
    )
    if path == "files/upload":
        large = uploads.http.post(f"/fal/cdn/{path}", content=png(MOST + 1), headers={**bearer, **PNG})
        assert_refused_with(large, 413, "body_too_large")
    assert not uploads.sandbox.requests()


def test_a_refusal_of_fal_to_give_an_upload_url_is_passed_on(uploads: Uploads) -> None:
    bearer = uploads.token()
    uploads.sandbox.fault("status", status=422, on={"host": "rest"})
    with uploads.client() as alice:
        answers = [
            uploads.http.post("/fal/cdn/files/upload", content=FIRST, headers={**bearer, **PNG}),
            uploads.http.post("/fal/cdn/files/upload/multipart", headers={**bearer, **PNG}),
            alice.post("/v1/uploads", content=FIRST, headers=PNG),
            alice.post("/fal/rest/storage/upload/initiate-multipart", json={"content_type": "image/png"}),
        ]
    assert [answer.status_code for answer in answers] == [422] * 4
    assert uploads.booked().reserved == 0

"""Uploads by signed URL and by token, whole and in parts; what they hold is what comes back."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Any

import httpx
import pytest

from proxy.sandbox.files import KEPT_FILE_BYTES
from tests.sandbox.conftest import CHELSEA, Fal

PNG = {"content_type": "image/png", "file_name": "a.png"}


def _initiate(fal: Fal, path: str = "initiate", **body: Any) -> dict[str, str]:
    answer = fal.client.post(f"/rest/storage/upload/{path}", json=PNG | body)
    assert answer.status_code == 200, answer.text
    urls: dict[str, str] = answer.json()
    return urls


@pytest.mark.parametrize("query", ["", "?storage_type=fal-cdn-v3", "?storage_type=gcs"])
def test_a_picture_goes_in_by_signed_url_and_is_used(fal: Fal, stranger: httpx.Client, query: str) -> None:
    urls = _initiate(fal, f"initiate{query}")
    assert re.fullmatch(rf"{fal.url}/cdn/files/b/[0-9a-f]+/a\.png", urls["file_url"])
    assert urls["upload_url"].startswith(urls["file_url"] + "?")
    assert stranger.put(urls["upload_url"], content=CHELSEA, headers={"content-type": "image/png"}).status_code == 200
    back = stranger.get(urls["file_url"])
    assert (back.content, back.headers["content-type"]) == (CHELSEA, "image/png")
    assert stranger.head(urls["file_url"]).headers["content-length"] == str(len(CHELSEA))
    # Whatever name the sandbox goes by, a file of its own is found in memory.
    for url in (urls["file_url"], urls["file_url"].replace(fal.url + "/cdn", "https://v3.fal.media")):
        assert hashlib.sha256(CHELSEA).hexdigest()[:16] in fal.run(image_url=url).json()["output"]


@pytest.mark.parametrize("wrong", ["signature=0", "expires=9999999999.000", "file", "none"])
def test_a_wrong_signature_is_refused(fal: Fal, stranger: httpx.Client, wrong: str) -> None:
    url = _initiate(fal)["upload_url"]
    name = wrong.partition("=")[0]
    changed = {
        "file": url.replace("a.png?", "b.png?"),
        "none": url.partition("?")[0],
    }.get(wrong, re.sub(rf"{name}=[^&]+", wrong, url))
    assert changed != url
    answer = stranger.put(changed, content=b"x")
    assert (answer.status_code, list(answer.json())) == (403, ["detail"])


def test_an_expired_signature_is_refused(fal: Fal, stranger: httpx.Client) -> None:
    fal.client.post("/_sandbox/pace", json={"upload_seconds": 0})
    assert stranger.put(_initiate(fal)["upload_url"], content=b"x").status_code == 403


@pytest.mark.parametrize("body", [{}, {"file_name": "a.png"}, {"content_type": 1, "file_name": "a"}, [], None])
def test_initiate_wants_a_name_and_a_type(fal: Fal, body: Any) -> None:
    assert fal.client.post("/rest/storage/upload/initiate", json=body).status_code == 422


def test_initiate_knows_its_storage_types(fal: Fal) -> None:
    assert fal.client.post("/rest/storage/upload/initiate?storage_type=attic", json=PNG).status_code == 400


def test_a_hostile_file_name_becomes_harmless(fal: Fal) -> None:
    url = _initiate(fal, file_name="../../é<x>?.png")["file_url"]
    assert re.fullmatch(rf"{fal.url}/cdn/files/b/[0-9a-f]+/\.\._\.\.___x__\.png", url)


def _in_parts(data: bytes, count: int) -> list[bytes]:
    size = -(-len(data) // count)
    return [data[i : i + size] for i in range(0, len(data), size)]


def test_the_javascript_client_uploads_in_parts(fal: Fal, stranger: httpx.Client) -> None:
    urls = _initiate(fal, "initiate-multipart?storage_type=fal-cdn-v3")
    path, _, query = urls["upload_url"].partition("?")
    parts = []
    for number, piece in enumerate(_in_parts(CHELSEA, 3), 1):
        answer = stranger.put(f"{path}/{number}?{query}", content=piece)
        assert answer.headers["content-type"] == "application/json"
        parts.append(answer.json())
    assert [part["partNumber"] for part in parts] == [1, 2, 3]
    assert stranger.get(urls["file_url"]).status_code == 404
    assert stranger.post(f"{path}/complete?{query}", json={"parts": parts}).status_code == 200
    back = stranger.get(urls["file_url"])
    assert (back.content, back.headers["content-type"]) == (CHELSEA, "image/png")


def _token(fal: Fal) -> dict[str, str]:
    answer = fal.client.post("/rest/storage/auth/token?storage_type=fal-cdn-v3", json={})
    token: dict[str, str] = answer.json()
    return token


def test_the_python_client_uploads_with_a_token(fal: Fal, stranger: httpx.Client) -> None:
    token = _token(fal)
    assert datetime.fromisoformat(token["expires_at"]).tzinfo is not None
    headers = {"authorization": f"{token['token_type']} {token['token']}", "x-fal-file-name": "cat.png"}
    answer = stranger.post(f"{token['base_url']}/files/upload", content=CHELSEA, headers=headers)
    assert answer.json()["access_url"].endswith("/cat.png")
    assert stranger.get(answer.json()["access_url"]).content == CHELSEA


def test_the_python_client_uploads_in_parts_named_in_any_order(fal: Fal, stranger: httpx.Client) -> None:
    token = _token(fal)
    bearer = {"authorization": f"Bearer {token['token']}"}
    headers = bearer | {"x-fal-file-name": "cat.png", "content-type": "image/png"}
    begun = stranger.post(f"{token['base_url']}/files/upload/multipart", headers=headers).json()
    base = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    pieces = list(enumerate(_in_parts(CHELSEA, 12), 1))
    sent = {n: stranger.put(f"{base}/{n}", content=piece, headers=bearer) for n, piece in reversed(pieces)}
    named = [{"partNumber": n, "etag": answer.headers["etag"]} for n, answer in sent.items()]
    assert stranger.post(f"{base}/complete", json={"parts": named}, headers=bearer).status_code == 200
    back = stranger.get(begun["access_url"])
    assert (back.content, back.headers["content-type"]) == (CHELSEA, "image/png")


@pytest.mark.parametrize(
    "spoil",
    [lambda parts: [], lambda parts: parts[:1], lambda parts: [{**part, "etag": "x"} for part in parts],
     lambda parts: None, lambda parts: ["x"]],
)  # fmt: skip
def test_parts_that_do_not_match_are_refused(fal: Fal, stranger: httpx.Client, spoil: Any) -> None:
    urls = _initiate(fal, "initiate-multipart")
    path, _, query = urls["upload_url"].partition("?")
    parts = [stranger.put(f"{path}/{n}?{query}", content=b"x" * n).json() for n in (1, 2)]
    assert stranger.post(f"{path}/complete?{query}", json={"parts": spoil(parts)}).status_code == 400
    assert stranger.post(f"{path}/complete?{query}", content=b"nonsense").status_code == 400
    assert stranger.post(f"{path}/complete?{query}", json={"parts": parts}).status_code == 200


def test_a_part_sent_again_replaces_the_first(fal: Fal, stranger: httpx.Client) -> None:
    urls = _initiate(fal, "initiate-multipart")
    path, _, query = urls["upload_url"].partition("?")
    parts = [stranger.put(f"{path}/1?{query}", content=content).json() for content in (b"old", b"new")]
    stranger.post(f"{path}/complete?{query}", json={"parts": parts[1:]})
    assert stranger.get(urls["file_url"]).content == b"new"


@pytest.mark.parametrize("credentials", ["", "Bearer wrong", "Bearer sandbox-cdn.9999999999.00", "Bearer sandbox-cdn"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "upload"),
        ("POST", "upload/multipart"),
        ("PUT", "b/x/y/multipart/z/1"),
        ("POST", "b/x/y/multipart/z/complete"),
    ],
)
def test_the_token_flow_wants_a_token(
    fal: Fal, stranger: httpx.Client, method: str, path: str, credentials: str
) -> None:
    answer = stranger.request(method, f"{fal.url}/cdn/files/{path}", headers={"authorization": credentials})
    assert answer.status_code in (401, 403)


def test_a_token_for_something_else_is_no_cdn_token(fal: Fal, stranger: httpx.Client) -> None:
    token = fal.client.post("/rest/tokens/", json={"allowed_apps": ["llava-next"], "token_expiration": 120}).json()
    assert isinstance(token, str)
    answer = stranger.post(f"{fal.url}/cdn/files/upload", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401


def test_tokens_for_realtime_come_in_an_object(fal: Fal) -> None:
    answer = fal.client.post("/rest/tokens/realtime", json={"allowed_apps": ["fal-ai/llava-next"], "duration": 60})
    assert isinstance(answer.json()["token"], str)
    assert fal.client.post("/rest/tokens/", json={}).status_code == 422


def test_a_large_upload_is_recorded_by_its_hash(fal: Fal, stranger: httpx.Client) -> None:
    block = bytes(range(256)) * 4096
    urls = _initiate(fal, content_type="video/mp4", file_name="v.mp4")
    stranger.put(urls["upload_url"], content=(block for _ in range(12)))
    digest = hashlib.sha256(block * 12).hexdigest()
    recorded = fal.requests()[-1]
    assert (recorded["body_size"], recorded["body_sha256"], recorded["json"]) == (12 * len(block), digest, None)
    assert hashlib.sha256(stranger.get(urls["file_url"]).content).hexdigest() == digest


def test_a_file_is_forgotten_when_its_lifecycle_ends(fal: Fal, stranger: httpx.Client) -> None:
    def stored(lifecycle: str) -> httpx.Response:
        wish = {"x-fal-object-lifecycle": lifecycle}
        urls = fal.client.post("/rest/storage/upload/initiate", json=PNG, headers=wish).json()
        assert stranger.put(urls["upload_url"], content=CHELSEA).status_code == 200
        return stranger.get(urls["file_url"])

    assert stored('{"expiration_duration_seconds":0}').status_code == 404
    for lasting in ('{"expiration_duration_seconds":3600}', "{}", "nonsense", "[]"):
        assert stored(lasting).content == CHELSEA


@pytest.mark.parametrize("number", [0, 10_001])
def test_a_part_number_out_of_bounds_is_refused(fal: Fal, stranger: httpx.Client, number: int) -> None:
    path, _, query = _initiate(fal, "initiate-multipart")["upload_url"].partition("?")
    assert stranger.put(f"{path}/{number}?{query}", content=b"x").status_code == 400


@pytest.mark.slow
def test_of_a_huge_file_only_size_and_digest_are_kept(fal: Fal, stranger: httpx.Client) -> None:
    block, count = bytes(2**20), KEPT_FILE_BYTES // 2**20 + 1
    urls = _initiate(fal, content_type="video/mp4", file_name="v.mp4")
    assert stranger.put(urls["upload_url"], content=(block for _ in range(count))).status_code == 200
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(block)
    head = stranger.head(urls["file_url"])
    assert head.headers["content-length"] == str(count * 2**20)
    assert head.headers["etag"] == f'"{digest.hexdigest()[:32]}"'
    back = stranger.get(urls["file_url"])
    assert back.status_code == 507 and digest.hexdigest() in back.json()["detail"]

"""fal's CDN in the proxy protocol, as newer Swift clients upload: every step goes to the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proxy.targets import parse_cdn_url
from tests.support.images import png
from tests.support.limited import assert_refused_with
from tests.uploads.conftest import MOST, Uploads

FILE = png(5000)
PATH = "/api/fal/proxy"
TOKEN_URL = "https://rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3"
CDN = "https://v3.fal.media"


class Swift:
    """A Swift client in an app, with its own session."""

    def __init__(self, uploads: Uploads, client: httpx.Client) -> None:
        self._uploads = uploads
        self._client = client
        answer = client.post(PATH, json={}, headers={"x-fal-target-url": TOKEN_URL}).raise_for_status().json()
        # The client refuses any other host.
        assert answer["base_url"] == CDN
        self.token = {"x-fal-cdn-authorization": f"{answer['token_type']} {answer['token']}"}
        uploads.sandbox.forget()

    def send(self, method: str, url: str, content: bytes = b"", **headers: str) -> httpx.Response:
        # The sandbox keeps files at another address than fal.
        url = url.replace(self._uploads.stack.settings.fal.cdn_url, CDN)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.request(
            method, PATH, content=content, headers={**self.token, "x-fal-target-url": url, **named}
        )


@pytest.fixture
def swift(uploads: Uploads) -> Iterator[Swift]:
    with uploads.client() as client:
        yield Swift(uploads, client)


def test_a_file_is_uploaded_in_one_request(uploads: Uploads, swift: Swift) -> None:
    before = uploads.booked().used
    answer = swift.send("POST", f"{CDN}/files/upload", FILE, content_type="image/png", x_fal_file_name="a.png")
    assert answer.status_code == 200
    assert uploads.has(answer.json()["access_url"], FILE) and answer.json()["access_url"].endswith("a.png")
    assert uploads.booked().used == before + len(FILE)


def test_a_file_is_uploaded_in_parts(uploads: Uploads, swift: Swift) -> None:
    head = {"content_type": "image/png", "x_fal_file_name": "b.png"}
    begun = swift.send("POST", f"{CDN}/files/upload/multipart", **head).raise_for_status().json()
    upload = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    parts: list[dict[str, Any]] = []
    for number, content in enumerate((FILE[:3000], FILE[3000:]), 1):
        answer = swift.send("PUT", f"{upload}/{number}", content, content_type="image/png").raise_for_status()
        parts.append({"partNumber": number, "etag": answer.headers["etag"]})
    body = httpx.Request("POST", "http://x", json={"parts": parts}).content
    assert swift.send("POST", f"{upload}/complete", body, content_type="application/json").status_code == 200
    assert uploads.has(begun["access_url"], FILE)


def test_size_limits_of_files_apply(uploads: Uploads, swift: Swift) -> None:
    answer = swift.send("POST", f"{CDN}/files/upload", png(MOST + 1), content_type="image/png")
    assert "that this plan allows" in assert_refused_with(answer, 413, "body_too_large")["message"]
    answer = swift.send("POST", f"{CDN}/files/upload", b"<html>", content_type="image/png")
    assert_refused_with(answer, 415, "unsupported_media_type")
    assert not uploads.at_files()


def test_a_large_file_may_exceed_the_body_limit(uploads: Uploads) -> None:
    """`PROXY_MAX_BODY_BYTES` limits other bodies only."""
    file = png(13 * 1024 * 1024)
    with uploads.client(tenant="large") as client:
        answer = Swift(uploads, client).send("POST", f"{CDN}/files/upload", file, content_type="image/png")
    assert answer.status_code == 200, answer.text


def test_an_invalid_token_is_refused(uploads: Uploads, swift: Swift) -> None:
    url, session = f"{CDN}/files/upload", uploads.stack.token()
    for token in ("Bearer x", f"Bearer {session}", "", f"{swift.token['x-fal-cdn-authorization']}, Bearer x"):
        answer = swift.send("POST", url, FILE, content_type="image/png", x_fal_cdn_authorization=token)
        assert_refused_with(answer, 401, "unauthenticated")
    begun = swift.send("POST", f"{url}/multipart", content_type="image/png").json()
    with uploads.client("eve") as client:
        part = f"{begun['access_url']}/multipart/{begun['uploadId']}/1"
        assert_refused_with(Swift(uploads, client).send("PUT", part, FILE), 404, "not_found")
    assert not uploads.at_files()


def test_a_call_to_the_cdn_without_a_token_is_refused(uploads: Uploads) -> None:
    with uploads.client() as client:
        answer = client.post(PATH, content=FILE, headers={"x-fal-target-url": f"{CDN}/files/upload"})
    assert_refused_with(answer, 400, "bad_target")


NO_TARGETS = [
    f"{CDN}/files/delete",
    f"{CDN}/files/upload/",
    f"{CDN}/files/upload?x=1",
    f"{CDN}/files/../files/upload",
    f"{CDN}/files/a/../b/multipart/x/1",
    f"{CDN}/files/a%2Fb/multipart/x/1",
    f"{CDN}/files//a/multipart/x/1",
    f"{CDN}/files/a/multipart/x/1/2",
    f"{CDN}/files/a/multipart/x/y",
    f"{CDN}/files/a/multipart/x/1\n",
    "http://v3.fal.media/files/upload",
    "https://v3.fal.media:8443/files/upload",
    "https://v3.fal.media@evil.example/files/upload",
    "https://v3.fal.media.evil.example/files/upload",
    "https://evilfal.media/files/upload",
    f"{CDN}/files/{'a' * 2048}/multipart/x/1",
]


@pytest.mark.parametrize("url", NO_TARGETS)
def test_other_urls_are_not_parsed_as_the_cdn(url: str) -> None:
    assert parse_cdn_url(url) is None


def test_other_targets_are_refused_even_with_a_valid_token(uploads: Uploads, swift: Swift) -> None:
    for url in NO_TARGETS:
        if url.isprintable():
            assert_refused_with(swift.send("POST", url, FILE), 400, "bad_target")
    assert not uploads.sandbox.requests()

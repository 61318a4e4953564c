"""A plan with `strip_metadata`: fal gets pictures without metadata, in every kind of upload."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from proxy.pictures.data_uris import MOST_DATA_URIS
from tests.support.limited import NEXT, Booked, Client, assert_refused_with, limited_proxy, per, plan, posts
from tests.support.private_pictures import bomb, is_private, private_picture, several
from tests.support.sandbox import SandboxControl
from tests.uploads.conftest import Slot, Uploads

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
ALLOWED = [*TYPES.values(), "image/heic", "application/octet-stream", "text/plain"]
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(5000)
MOST = 200_000
OCTETS = "application/octet-stream"
PLANS: dict[str, dict[str, Any]] = {
    "acme": plan(
        strip_metadata=True,
        max_pixels=1500,
        max_data_uri_bytes=400_000,
        uploads={"max_bytes": MOST, "content_types": ALLOWED},
        quotas=[per("tenant", "upload_bytes", 10**12), per("tenant", "requests", 10**6)],
    ),
    "large": plan(strip_metadata=True, uploads={"max_bytes": 20 * 2**20}),
    "tight": plan(strip_metadata=True, max_data_uri_bytes=8000, uploads={"max_bytes": 6000}),
    "loose": plan(uploads={"content_types": ALLOWED}),
}


@pytest.fixture(scope="module")
def private(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploads]:
    folder = tmp_path_factory.mktemp("private")
    with limited_proxy(shared_sandbox, folder, PLANS) as stack:
        uploads = Uploads(stack, folder)
        yield uploads
        uploads.http.close()


@pytest.fixture
def uploads(private: Uploads, sandbox: SandboxControl) -> Uploads:
    return private


@pytest.fixture
def alice(uploads: Uploads) -> Iterator[httpx.Client]:
    with uploads.client() as alice:
        yield alice


def at_fal(url: str) -> bytes:
    """The bytes of this file at fal."""
    return httpx.get(url, trust_env=False, verify=False, timeout=60).raise_for_status().content


def is_clean(data: bytes, kind: str = "JPEG") -> bool:
    picture = Image.open(io.BytesIO(data))
    return not is_private(data) and picture.format == kind and picture.width * picture.height <= 1500


def sent(slot: Slot, content: bytes, content_type: str) -> httpx.Response:
    return slot.put(content, **{"content-type": content_type})


def test_every_kind_of_upload_is_cleaned(uploads: Uploads, alice: httpx.Client) -> None:
    data, headers = private_picture("JPEG"), {"content-type": "image/jpeg"}
    slot = uploads.slot(content_type="image/jpeg")
    assert sent(slot, data, "image/jpeg").status_code == 200
    body = alice.post("/v1/uploads", content=data, headers=headers).json()
    form = alice.post("/v1/uploads", files={"file": ("a.jpg", data, "image/jpeg")}).json()
    cdn = uploads.http.post("/fal/cdn/files/upload", content=data, headers={**uploads.token(), **headers}).json()
    for url in (slot.file_url, body["url"], form["url"], cdn["access_url"]):
        assert is_clean(at_fal(url))
    assert body["size"] == form["size"] == len(at_fal(body["url"]))


@pytest.mark.parametrize("kind", TYPES)
def test_every_format_keeps_its_type(alice: httpx.Client, kind: str) -> None:
    data = private_picture(kind, orientation=1)
    url = alice.post("/v1/uploads", content=data, headers={"content-type": TYPES[kind]}).json()["url"]
    assert is_clean(at_fal(url), kind)
    assert httpx.get(url, trust_env=False, verify=False, timeout=60).headers["content-type"] == TYPES[kind]


def test_the_cleaned_size_is_counted(uploads: Uploads) -> None:
    before = uploads.booked().used
    slot = uploads.slot(content_type="image/jpeg")
    sent(slot, private_picture("JPEG"), "image/jpeg")
    (record,) = uploads.at_files()
    size = len(at_fal(slot.file_url))
    assert dict(record["headers"])["content-length"] == str(size)
    assert uploads.booked() == Booked(before + size, 0)


def test_a_repeated_put_is_compared_with_the_original_bytes(uploads: Uploads) -> None:
    data, slot = private_picture("JPEG"), uploads.slot(content_type="image/jpeg")
    assert [sent(slot, data, "image/jpeg").status_code for _ in range(3)] == [200] * 3
    assert len(uploads.at_files()) == 1
    for other in (at_fal(slot.file_url), data[:-1] + b"x", data + b"x"):
        assert (
            "with another file" in assert_refused_with(sent(slot, other, "image/jpeg"), 400, "bad_request")["message"]
        )


def test_a_large_form_is_sent_whole(uploads: Uploads) -> None:
    """Without `strip_metadata` the proxy sends a large form in parts, before its end is known."""
    noise = Image.effect_noise((3000, 2600), 100)
    data = private_picture("PNG", noise)
    assert len(data) > 6 * 2**20
    with uploads.client(tenant="large") as alice:
        answer = alice.post("/v1/uploads", files={"file": ("a.png", data, "image/png")})
    assert answer.status_code == 201 and not is_private(at_fal(answer.json()["url"]))


def test_a_file_without_a_type_is_recognized_by_its_bytes(alice: httpx.Client) -> None:
    headers = {"content-type": OCTETS}
    assert is_clean(at_fal(alice.post("/v1/uploads", content=private_picture("JPEG"), headers=headers).json()["url"]))
    assert_refused_with(alice.post("/v1/uploads", content=HEIC, headers=headers), 415, "unsupported_media_type")
    no_picture = b"no picture" * 1000
    assert at_fal(alice.post("/v1/uploads", content=no_picture, headers=headers).json()["url"]) == no_picture


def test_a_picture_that_cannot_be_cleaned_is_refused_and_nothing_is_lost(uploads: Uploads, alice: httpx.Client) -> None:
    before = uploads.booked()
    for data, content_type, words in (
        (HEIC, "image/heic", "not possible for this type"),
        (several("GIF"), "image/gif", "it is animated"),
        (private_picture("JPEG")[:2000], "image/jpeg", "it is broken"),
        (bomb(8000, 8000)[:MOST], "image/png", "million pixels"),
    ):
        headers = {"content-type": content_type}
        for answer in (
            alice.post("/v1/uploads", content=data, headers=headers),
            alice.post("/v1/uploads", files={"file": ("a", data, content_type)}),
            uploads.http.post("/fal/cdn/files/upload", content=data, headers={**uploads.token(), **headers}),
        ):
            assert words in assert_refused_with(answer, 415, "unsupported_media_type")["message"]
    slot = uploads.slot(content_type="image/gif")
    assert_refused_with(sent(slot, several("GIF"), "image/gif"), 415, "unsupported_media_type")
    assert uploads.booked() == before and not uploads.at_files()
    # The slot can still be used.
    assert sent(slot, private_picture("GIF"), "image/gif").status_code == 200


def test_the_size_is_checked_before_a_picture_is_read(uploads: Uploads, alice: httpx.Client) -> None:
    data = private_picture("JPEG") + bytes(MOST)
    headers = {"content-type": "image/jpeg"}
    slot = uploads.slot(content_type="image/jpeg")
    for answer in (
        alice.post("/v1/uploads", content=data, headers=headers),
        alice.post("/v1/uploads", files={"file": ("a", data, "image/jpeg")}),
        sent(slot, data, "image/jpeg"),
    ):
        assert_refused_with(answer, 413, "body_too_large")


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/heic", OCTETS])
def test_pictures_in_parts_are_refused_at_the_start(uploads: Uploads, content_type: str) -> None:
    wanted = {"content_type": content_type, "file_name": "a"}
    with uploads.client() as alice:
        begun = alice.post("/fal/rest/storage/upload/initiate-multipart", json=wanted)
    headers = {**uploads.token(), "content-type": content_type}
    for answer in (begun, uploads.http.post("/fal/cdn/files/upload/multipart", headers=headers)):
        assert "at once, not in parts" in assert_refused_with(answer, 415, "unsupported_media_type")["message"]
    assert not uploads.sandbox.requests()


def test_a_type_that_cannot_be_cleaned_gets_no_slot(uploads: Uploads, alice: httpx.Client) -> None:
    wanted = {"content_type": "image/heic", "file_name": "a"}
    answer = alice.post("/fal/rest/storage/upload/initiate", json=wanted)
    assert "send one of image/bmp" in assert_refused_with(answer, 415, "unsupported_media_type")["message"]
    assert not uploads.sandbox.requests()


def test_other_files_may_still_come_in_parts(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True, content_type="text/plain")
    assert slot.complete(slot.parts(b"some text")).status_code == 200
    assert at_fal(slot.file_url) == b"some text"


def test_other_plans_leave_pictures_unchanged(uploads: Uploads) -> None:
    data = private_picture("JPEG")
    slot = uploads.slot(tenant="loose", content_type="image/jpeg")
    assert sent(slot, data, "image/jpeg").status_code == 200 and at_fal(slot.file_url) == data


def test_parts_are_refused_when_the_plan_changes_meanwhile(sandbox: SandboxControl, tmp_path: Path) -> None:
    limits = {"acme": plan(uploads={"content_types": ["image/jpeg"]})}
    with limited_proxy(sandbox, tmp_path, limits) as stack:
        uploads = Uploads(stack, tmp_path)
        slot = uploads.slot(in_parts=True, content_type="image/jpeg")
    with limited_proxy(sandbox, tmp_path, {"acme": {**limits["acme"], "strip_metadata": True}}) as stack:
        path = slot.upload_url.removeprefix(uploads.stack.url)
        with stack.client("") as http:
            assert_refused_with(http.put(f"{path}/1", content=private_picture("JPEG")), 415, "unsupported_media_type")
        uploads.http.close()
    assert not [one for one in sandbox.requests() if one["host"] == "cdn"]


# --- data URIs


def uri(data: bytes, head: str = "image/jpeg;base64") -> str:
    return f"data:{head},{base64.b64encode(data).decode()}"


@pytest.fixture
def caller(uploads: Uploads, sandbox: SandboxControl) -> Iterator[Client]:
    with Client(uploads.stack, uploads.stack.token(tenant="acme")) as caller:
        yield caller


def input_at_fal(sandbox: SandboxControl) -> dict[str, Any]:
    (record,) = posts(sandbox)
    found: dict[str, Any] = record["json"]
    return found


def decoded(text: str, head: str = "data:image/jpeg;base64,") -> bytes:
    assert text.startswith(head)
    return base64.b64decode(text.removeprefix(head), validate=True)


@pytest.mark.parametrize("surface", ["run", "queue", "stream", "native"])
def test_a_picture_in_an_input_is_cleaned_on_every_surface(
    caller: Client, sandbox: SandboxControl, surface: str
) -> None:
    body = {"prompt": "?", "image_url": uri(private_picture("JPEG"))}
    if surface == "native":
        answer = caller.http.post("/v1/jobs", json={"endpoint": NEXT, "input": body})
    else:
        path = f"run/{NEXT}/stream" if surface == "stream" else f"{surface}/{NEXT}"
        answer = caller.call("POST", path, body)
    assert answer.is_success, answer.text
    assert is_clean(decoded(input_at_fal(sandbox)["image_url"]))


@pytest.mark.parametrize(
    "head",
    [
        "IMAGE/JPEG;BASE64",
        "image/jpg;charset=x;base64",
        "application/octet-stream;base64",
        ";base64",
        "audio/wav;base64",
    ],
)
def test_a_picture_in_an_input_is_recognized_by_its_bytes(caller: Client, sandbox: SandboxControl, head: str) -> None:
    assert caller.run(image_url=uri(private_picture("JPEG"), head)).is_success
    assert is_clean(decoded(input_at_fal(sandbox)["image_url"]))


def test_a_picture_is_found_anywhere_in_the_input(caller: Client, sandbox: SandboxControl) -> None:
    picture = uri(private_picture("JPEG"))
    more = {
        "extra": [{"deep": {"file": f"\n\x00 {picture}"}}, "data", 7],
        "other": uri(b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav;base64"),
    }
    given = {"image_url": picture, **more}
    assert caller.run(**given).is_success
    found = input_at_fal(sandbox)
    assert is_clean(decoded(found["image_url"])) and is_clean(decoded(found["extra"][0]["deep"]["file"]))
    assert found["extra"][1:] == ["data", 7] and found["other"] == more["other"]


def test_an_input_that_cannot_be_cleaned_costs_nothing(caller: Client, sandbox: SandboxControl) -> None:
    before = caller.facts()["quotas"]
    for wrong, words in (
        (uri(HEIC, "image/heic;base64"), "not possible for this type"),
        (uri(HEIC, ";base64"), "not possible for this type"),
        (uri(several("GIF"), "image/gif;base64"), "it is animated"),
        ("data:image/svg+xml,<svg/>", "not possible for this type"),
        (uri(private_picture("JPEG")[:2000]), "it is broken"),
        ("data:image/png;base64,!!!!", "it is no PNG picture"),
        ("data:image/png", "it is no PNG picture"),
    ):
        body = assert_refused_with(caller.run(image_url=wrong), 422, "invalid_input")
        assert body["detail"][0]["loc"] == ["body", "image_url"] and words in body["message"], body
    assert caller.facts()["quotas"] == before and not posts(sandbox)


def test_data_uris_are_counted_before_they_are_decoded(caller: Client, sandbox: SandboxControl) -> None:
    sound = uri(b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav;base64")
    assert caller.run(sounds=[sound] * (MOST_DATA_URIS - 1)).is_success
    body = assert_refused_with(caller.run(sounds=["data:,"] * 50_000), 422, "invalid_input")
    assert body["detail"][0]["loc"] == ["body", "sounds", MOST_DATA_URIS - 1]
    assert f"may have {MOST_DATA_URIS} data URIs" in body["message"]


def test_a_picture_that_grows_by_cleaning_must_fit_the_plan(uploads: Uploads) -> None:
    written = io.BytesIO()
    Image.effect_noise((150, 150), 100).save(written, "JPEG", quality=5)
    data = written.getvalue()
    assert len(data) < 5000
    with Client(uploads.stack, uploads.stack.token(tenant="tight")) as caller:
        body = assert_refused_with(caller.run(image_url=uri(data)), 422, "invalid_input")
        answer = caller.http.post("/v1/uploads", content=data, headers={"content-type": "image/jpeg"})
    assert "in more than 6000 bytes" in body["message"]
    assert "in more than 6000 bytes" in assert_refused_with(answer, 415, "unsupported_media_type")["message"]

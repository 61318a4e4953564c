"""A session or tenant key is revoked during an upload: fal never gets the file's end, and nothing is booked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.support.images import png
from tests.support.limited import assert_refused_with, operating
from tests.uploads.conftest import PNG, Slot, Uploads

FILE = png(60_000)
WANTED = {"content_type": "image/png", "file_name": "a.png"}
PREFIX = "/fal/rest/storage"
Send = Callable[[Iterator[bytes]], httpx.Response]
#: Given the sender, a way to send a file.
Way = Callable[[Uploads, httpx.Client], Send]
LENGTH = {"content-length": str(len(FILE))}


def whole(uploads: Uploads, sender: httpx.Client) -> Send:
    slot = Slot(uploads, **sender.post(f"{PREFIX}/upload/initiate", json=WANTED).json())
    return lambda content: slot.put(content, **LENGTH)


def in_parts(uploads: Uploads, sender: httpx.Client) -> Send:
    slot = Slot(uploads, **sender.post(f"{PREFIX}/upload/initiate-multipart", json=WANTED).json())
    return lambda content: slot.part(1, content, **LENGTH)


def native(uploads: Uploads, sender: httpx.Client) -> Send:
    return lambda content: sender.post("/v1/uploads", content=content, headers={**PNG, **LENGTH})


HEAD = b'--limit\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
CLOSING = b"\r\n--limit--\r\n"


def form(uploads: Uploads, sender: httpx.Client, more: bytes = b"") -> Send:
    size = len(HEAD) + len(FILE) + len(CLOSING) + len(more)
    headers = {"content-type": "multipart/form-data; boundary=limit", "content-length": str(size)}

    def send(content: Iterator[bytes]) -> httpx.Response:
        return sender.post("/v1/uploads", content=itertools.chain([HEAD], content, [CLOSING + more]), headers=headers)

    return send


def longer_form(uploads: Uploads, sender: httpx.Client) -> Send:
    """Bytes after the last boundary are not part of the file, so its size is known only at the form's end."""
    return form(uploads, sender, b"\r\n\r\n")


def cdn(uploads: Uploads, sender: httpx.Client) -> Send:
    token = sender.post(f"{PREFIX}/auth/token?storage_type=fal-cdn-v3", json={}).json()["token"]
    headers = {**PNG, **LENGTH, "authorization": f"Bearer {token}"}
    return lambda content: uploads.http.post("/fal/cdn/files/upload", content=content, headers=headers)


def cdn_in_parts(uploads: Uploads, sender: httpx.Client) -> Send:
    token = sender.post(f"{PREFIX}/auth/token?storage_type=fal-cdn-v3", json={}).json()["token"]
    bearer = {"authorization": f"Bearer {token}"}
    begun = uploads.http.post("/fal/cdn/files/upload/multipart", headers={**PNG, **bearer}).json()
    path = f"{begun['access_url'].removeprefix(uploads.stack.url)}/multipart/{begun['uploadId']}/1"
    return lambda content: uploads.http.put(path, content=content, headers={**LENGTH, **bearer})


WAYS: dict[str, tuple[Way, bool]] = {
    "slot": (whole, True),
    "slot-in-parts": (in_parts, True),
    "one-call": (native, False),
    "form": (form, False),
    "longer-form": (longer_form, False),
    "cdn": (cdn, False),
    "cdn-in-parts": (cdn_in_parts, True),
}


def interrupt(revoke: Callable[[], None]) -> Iterator[bytes]:
    yield FILE[:30_000]
    revoke()
    yield FILE[30_000:]


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_a_session_revoked_meanwhile_is_refused_at_its_end(uploads: Uploads, way: str) -> None:
    before, (prepare, has_slot) = uploads.booked(), WAYS[way]
    with uploads.client(f"ida-{way}") as ida:
        send = prepare(uploads, ida)
        uploads.sandbox.forget()

        def revoke() -> None:
            assert ida.delete("/v1/session").status_code == 204

        answer = send(interrupt(revoke))
    assert_refused_with(answer, 404 if has_slot else 401, "not_found" if has_slot else "session_revoked")
    uploads.until_idle()
    assert uploads.booked() == before
    assert not [record for record in uploads.at_files() if record["answered"] == 200]


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_a_key_revoked_meanwhile_is_refused_at_its_end(uploads: Uploads, way: str) -> None:
    before, (prepare, has_slot) = uploads.booked(), WAYS[way]
    with operating(uploads.stack) as operator:
        made = operator.post("/v1/admin/tenants/acme/keys", json={}).json()

        def revoke() -> None:
            assert operator.delete(f"/v1/admin/keys/{made['id']}").status_code == 204

        with uploads.stack.client(made["key"]) as backend:
            answer = prepare(uploads, backend)(interrupt(revoke))
    assert_refused_with(answer, 404 if has_slot else 401, "not_found" if has_slot else "unauthenticated")
    uploads.until_idle()
    assert uploads.booked() == before


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_a_tenant_suspended_meanwhile_is_refused_at_its_end(uploads: Uploads, way: str) -> None:
    before = uploads.booked()
    with operating(uploads.stack) as operator, uploads.client(f"ida-{way}") as ida:
        send = WAYS[way][0](uploads, ida)

        def suspend() -> None:
            assert operator.post("/v1/admin/tenants/acme/suspend").status_code == 200

        answer = send(interrupt(suspend))
        assert operator.post("/v1/admin/tenants/acme/resume").status_code == 200
    assert_refused_with(answer, 403, "tenant_suspended")
    uploads.until_idle()
    assert uploads.booked() == before


@pytest.mark.parametrize("way", WAYS)
def test_a_file_whose_session_is_not_revoked_is_stored(uploads: Uploads, way: str) -> None:
    """The same as above, without the revocation."""
    with uploads.client(f"ida-{way}") as ida:
        assert WAYS[way][0](uploads, ida)(interrupt(lambda: None)).status_code in (200, 201)

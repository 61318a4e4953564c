"""Large files, and many at once, need little memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.images import PNG_SIGNATURE
from tests.support.sandbox import running_sandbox
from tests.uploads.served import Served, send, serving

MIB = 2**20


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_sandbox() as control, serving(control, tmp_path_factory.mktemp("memory")) as served:
        # The first upload loads modules: that memory does not count below.
        for _ in range(3):
            assert send(served.slot()["upload_url"], 20 * MIB).startswith(b"HTTP/1.1 200")
        control.forget()
        yield served


def digest(size: int) -> str:
    found = hashlib.sha256(PNG_SIGNATURE)
    for _ in range(size // MIB - 1):
        found.update(bytes(MIB))
    found.update(bytes(MIB - len(PNG_SIGNATURE)))
    return found.hexdigest()


def test_a_gibibyte_is_not_held_in_memory(proxy: Served) -> None:
    size = 1024 * MIB
    url = proxy.slot()["upload_url"]
    before = proxy.memory()
    proxy.forget_peak()
    assert send(url, size).startswith(b"HTTP/1.1 200")
    grown = proxy.memory(peak=True) - before
    assert grown <= 16 * MIB, f"{grown / MIB:.1f} MiB"
    (record,) = [one for one in proxy.sandbox.requests() if one["host"] == "cdn"]
    assert (record["body_size"], record["body_sha256"]) == (size, digest(size))


def test_fifty_uploads_at_once_need_little_memory(proxy: Served) -> None:
    size = 20 * MIB
    urls = [proxy.slot()["upload_url"] for _ in range(50)]
    proxy.sandbox.forget()
    before = proxy.memory()
    proxy.forget_peak()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda url: send(url, size), urls))
    grown = proxy.memory(peak=True) - before
    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 200"}
    assert grown <= 64 * MIB, f"{grown / MIB:.1f} MiB"
    records = [one for one in proxy.sandbox.requests() if one["host"] == "cdn"]
    assert {record["body_sha256"] for record in records} == {digest(size)} and len(records) == 50


def test_a_large_file_in_a_form_is_not_held_in_memory(proxy: Served) -> None:
    size, blocks = 256 * MIB, 256
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    end = b"\r\n--b--"

    def form() -> Iterator[bytes]:
        yield head + PNG_SIGNATURE + bytes(MIB - len(PNG_SIGNATURE))
        for _ in range(blocks - 1):
            yield bytes(MIB)
        yield end

    form_headers = {
        "content-type": "multipart/form-data; boundary=b",
        "content-length": str(len(head) + size + len(end)),
    }
    proxy.sandbox.forget()
    before = proxy.memory()
    proxy.forget_peak()
    url, headers = f"{proxy.url}/v1/uploads", {**proxy.bearer, **form_headers}
    answer = httpx.post(url, content=form(), headers=headers, timeout=120, trust_env=False, verify=False)
    assert (answer.status_code, answer.json().get("size")) == (201, size)
    grown = proxy.memory(peak=True) - before
    assert grown <= 16 * MIB, f"{grown / MIB:.1f} MiB"
    parts = [one["body_size"] for one in proxy.sandbox.requests() if one["host"] == "cdn" and one["method"] == "PUT"]
    assert sum(parts) == size

"""Files in forms as browsers, Node, Swift and C# make them: any ending, any preamble, and names in every script."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadRequest
from proxy.uploads.multipart import MAX_EPILOGUE_BYTES, MAX_HEAD_BYTES, parse_form
from proxy.uploads.unmeasured import LEAST_PART_BYTES, PART_BYTES
from tests.support.images import png
from tests.support.limited import Booked, assert_refused_with, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.uploads.conftest import Uploads

MIB = 2**20
HEAD = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
MOST = 30 * MIB
QUOTA = 1000 * MIB


@pytest.fixture(scope="module")
def shared_uploads(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploads]:
    """A proxy for large files."""
    folder = tmp_path_factory.mktemp("forms")
    plans: dict[str, dict[str, Any]] = {
        "acme": plan(quotas=[per("tenant", "upload_bytes", QUOTA)], uploads={"max_bytes": MOST}),
    }
    with limited_proxy(shared_sandbox, folder, plans) as stack:
        uploads = Uploads(stack, folder)
        yield uploads
        uploads.http.close()


@pytest.fixture
def alice(uploads: Uploads) -> Iterator[httpx.Client]:
    with uploads.client() as alice:
        yield alice


def post(client: httpx.Client, body: bytes, content_type: str = "multipart/form-data; boundary=b") -> httpx.Response:
    return client.post("/v1/uploads", content=body, headers={"content-type": content_type}, timeout=60)


#: Bytes before the form's first delimiter and after its last one.
ENDINGS: dict[str, tuple[bytes, bytes]] = {
    "a line break": (b"", b"\r\n"),
    "nothing": (b"", b""),
    "an epilogue": (b"", b"\r\nbye"),
    "two line breaks": (b"", b"\r\n\r\n"),
    "white space": (b"", b" \t\r\n"),
    "a preamble": (b"hello\r\n", b"\r\n"),
    "an empty line before": (b"\r\n", b"\r\n"),
    "a preamble of lines": (b"This is a message\r\nin --b parts\r\n--bb\r\n\r\n", b""),
    "an epilogue like an end": (b"", b"\r\n--b--\r\n"),
    "an epilogue like a field": (b"", b'\r\n--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'),
    "a long epilogue": (b"", b"\r\n" + b"e" * (MAX_EPILOGUE_BYTES - 2)),
}
#: Sizes that are held in memory, or sent in one, two or three parts.
SIZES = [5000, LEAST_PART_BYTES - 10, LEAST_PART_BYTES + MAX_EPILOGUE_BYTES + 10, 20 * MIB + 12_345]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("before", "after"), ENDINGS.values(), ids=ENDINGS)
def test_a_form_may_end_in_any_way(
    uploads: Uploads, alice: httpx.Client, before: bytes, after: bytes, size: int
) -> None:
    used, content = uploads.booked().used, png(size)
    answer = post(alice, before + b"--b\r\n" + HEAD + content + b"\r\n--b--" + after)
    assert (answer.status_code, answer.json().get("size")) == (201, size), answer.text
    assert uploads.has(answer.json()["url"], content)
    assert uploads.booked() == Booked(used + size, 0)


def test_the_first_delimiter_may_have_white_space_behind_it(uploads: Uploads, alice: httpx.Client) -> None:
    answer = post(alice, b"--b \t\r\n" + HEAD + png(500) + b"\r\n--b--")
    assert (answer.status_code, answer.json()["size"]) == (201, 500)


def test_parts_have_sizes_that_file_stores_accept(uploads: Uploads, alice: httpx.Client) -> None:
    content = png(25 * MIB)
    answer = post(alice, b"--b\r\n" + HEAD + content + b"\r\n--b--\r\n")
    assert answer.status_code == 201
    parts = [record["body_size"] for record in uploads.at_files() if record["method"] == "PUT"]
    assert sum(parts) == len(content) and len(parts) == 3
    assert all(PART_BYTES <= size < 2 * PART_BYTES for size in parts[:-1]) and parts[-1] <= MAX_EPILOGUE_BYTES


@pytest.mark.parametrize("size", [5000, 11 * MIB])
@pytest.mark.parametrize(
    "end",
    [b"", b"\r\n--b", b"\r\n--b-", b'\r\n--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'],
    ids=["broken off", "half an end", "nearly an end", "another field"],
)
def test_a_malformed_form_leaves_nothing_behind(uploads: Uploads, alice: httpx.Client, size: int, end: bytes) -> None:
    before = uploads.booked()
    assert_refused_with(post(alice, b"--b\r\n" + HEAD + png(size) + end), 400, "bad_request")
    assert not [record for record in uploads.at_files() if record["path"].endswith("/complete")]
    assert uploads.booked() == before


def test_an_endless_epilogue_of_a_large_form_is_refused(uploads: Uploads, alice: httpx.Client) -> None:
    before = uploads.booked()
    assert_refused_with(
        post(alice, b"--b\r\n" + HEAD + png(11 * MIB) + b"\r\n--b--" + b"e" * 20_000), 400, "bad_request"
    )
    assert uploads.booked() == before


@pytest.mark.parametrize("size", [MOST, MOST + 1, MOST + MIB])
def test_the_largest_file_of_the_plan_fits(uploads: Uploads, alice: httpx.Client, size: int) -> None:
    before = uploads.booked()
    answer = post(alice, b"--b\r\n" + HEAD + png(size) + b"\r\n--b--\r\n")
    if size > MOST:
        assert_refused_with(answer, 413, "body_too_large")
        assert not [record for record in uploads.at_files() if record["path"].endswith("/complete")]
        assert uploads.booked() == before
        return
    assert (answer.status_code, answer.json()["size"]) == (201, MOST)


def test_files_held_in_memory_have_a_limit_per_address(sandbox: SandboxControl, tmp_path: Path) -> None:
    environ = {"PROXY_MAX_BODY_MEMORY": str(4 * MIB)}
    plans = {"acme": plan(uploads={"max_bytes": MOST})}
    with limited_proxy(sandbox, tmp_path, plans, environ=environ) as stack:
        proxy = Uploads(stack, tmp_path)
        with proxy.client() as alice:
            # One address may use a quarter, and each finished request frees its share.
            for size, status in ((MIB // 2, 201), (3 * MIB, 503), (MIB // 2, 201), (6 * MIB, 201)):
                answer = post(alice, b"--b\r\n" + HEAD + png(size) + b"\r\n--b--")
                assert answer.status_code == status, answer.text
                assert status == 201 or answer.json()["error_type"] == "overloaded"
        assert proxy.booked().reserved == 0
        proxy.http.close()


#: How a field names its file, and the name that is kept.
NAMES = {
    'filename="cat.png"': "cat.png",
    "filename=cat.png": "cat.png",
    'filename="Кот и кошка.png"': "_.png",
    'filename="猫.png"': "_.png",
    'filename="ملف.png"': "_.png",
    'filename="🐈cat.png"': "_cat.png",
    'filename="a\u00a0b\u3000c d.png"': "a_b_c_d.png",
    'filename="a%22b%0D%0A.png"': "a_b_.png",
    'filename="a\\"b.png"': "a_b.png",
    'filename="a;b=c.png"': "a_b_c.png",
    'filename="C:\\photos\\cat.png"': "cat.png",
    'filename="../../cat.png"': "cat.png",
    "filename*=UTF-8''cat%20one.png": "cat_one.png",
    "filename=\"x.png\"; filename*=utf-8''%D0%9Acat.png": "_cat.png",
    "filename*=nonsense''cat.png": "cat.png",
    "filename*=UTF-8''%FFcat.png": "_cat.png",
    'filename="=?utf-8?B?Y2F0LnBuZw==?="': "_utf-8_B_Y2F0LnBuZw_",
    'filename=""': "file",
}


@pytest.mark.parametrize(("written", "kept"), NAMES.items())
def test_a_file_name_in_any_script_and_spelling_is_kept(
    uploads: Uploads, alice: httpx.Client, written: str, kept: str
) -> None:
    head = f'Content-Disposition: Form-Data; name="file"; {written}\r\nContent-Type: image/png\r\n\r\n'
    answer = post(alice, b"--b\r\n" + head.encode() + png(500) + b"\r\n--b--")
    assert answer.status_code == 201, answer.text
    assert answer.json()["url"].rpartition("/")[2] == kept
    (asked,) = [record["json"] for record in uploads.sandbox.requests() if record["host"] == "rest"]
    assert asked["file_name"] == kept


@pytest.mark.parametrize("name", ["Кот.png", "猫 🐈.png", "a\u00a0\u3000\u202eb.png", 'a"b\r\n.png', "\x00.png"])
def test_other_uploads_take_file_names_in_any_script_too(uploads: Uploads, alice: httpx.Client, name: str) -> None:
    wanted = {"content_type": "image/png", "file_name": name}
    assert alice.post("/fal/rest/storage/upload/initiate", json=wanted).status_code == 200
    png_ = {"content-type": "image/png"}
    assert alice.post("/v1/uploads", params={"file_name": name}, content=png(500), headers=png_).status_code == 201
    if name.isprintable():
        headers = {**uploads.token(), **png_, "x-fal-file-name": name.encode()}
        for path in ("files/upload", "files/upload/multipart"):
            assert uploads.http.post(f"/fal/cdn/{path}", content=png(500), headers=headers).status_code == 200  # type: ignore[arg-type]
    asked = [record["json"] for record in uploads.sandbox.requests() if record["host"] == "rest"]
    names = [wanted["file_name"] for wanted in asked if wanted]
    assert names and all(one.isascii() and one.isprintable() and " " not in one for one in names)


# Without a server: the reader and arbitrary bytes.


async def pieces(body: bytes, size: int) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


async def read(body: bytes, size: int) -> tuple[str, bytes]:
    file = await parse_form(pieces(body, size), "multipart/form-data; boundary=b", len(body))
    content = b"".join([piece async for piece in file.content])
    assert len(content) <= file.size
    return file.name, content


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 2, 7, 4096])
async def test_a_form_is_read_the_same_in_chunks_of_any_size(size: int) -> None:
    for before, after in ENDINGS.values():
        for content in (b"content\r\n--", b"\r\n\r\n", b"--b--", b"\r\n--c--\r\nx"):
            body = before + b"--b\r\n" + HEAD + content + b"\r\n--b--" + after
            assert await read(body, size) == ("a.png", content)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--\r\n",
        b"--b--\r\n--b\r\n" + HEAD + b"in the epilogue\r\n--b--",
        b"hello --b\r\n" + HEAD + b"not at the beginning of a line\r\n--b--",
        b"hello\n--b\r\n" + HEAD + b"nor is this\r\n--b--",
        b"--b\r\n\r\nno headers\r\n--b--",
        b"--b\r\n: \r\n\r\nno name\r\n--b--",
        b"--b\r\n" + HEAD,
        b"p" * MAX_HEAD_BYTES + b"\r\n--b\r\n" + HEAD + b"after an endless preamble\r\n--b--",
        b"--b\r\n" + b"a: b\r\n" * 5000 + HEAD + b"after endless headers\r\n--b--",
    ],
)
async def test_a_malformed_form_is_refused(body: bytes) -> None:
    for size in (1, 4096):
        with pytest.raises(BadRequest):
            await read(body, size)


PIECES = [b"--b", b"--", b"\r\n", b"\n", b" ", b"x", HEAD, b'name="file"; filename=', b"*=u''%", b":"]


@given(text=st.lists(st.sampled_from(PIECES)), size=st.integers(1, 50))
def test_arbitrary_bytes_are_read_or_refused(text: list[bytes], size: int) -> None:
    with contextlib.suppress(BadRequest):
        asyncio.run(read(b"".join(text), size))

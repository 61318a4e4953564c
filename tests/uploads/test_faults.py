"""Failures of fal or of the caller: nothing stays reserved, fal stores no half file, and the client can try again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.jobs.reconciler import QUIET_SECONDS
from proxy.limits.retries import FREE_FILES
from proxy.stores.memory import MemoryCounters
from proxy.uploads.transfer import LIFE_SECONDS
from tests.support.images import png
from tests.support.limited import assert_refused_with, look_after
from tests.support.sandbox import SandboxControl
from tests.support.servers import running
from tests.support.stack import Stack, proxy_in_front_of
from tests.support.waiting import wait_until
from tests.uploads import served
from tests.uploads.conftest import MOST, PNG, Uploads

FILE = png(MOST)
FILES = {"host": "cdn", "method": "PUT"}
#: Sends the file in one of the ways; the result holds the answer, and sends the file again when called.
Way = Callable[[Uploads], Callable[[], httpx.Response]]


def whole(uploads: Uploads) -> Callable[[], httpx.Response]:
    slot = uploads.slot()
    return lambda: slot.put(FILE)


def in_parts(uploads: Uploads) -> Callable[[], httpx.Response]:
    slot = uploads.slot(in_parts=True)
    return lambda: slot.part(1, FILE)


def native(uploads: Uploads) -> Callable[[], httpx.Response]:
    headers = {"authorization": f"Bearer {uploads.stack.token()}", **PNG}
    return lambda: uploads.http.post("/v1/uploads", content=FILE, headers=headers)


def form(uploads: Uploads) -> Callable[[], httpx.Response]:
    headers, files = {"authorization": f"Bearer {uploads.stack.token()}"}, {"file": ("a.png", FILE, "image/png")}
    return lambda: uploads.http.post("/v1/uploads", files=files, headers=headers)


def cdn(uploads: Uploads) -> Callable[[], httpx.Response]:
    headers = {**uploads.token(), **PNG}
    return lambda: uploads.http.post("/fal/cdn/files/upload", content=FILE, headers=headers)


ways = pytest.mark.parametrize("way", [whole, in_parts, native, form, cdn])


@ways
@pytest.mark.parametrize("at", [1, MOST // 2, MOST], ids=["first byte", "middle", "last byte"])
def test_an_upload_that_fal_breaks_off_is_not_booked_and_can_be_sent_again(uploads: Uploads, way: Way, at: int) -> None:
    send = way(uploads)
    before = uploads.booked()
    uploads.sandbox.fault("cut", bytes=at, on=FILES, times=1)
    body = assert_refused_with(send(), 502, "bad_upstream", "upstream")
    assert body["message"] == "The connection to fal broke; try again."
    assert uploads.booked() == before
    assert send().status_code in (200, 201)
    assert (uploads.booked().used, uploads.booked().reserved) == (before.used + MOST, 0)


@ways
@pytest.mark.parametrize("status", [403, 413, 500, 503])
def test_a_file_that_fal_refuses_is_not_booked_and_can_be_sent_again(uploads: Uploads, way: Way, status: int) -> None:
    send = way(uploads)
    before = uploads.booked()
    uploads.sandbox.fault("status", status=status, text="signature=abc", on=FILES, times=1)
    body = assert_refused_with(send(), 502, "bad_upstream", "upstream")
    assert "signature" not in body["message"] and str(status) in body["message"]
    assert uploads.booked() == before
    assert send().status_code in (200, 201)


def test_a_part_without_an_etag_does_not_count(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    for body in ({}, {"etag": 5}, {"etag": ""}, {"etag": "x" * 201}, [], "x"):
        uploads.sandbox.fault("status", status=200, body=body, on=FILES, times=1)
        assert_refused_with(slot.part(1, FILE), 502, "bad_upstream", "upstream")
    uploads.sandbox.fault("status", status=200, body={"etag": "in the body"}, on=FILES, times=1)
    assert slot.part(1, FILE).json() == {"partNumber": 1, "etag": "in the body"}


def test_the_parts_are_joined_when_fal_works_again(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    sent = slot.parts(png(500), b"x" * 500)
    for fault in ({"fault": "status", "status": 500}, {"fault": "drop", "when": "before"}):
        uploads.sandbox.fault(**fault, on={"path_contains": "/complete"}, times=1)
        assert_refused_with(slot.complete(sent), 502, "bad_upstream", "upstream")
    assert slot.complete(sent).status_code == 200
    assert uploads.has(slot.file_url, png(500) + b"x" * 500)


# Callers that hang up or are slow


@contextlib.contextmanager
def begun(uploads: Uploads, url: str, sent: bytes, **headers: str) -> Iterator[socket.socket]:
    """Send only `sent` of a PUT of `FILE`, and wait until fal has those bytes."""
    all_headers = {"host": "proxy", **PNG, "content-length": str(len(FILE)), **headers}
    head = "\r\n".join(
        [f"PUT {urlsplit(url).path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items())]
    )
    with socket.create_connection(("127.0.0.1", urlsplit(uploads.stack.url).port or 0), 60) as caller:
        caller.sendall(head.encode() + b"\r\n\r\n" + sent)
        wait_until(
            lambda: any(one["body_size"] >= len(sent) for one in uploads.at_files()),
            "fal has not received the first bytes",
        )
        yield caller


@pytest.mark.parametrize("tail", ["", "/1"])
def test_a_caller_who_hangs_up_in_the_middle_of_a_file_can_send_it_again(uploads: Uploads, tail: str) -> None:
    slot = uploads.slot(in_parts=bool(tail))
    before = uploads.booked()
    with begun(uploads, slot.upload_url + tail, FILE[: MOST // 2]):
        assert uploads.booked().reserved == MOST
    wait_until(lambda: uploads.at_files()[0]["ended"] == "left", "fal is still waiting for the rest")
    uploads.until_idle()
    assert uploads.booked() == before
    assert uploads.http.put(slot.upload_url + tail, content=FILE, headers=PNG).status_code == 200


@pytest.mark.parametrize("tail", ["", "/1"])
def test_bytes_of_repeatedly_broken_off_uploads_are_booked(uploads: Uploads, tail: str) -> None:
    slot, half = uploads.slot(in_parts=bool(tail)), MOST // 2
    before = uploads.booked()
    for attempt in range(2 * FREE_FILES + 3):
        uploads.sandbox.forget()
        with begun(uploads, slot.upload_url + tail, FILE[:half]):
            pass
        uploads.until_idle()
        paid = max(0, attempt + 1 - 2 * FREE_FILES) * half
        assert uploads.booked().used == before.used + paid
    # Another user has an allowance of its own, and fal's failures are not the caller's.
    before, other = uploads.booked(), uploads.slot("ben", in_parts=bool(tail))
    with begun(uploads, other.upload_url + tail, FILE[:half]):
        pass
    uploads.until_idle()
    uploads.sandbox.fault("cut", bytes=half, on=FILES, times=1)
    assert uploads.http.put(slot.upload_url + tail, content=FILE, headers=PNG).status_code == 502
    assert uploads.booked() == before
    assert uploads.http.put(slot.upload_url + tail, content=FILE, headers=PNG).status_code == 200


def test_a_part_that_is_sent_again_counts_again(uploads: Uploads) -> None:
    slot, before = uploads.slot(in_parts=True), uploads.booked()
    for times in range(1, 4):
        assert slot.part(1, png(1000)).status_code == 200
        assert uploads.booked().used == before.used + 1000 * times


def test_a_caller_hangs_up_while_fal_does_not_answer(uploads: Uploads) -> None:
    slot = uploads.slot()
    uploads.sandbox.fault("hang", on=FILES, times=1)
    with begun(uploads, slot.upload_url, FILE):
        assert uploads.booked().reserved == MOST
    wait_until(lambda: uploads.at_files()[0]["ended"] == "left", "the proxy does not hang up on fal")
    uploads.until_idle()
    assert slot.put(FILE).status_code == 200


def test_a_reservation_lives_as_long_as_the_bytes_flow(uploads: Uploads) -> None:
    slot, counters, before = uploads.slot(), MemoryCounters(), uploads.booked()
    with begun(uploads, slot.upload_url, FILE[: MOST // 2]) as caller:
        uploads.stack.clock.advance(LIFE_SECONDS - 1)
        caller.sendall(FILE[MOST // 2 : -1])
        wait_until(
            lambda: uploads.life_ends() > uploads.stack.clock.now() + 1,
            "the reservation is not extended while bytes flow",
        )
        # Past the end of the first reservation, and before the end of the extended one.
        uploads.stack.clock.advance(QUIET_SECONDS + 1)
        look_after(uploads.stack, counters)
        assert uploads.booked().reserved == MOST
        # No more bytes come: the reservation expires, as after a crash.
        uploads.stack.clock.advance(LIFE_SECONDS)
        look_after(uploads.stack, counters)
        assert uploads.booked() == before


@pytest.mark.parametrize("tail", ["", "/1"])
def test_a_client_that_gave_up_a_connection_tries_again_at_once(uploads: Uploads, tail: str) -> None:
    """The first attempt is still open and continues later: it is not counted and does not replace the newer file."""
    slot, newer = uploads.slot(in_parts=bool(tail)), FILE[:8] + b"newer" * 100
    with begun(uploads, slot.upload_url + tail, FILE[:-1]) as caller:
        answer = uploads.http.put(slot.upload_url + tail, content=newer, headers=PNG)
        assert answer.status_code == 200
        caller.sendall(FILE[-1:])
        said = caller.recv(65536)
    assert said.startswith(b"HTTP/1.1 400") and b"This was sent again meanwhile" in said
    uploads.until_idle()
    if tail:
        assert slot.complete([answer.json()]).status_code == 200
    assert uploads.has(slot.file_url, newer)


# A file store that breaks the protocol


def hasty(request: Request) -> Response:
    """Confirm a file before reading any of it."""
    return JSONResponse({})


@pytest.fixture(scope="module")
def beside_a_hasty_store(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    async def initiate(request: Request) -> Response:
        url = f"{request.url.scheme}://{request.url.netloc}/files/a.png"
        return JSONResponse({"file_url": url, "upload_url": url})

    begins = Route("/storage/upload/initiate", initiate, methods=["POST"])
    store = Starlette(routes=[begins, Route("/files/a.png", hasty, methods=["PUT"])])
    with running(store) as url:
        folder: Path = tmp_path_factory.mktemp("hasty")
        environ = {"FAL_REST_URL": url, "FAL_CDN_URL": url}
        with proxy_in_front_of(shared_sandbox, folder, environ=environ) as stack:
            yield stack


def test_a_confirmation_of_a_file_that_was_not_sent_yet_is_not_believed(beside_a_hasty_store: Stack) -> None:
    with beside_a_hasty_store.client() as alice:
        place = alice.post("/fal/rest/storage/upload/initiate", json={"content_type": "image/png"})
    with served.begun(place.json()["upload_url"], MOST, MOST // 2) as caller:
        said = caller.recv(65536)
    assert said.startswith(b"HTTP/1.1 502") and b"fal's file store answered before it had the file." in said

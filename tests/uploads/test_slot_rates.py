"""Requests to an upload slot count as polls of its owner, whatever they bring."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.support.images import png
from tests.support.limited import assert_refused_with
from tests.uploads.conftest import PNG, Uploads

FILE = png(500)


def whole(uploads: Uploads, user: str) -> Callable[[], httpx.Response]:
    slot = uploads.slot(user, "slow")
    return lambda: slot.put(FILE)


def part(uploads: Uploads, user: str) -> Callable[[], httpx.Response]:
    slot = uploads.slot(user, "slow", in_parts=True)
    return lambda: slot.part(1, FILE)


def cdn_part(uploads: Uploads, user: str) -> Callable[[], httpx.Response]:
    token = uploads.token(user, "slow")
    begun = uploads.http.post("/fal/cdn/files/upload/multipart", headers={**PNG, **token}).json()
    uploads.sandbox.forget()
    path = f"{begun['access_url'].removeprefix(uploads.stack.url)}/multipart/{begun['uploadId']}/1"
    return lambda: uploads.http.put(path, content=FILE, headers=token)


@pytest.mark.parametrize("way", [whole, part, cdn_part])
def test_requests_to_a_slot_have_a_rate_limit(
    uploads: Uploads, way: Callable[[Uploads, str], Callable[[], httpx.Response]]
) -> None:
    user = f"rita-{way.__name__}"
    send = way(uploads, user)
    assert [send().status_code for _ in range(3)] == [200] * 3
    sent, before = len(uploads.at_files()), uploads.booked("slow", user)
    refused = send()
    assert assert_refused_with(refused, 429, "rate_limited", "session")["retry_after"] > 0
    assert len(uploads.at_files()) == sent and uploads.booked("slow", user) == before
    # Another user's slot has a window of its own.
    assert way(uploads, f"{user}-2")().status_code == 200
    uploads.stack.clock.advance(61)
    assert send().status_code == 200


def test_completing_an_upload_counts_too(uploads: Uploads) -> None:
    slot = uploads.slot("rita", "slow", in_parts=True)
    sent = slot.parts(FILE)
    assert [slot.complete(sent).status_code for _ in range(3)] == [200, 200, 429]


def test_a_stranger_does_not_use_up_the_owners_requests(uploads: Uploads) -> None:
    slot = uploads.slot("rob", "slow")
    foreign = {"authorization": f"Bearer {uploads.stack.token('mallory', tenant='slow')}"}
    assert {slot.put(FILE, **foreign).status_code for _ in range(4)} == {404}
    assert slot.put(FILE).status_code == 200

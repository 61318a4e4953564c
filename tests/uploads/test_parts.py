"""Uploads in parts: parts come in any order, may be sent again, and only sent parts are joined."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.images import png
from tests.support.limited import Booked, assert_refused_with
from tests.uploads.conftest import MOST, Uploads

FIRST, SECOND, THIRD = png(5000), b"second" * 700, b"third"


def test_parts_become_one_file(uploads: Uploads) -> None:
    before, slot = uploads.booked().used, uploads.slot(in_parts=True)
    sent = slot.parts(FIRST, SECOND, THIRD)
    assert [part["partNumber"] for part in sent] == [1, 2, 3]
    assert httpx.get(slot.file_url, trust_env=False, verify=False, timeout=60).status_code == 404
    answer = slot.complete(sent)
    assert (answer.status_code, answer.json()) == (200, {"access_url": slot.file_url})
    assert uploads.has(slot.file_url, FIRST + SECOND + THIRD)
    assert uploads.booked() == Booked(before + len(FIRST + SECOND + THIRD), 0)


def test_parts_may_come_and_be_named_in_any_order(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    answers = [slot.part(number, content) for number, content in ((3, THIRD), (1, FIRST), (2, SECOND))]
    # The Python client takes the etag from the header.
    # JSON has one kind of numbers, so some clients write a point.
    named = [{"partNumber": float(answer.json()["partNumber"]), "etag": answer.headers["etag"]} for answer in answers]
    assert slot.complete(named).status_code == 200
    assert uploads.has(slot.file_url, FIRST + SECOND + THIRD)


def test_a_part_sent_again_replaces_the_first(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    old = slot.parts(FIRST, b"old")
    new = slot.part(2, b"new").json()
    assert_refused_with(slot.complete(old), 400, "bad_request")
    assert slot.complete([old[0], new]).status_code == 200
    assert uploads.has(slot.file_url, FIRST + b"new")


@pytest.mark.parametrize("number", ["0", "10001", "-1", "1.0", "x", "00000000001", "%31%30%30%30%31", "²"])
def test_an_invalid_part_number_is_refused(uploads: Uploads, number: str) -> None:
    slot = uploads.slot(in_parts=True)
    assert (
        assert_refused_with(slot.part(number, FIRST), 400, "bad_request")["message"]
        == "Number the parts from 1 to 10000."
    )
    assert not uploads.at_files()


def test_the_highest_part_number_is_accepted(uploads: Uploads) -> None:
    assert uploads.slot(in_parts=True).part(10_000, SECOND).status_code == 200


def without(part: int) -> Any:
    return lambda parts: [one for one in parts if one["partNumber"] != part]


UNFIT = {
    "no parts": lambda parts: [],
    "not a list": lambda parts: {"1": "x"},
    "no object": lambda parts: ["1"],
    "no etag": lambda parts: [{"partNumber": 1}],
    "a number as text": lambda parts: [{**part, "partNumber": str(part["partNumber"])} for part in parts],
    "a number with a fraction": lambda parts: [{**part, "partNumber": part["partNumber"] + 0.5} for part in parts],
    "part 0": lambda parts: [{"partNumber": 0, "etag": "x"}, *parts],
    "part 10001": lambda parts: [*parts, {"partNumber": 10_001, "etag": "x"}],
    "twice": lambda parts: [*parts, parts[0]],
    "first left out": without(1),
    "last left out": without(2),
    "never sent": lambda parts: [*parts, {"partNumber": 3, "etag": parts[0]["etag"]}],
    "unknown etag": lambda parts: [parts[0], {**parts[1], "etag": '"0"'}],
    "etags exchanged": lambda parts: [{**parts[0], "etag": parts[1]["etag"]}, {**parts[1], "etag": parts[0]["etag"]}],
    "endless etag": lambda parts: [parts[0], {**parts[1], "etag": "x" * 201}],
}


@pytest.mark.parametrize("spoil", UNFIT.values(), ids=UNFIT)
def test_a_list_that_differs_from_the_sent_parts_is_refused(uploads: Uploads, spoil: Any) -> None:
    slot = uploads.slot(in_parts=True)
    sent = slot.parts(FIRST, SECOND)
    assert_refused_with(slot.complete(spoil(sent)), 400, "bad_request")
    assert not [record for record in uploads.at_files() if record["method"] == "POST"]
    # The parts are kept.
    assert slot.complete(sent).status_code == 200
    assert uploads.has(slot.file_url, FIRST + SECOND)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"parts":null}'])
def test_a_malformed_list_of_parts_is_refused(uploads: Uploads, body: bytes) -> None:
    url = f"{uploads.slot(in_parts=True).upload_url}/complete"
    answer = uploads.http.post(url, content=body, headers={"content-type": "application/json"})
    assert_refused_with(answer, 400, "bad_request")


def test_the_refusal_names_a_missing_part(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    sent = [slot.part(number, content).json() for number, content in ((1, FIRST), (3, THIRD))]
    assert "Part 2 has not arrived" in assert_refused_with(slot.complete(sent), 400, "bad_request")["message"]


def test_a_repeated_complete_is_answered_and_done_once(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    sent = slot.parts(FIRST)
    assert [slot.complete(sent).status_code for _ in range(2)] == [200, 200]
    assert len([record for record in uploads.at_files() if record["method"] == "POST"]) == 1
    assert_refused_with(slot.part(1, FIRST), 400, "bad_request")
    assert_refused_with(slot.part(2, SECOND), 400, "bad_request")


def test_all_parts_together_must_fit_the_plan(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    first = slot.part(1, png(MOST - 10)).json()
    before = uploads.booked()
    assert "larger" in assert_refused_with(slot.part(2, b"x" * 11), 413, "body_too_large")["message"]
    assert_refused_with(slot.part(3, b"x" * (MOST + 1)), 413, "body_too_large")
    assert uploads.booked() == before and len(uploads.at_files()) == 1
    second = slot.part(2, b"x" * 10).json()
    # A part may be replaced by one of the same size.
    second = slot.part(2, b"y" * 10).json()
    assert slot.complete([first, second]).status_code == 200


def test_the_first_part_is_checked_against_the_announced_type(uploads: Uploads) -> None:
    slot = uploads.slot(in_parts=True)
    second = slot.part(2, b"MZ" + bytes(200)).json()
    assert_refused_with(slot.part(1, b"MZ" + bytes(200)), 415, "unsupported_media_type")
    assert_refused_with(slot.complete([second]), 400, "bad_request")
    assert slot.complete([slot.part(1, FIRST).json(), second]).status_code == 200


def test_an_empty_part_is_refused(uploads: Uploads) -> None:
    assert_refused_with(uploads.slot(in_parts=True).part(1, b""), 400, "bad_request")


def test_each_part_counts_when_fal_has_it(uploads: Uploads) -> None:
    slot = uploads.slot("alice", "frugal", in_parts=True)
    before = uploads.booked("frugal", "alice").used
    slot.part(1, png(300))
    assert_refused_with(slot.part(2, b"x" * 701), 402, "quota_exceeded", "subject")
    assert uploads.booked("frugal", "alice") == Booked(before + 300, 0)

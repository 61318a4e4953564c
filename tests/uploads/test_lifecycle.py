"""Wishes of callers for their files: more private or shorter-lived than the plan says, never the opposite."""

from __future__ import annotations

import json
from typing import Any

import httpx
import orjson
import pytest

from proxy.errors import BadRequest
from proxy.upstream.wishes import LIFECYCLE, MAX_RULES, PREFERENCE, of_call, of_upload
from tests.support.images import PIXEL, png
from tests.support.limited import assert_refused_with
from tests.uploads.conftest import Uploads

FILE = png(5000)
INITIATE = "/fal/rest/storage/upload/initiate"
RUN = "/fal/run/fal-ai/llava-next"
NOTHING: frozenset[str] = frozenset()


def wish(**document: Any) -> str:
    return json.dumps(document)


def rules(**decisions: str) -> list[dict[str, str]]:
    return [{"user": user, "decision": decision} for user, decision in decisions.items()]


def narrow(*given: str, expires: int | None = 3600) -> Any:
    """What fal receives when the caller sends these values, in the two headers by turns."""
    names = (LIFECYCLE, PREFERENCE)
    raw = [(names[at % 2].encode(), value.encode()) for at, value in enumerate(given)]
    sent = of_upload(raw, expires)
    assert sent.get(LIFECYCLE) == sent.get(PREFERENCE)
    return orjson.loads(sent.get(LIFECYCLE, "{}"))


@pytest.mark.parametrize(
    ("asked", "plan", "sent"),
    [
        (60, 3600, 60),
        (60.9, 3600, 60),
        (0.2, 3600, 1),
        (3601, 3600, 3600),
        (10**30, 3600, 3600),
        (0, 3600, 3600),
        (None, 3600, 3600),
        (60, None, 60),
        (10**30, None, 10 * 365 * 86_400),
    ],
)
def test_the_shorter_lifetime_counts(asked: float | None, plan: int | None, sent: int) -> None:
    assert narrow(wish(expiration_duration_seconds=asked), expires=plan) == {"expiration_duration_seconds": sent}


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"default": "forbid"}, {"default": "forbid"}),
        ({"default": "hide"}, {"default": "hide"}),
        ({"default": "allow"}, None),
        ({"default": None, "rules": None}, None),
        ({}, None),
        # A public file needs no further readers.
        ({"rules": rules(eve="allow")}, None),
        ({"default": "allow", "rules": rules(eve="forbid")}, {"rules": rules(eve="forbid")}),
        ({"default": "forbid", "rules": rules(bob="allow")}, {"default": "forbid", "rules": rules(bob="allow")}),
        ({"default": "hide", "rules": rules(bob="allow", eve="forbid")},) * 2,
        (
            {"default": "hide", "rules": [*rules(bob="forbid"), *rules(bob="allow")]},
            {"default": "hide", "rules": rules(bob="forbid")},
        ),
    ],
)
def test_an_access_list_can_only_restrict(asked: dict[str, Any], sent: dict[str, Any] | None) -> None:
    expected = {} if sent is None else {"initial_acl": sent}
    assert narrow(wish(initial_acl=asked), expires=None) == expected


def test_of_several_wishes_the_strictest_counts() -> None:
    one = wish(expiration_duration_seconds=90, initial_acl={"default": "hide", "rules": rules(bob="allow")})
    two = wish(expiration_duration_seconds=60, initial_acl={"default": "forbid", "rules": rules(bob="hide")})
    both = {
        "expiration_duration_seconds": 60,
        "initial_acl": {"default": "forbid", "rules": rules(bob="hide")},
    }
    assert narrow(one, two) == narrow(two, one) == narrow(one, one, two) == both


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "private",
        "{'initial_acl': 'forbid'}",
        wish(initial_acl="forbid"),
        wish(initial_acl={"default": "FORBID"}),
        wish(initial_acl={"default": "private"}),
        wish(initial_acl={"rules": rules(bob="deny")}),
        wish(initial_acl={"rules": {"bob": "forbid"}}),
        wish(initial_acl={"rules": [{"user": "", "decision": "hide"}]}),
        wish(initial_acl={"rules": [{"user": "b\nob", "decision": "hide"}]}),
        wish(initial_acl={"rules": rules(**{f"u{n}": "hide" for n in range(MAX_RULES + 1)})}),
        wish(expiration_duration_seconds=-1),
        wish(expiration_duration_seconds="60"),
        wish(expiration_duration_seconds=True),
        '{"expiration_duration_seconds":NaN}',
        wish(note="x" * 9000),
        "[" * 2000,
    ],
)
def test_a_malformed_wish_is_refused(text: str) -> None:
    headers = [(LIFECYCLE.encode(), text.encode())]
    with pytest.raises(BadRequest, match="must be JSON such as"):
        of_upload(headers, 3600)
    with pytest.raises(BadRequest, match="must be JSON such as"):
        of_call(headers, 3600, NOTHING)


def test_a_call_passes_on_only_what_its_caller_wished() -> None:
    def read_sent(**document: Any) -> Any:
        sent, dropped = of_call([(PREFERENCE.encode(), wish(**document).encode())], 3600, NOTHING)
        assert dropped == "" and set(sent) <= {PREFERENCE}
        return orjson.loads(sent.get(PREFERENCE, "{}"))

    assert read_sent(initial_acl={"default": "forbid"}) == {"initial_acl": {"default": "forbid"}}
    assert read_sent(expiration_duration_seconds=7200) == {"expiration_duration_seconds": 3600}
    assert read_sent(expiration_duration_seconds=60) == {"expiration_duration_seconds": 60}
    assert read_sent(initial_acl={"default": "allow"}) == read_sent(expiration_duration_seconds=0) == {}


@pytest.mark.parametrize(("decision", "status"), [("forbid", 403), ("hide", 404), ("allow", 200)])
@pytest.mark.parametrize("way", ["slot", "native", "parts"])
def test_a_file_is_as_private_as_it_was_asked_to_be(uploads: Uploads, way: str, decision: str, status: int) -> None:
    headers = {LIFECYCLE: wish(initial_acl={"default": decision})}
    with uploads.client() as alice:
        if way == "native":
            answer = alice.post("/v1/uploads", content=FILE, headers={**headers, "content-type": "image/png"})
            url = answer.raise_for_status().json()["url"]
        else:
            path = INITIATE if way == "slot" else f"{INITIATE}-multipart"
            begun = alice.post(path, json={"content_type": "image/png"}, headers=headers).raise_for_status().json()
            url = begun["file_url"]
            if way == "slot":
                httpx.put(
                    begun["upload_url"], content=FILE, headers={"content-type": "image/png"}, verify=False, timeout=60
                ).raise_for_status()
            else:
                part = (
                    httpx.put(f"{begun['upload_url']}/1", content=FILE, verify=False, timeout=60)
                    .raise_for_status()
                    .json()
                )
                httpx.post(
                    f"{begun['upload_url']}/complete", json={"parts": [part]}, verify=False, timeout=60
                ).raise_for_status()
    assert httpx.get(url, verify=False, timeout=60).status_code == status


def test_a_malformed_wish_costs_nothing(uploads: Uploads) -> None:
    before = uploads.booked()
    headers = {LIFECYCLE: '{"initial_acl": "forbid"}'}
    with uploads.client() as alice:
        assert_refused_with(
            alice.post(INITIATE, json={"content_type": "image/png"}, headers=headers), 400, "bad_request"
        )
        assert_refused_with(
            alice.post("/v1/uploads", content=FILE, headers={**headers, "content-type": "image/png"}),
            400,
            "bad_request",
        )
        assert_refused_with(
            alice.post(RUN, json={"image_url": PIXEL, "prompt": "?"}, headers=headers), 400, "bad_request"
        )
    assert uploads.booked() == before and not uploads.sandbox.requests()

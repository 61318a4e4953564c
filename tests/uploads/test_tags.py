"""Uploads have the tags of the session that they come with, or that opened their slot."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from tests.support.limited import ADMIN_TOKEN
from tests.support.waiting import wait_until
from tests.uploads.conftest import Uploads
from tests.uploads.test_revoked import FILE, WAYS


def mint(uploads: Uploads, subject: str, *tags: str) -> httpx.Client:
    """A user of acme's whose session has tags."""
    with uploads.stack.client(uploads.stack.tenant_key("acme")) as backend:
        form = {"subject": subject, "tags": list(tags)}
        session = backend.post("/v1/sessions", json=form).raise_for_status().json()
    return uploads.stack.client(session["token"])


def bytes_by_tag(user: httpx.Client) -> dict[str, float]:
    rows = user.get("/v1/usage", params={"group_by": "tag"}).raise_for_status().json()["usage"]
    return {row["tag"]: row["upload_bytes"] for row in rows}


def upload_jobs(uploads: Uploads, subject: str) -> list[dict[str, Any]]:
    with uploads.stack.client(ADMIN_TOKEN) as operator:
        query = {"tenant": "acme", "subject": subject}
        jobs = operator.get("/v1/admin/jobs", params=query).raise_for_status().json()["jobs"]
        return [operator.get(f"/v1/admin/jobs/{job['id']}").raise_for_status().json() for job in jobs]


def has_line(caplog: pytest.LogCaptureFixture, tags: list[str]) -> bool:
    lines = [one.__dict__.get("log_fields", {}) for one in list(caplog.records)]
    return any((line.get("kind"), line.get("tags")) == ("upload", tags) for line in lines)


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_is_reported_and_logged_with_the_tags_of_its_session(
    uploads: Uploads, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.access")
    subject, tags = f"tagged-{way}", ["trial", "chat:17"]
    with mint(uploads, subject, *tags) as user:
        send = WAYS[way][0](uploads, user)
        caplog.clear()
        assert send(iter([FILE])).status_code in (200, 201)
        assert bytes_by_tag(user) == {"trial": len(FILE), "chat:17": len(FILE)}
    assert [job["tags"] for job in upload_jobs(uploads, subject)] == [tags]
    wait_until(lambda: has_line(caplog, tags), "no line of the upload has the tags")


@pytest.mark.parametrize("way", ["slot", "one-call"])
def test_an_upload_of_a_session_without_tags_has_none(uploads: Uploads, way: str) -> None:
    subject = f"plain-{way}"
    with mint(uploads, subject) as user:
        assert WAYS[way][0](uploads, user)(iter([FILE])).status_code in (200, 201)
        assert bytes_by_tag(user) == {"": len(FILE)}
    assert [job["tags"] for job in upload_jobs(uploads, subject)] == [[]]

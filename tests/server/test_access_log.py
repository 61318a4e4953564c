"""What is written of each call: a line, but for the polls that fal is not asked about."""

from __future__ import annotations

import logging

import pytest

from tests.support.limited import HOSTS, NEXT, Client
from tests.support.stack import Stack
from tests.support.waiting import wait_until


def test_polls_answered_from_memory_are_logged_at_debug_only(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "proxy.access")

    def levels(kind: str) -> list[str]:
        calls = [record for record in caplog.records if record.name == "proxy.access"]
        return [record.levelname for record in calls if getattr(record, "log_fields", {}).get("kind") == kind]

    with Client(stack, stack.token(), HOSTS) as alice:
        job = alice.submitted("[[pace hold=IN_PROGRESS]] ?")
        for polls in (1, 2, 3):
            assert alice.status(job, NEXT).status_code == 202
            wait_until(lambda: len(levels("status")) == polls, "a poll has no line")  # noqa: B023
    assert levels("submit") == ["INFO"] and levels("status") == ["INFO", "DEBUG", "DEBUG"]

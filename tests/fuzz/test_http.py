"""The raw HTTP fuzz, bounded: the same inputs each time."""

from __future__ import annotations

import logging

import pytest

from tests.fuzz import http


def test_no_bytes_break_the_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    assert http.run(20_261_125, lambda number: number < 150) == 150
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []

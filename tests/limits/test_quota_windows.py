"""The calendar windows of quotas, UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from proxy.limits.accounts import window_end, window_start


@pytest.mark.parametrize(
    ("window", "moment", "start", "end"),
    [
        ("minute", "2026-03-29T01:59:59.999", "2026-03-29T01:59", "2026-03-29T02:00"),
        ("minute", "2026-03-29T02:00:00", "2026-03-29T02:00", "2026-03-29T02:01"),
        ("hour", "2026-12-31T23:00:00", "2026-12-31T23:00", "2027-01-01T00:00"),
        ("hour", "2026-12-31T22:59:59", "2026-12-31T22:00", "2026-12-31T23:00"),
        # Days on which clocks are set elsewhere are as long as others here.
        ("day", "2026-03-29T12:34:56", "2026-03-29T00:00", "2026-03-30T00:00"),
        ("day", "2026-10-25T23:59:59", "2026-10-25T00:00", "2026-10-26T00:00"),
        ("day", "2028-02-28T10:00:00", "2028-02-28T00:00", "2028-02-29T00:00"),
        ("day", "2027-02-28T10:00:00", "2027-02-28T00:00", "2027-03-01T00:00"),
        ("month", "2026-01-31T23:59:59", "2026-01-01T00:00", "2026-02-01T00:00"),
        ("month", "2026-02-01T00:00:00", "2026-02-01T00:00", "2026-03-01T00:00"),
        ("month", "2028-02-29T12:00:00", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("month", "2026-04-30T23:59:59", "2026-04-01T00:00", "2026-05-01T00:00"),
        ("month", "2026-12-31T23:59:59", "2026-12-01T00:00", "2027-01-01T00:00"),
    ],
)
def test_a_moment_lies_in_its_window(window: str, moment: str, start: str, end: str) -> None:
    found = window_start(window, seconds(moment))
    assert (found, window_end(window, found)) == (seconds(start), seconds(end))


def test_a_lifetime_has_one_window_without_an_end() -> None:
    assert {window_start("lifetime", seconds(moment)) for moment in ("1970-01-01T00:00", "2999-12-31T00:00")} == {0}
    assert window_end("lifetime", 0) is None


@pytest.mark.parametrize(("window", "step"), [("minute", 13), ("hour", 1001), ("day", 30_011), ("month", 400_009)])
def test_windows_follow_each_other_without_gap_or_overlap(window: str, step: int) -> None:
    first = int(seconds("2027-11-29T00:00"))
    starts = sorted({window_start(window, moment) for moment in range(first, first + 300 * step, step)})
    assert len(starts) > 3
    for one, next_one in pairwise(starts):
        assert window_end(window, one) == next_one


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()

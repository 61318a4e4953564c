"""What was told once is not told again when a stream is opened anew."""

from __future__ import annotations

import orjson

from proxy.jobs.watch import LogTrail


def update(*messages: str) -> dict[str, object]:
    return {"status": "IN_PROGRESS", "logs": [{"timestamp": f"t-{text}", "message": text} for text in messages]}


def told(trail: LogTrail, *messages: str) -> list[str]:
    return [line["message"] for line in orjson.loads(trail.fresh(update(*messages)))["logs"]]


def test_a_stream_that_starts_over_repeats_no_line() -> None:
    trail = LogTrail()
    assert told(trail, "a", "b") == ["a", "b"]
    assert told(trail, "c") == ["c"]
    assert told(trail, "a", "b", "c", "d") == ["d"]
    assert told(trail, "a") == []


def test_updates_without_logs_stay_as_they_are() -> None:
    for logs in (None, []):
        plain = {"status": "IN_QUEUE", "logs": logs, "queue_position": 2}
        assert orjson.loads(LogTrail().fresh(plain)) == plain

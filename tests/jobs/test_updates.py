"""A job's log, and an update in all its forms."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest

from proxy.jobs.events import parse_event_id
from proxy.jobs.updates import MOST_LOG_BYTES, Log, Update
from proxy.routes.jobs import as_job


def messages(log: Log, first: int = 0) -> Any:
    return orjson.loads(orjson.dumps(log.cut(first, len(log))))


def test_a_line_is_taken_once_however_often_it_comes() -> None:
    log = Log()
    log.add([{"m": 1}, {"m": 2}])
    log.add([{"m": 1}, {"m": 2}, {"m": 3}, {"m": 3}])
    assert messages(log) == [{"m": 1}, {"m": 2}, {"m": 3}] and messages(log, 2) == [{"m": 3}]


def test_an_endless_log_is_bounded_and_dropped_lines_do_not_come_back() -> None:
    log, lines = Log(), [{"n": n, "text": "x" * 1000} for n in range(3000)]
    log.add(lines)
    kept = messages(log)
    assert log.bytes <= MOST_LOG_BYTES and len(log) == 3000 and kept[-1]["n"] == 2999
    # A stream that is opened again sends the whole log.
    log.add([*lines, {"n": 3000}])
    assert len(log) == 3001 and messages(log)[-1] == {"n": 3000}
    assert [line["n"] for line in messages(log)] == sorted(line["n"] for line in messages(log))
    assert messages(log, 2999) == [{"n": 2999, "text": "x" * 1000}, {"n": 3000}]


@pytest.mark.parametrize(
    ("document", "first", "logs"),
    [
        ({"status": "IN_QUEUE", "logs": []}, None, None),
        ({"status": "IN_QUEUE", "logs": []}, 0, [{"m": 1}]),
        ({"status": "IN_QUEUE", "logs": None}, 0, [{"m": 1}]),
        ({"status": "IN_QUEUE", "logs": []}, 1, []),
    ],
)
def test_the_log_in_a_document(document: dict[str, Any], first: int | None, logs: Any) -> None:
    log = Log()
    log.add([{"m": 1}])
    assert orjson.loads(Update("e", document, log, 1).encode(first))["logs"] == logs


def test_a_log_that_fal_does_not_send_is_not_sent_on() -> None:
    assert orjson.loads(Update("e", {"status": "IN_QUEUE", "logs": None}, Log(), 0).encode(0))["logs"] is None
    assert "logs" not in orjson.loads(Update("e", {"status": "IN_QUEUE"}, Log(), 0).encode(0))


def test_a_form_is_encoded_once() -> None:
    calls = []

    def rewrite(endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
        calls.append(endpoint)
        return {**document, "from": endpoint}

    update = Update("e", {"status": "COMPLETED"}, Log(), 0)
    assert update.encode(0, rewrite) is update.encode(0, rewrite) != update.encode(0)
    assert calls == ["e"] and update.is_last


@pytest.mark.parametrize(
    ("document", "mark"),
    [
        ({"status": "IN_QUEUE", "queue_position": 3}, "IN_QUEUE.3.2"),
        ({"status": "IN_PROGRESS"}, "IN_PROGRESS..2"),
        ({"status": "IN_QUEUE", "queue_position": "1\nid: x"}, "IN_QUEUE..2"),
        ({"status": "IN_QUEUE", "queue_position": 3.0}, "IN_QUEUE.3.2"),
        ({"status": "IN_QUEUE", "queue_position": True}, "IN_QUEUE..2"),
        ({"status": "IN_QUEUE", "queue_position": -1}, "IN_QUEUE..2"),
        ({"status": "IN_QUEUE", "queue_position": 10**9}, "IN_QUEUE..2"),
        ({"status": "IN_QUEUE", "queue_position": 1e300}, "IN_QUEUE..2"),
    ],
)
def test_the_mark_of_an_update_is_an_event_id_to_resume_from(document: dict[str, Any], mark: str) -> None:
    assert Update("e", document, Log(), 2).mark == mark
    # A client can resume from it.
    assert parse_event_id(mark) == mark


def test_forms_are_kept_once_a_job_and_not_once_for_each_place_in_its_log() -> None:
    log, size = Log(), MOST_LOG_BYTES // 2
    log.add([{"n": n, "text": "x" * 970} for n in range(size // 1000)])
    update = Update("e", {"status": "IN_PROGRESS", "logs": []}, log, len(log), len(log) - 1)
    tracemalloc.start()
    try:
        for first in range(len(log)):
            assert len(orjson.loads(update.encode(first, as_job))["logs"]) == len(log) - first
        assert tracemalloc.get_traced_memory()[0] < 2 * size
        update.forget_whole_log()
        assert tracemalloc.get_traced_memory()[0] < size / 4
    finally:
        tracemalloc.stop()

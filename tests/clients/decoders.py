"""Rules that phone clients' decoders demand of an answer; the client fails if one is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LOG_LEVELS = {"STDERR", "STDOUT", "ERROR", "INFO", "WARN", "DEBUG"}

Json = Mapping[str, Any]


def swift_status(status: Json) -> None:
    """fal-swift's QueueStatus: a missing key is a DecodingError, and the whole subscribe fails."""
    match status["status"]:
        case "IN_QUEUE":
            assert type(status["queue_position"]) is int
            assert isinstance(status["response_url"], str)
        case "IN_PROGRESS":
            _logs(status["logs"], _swift_log)
        case "COMPLETED":
            _logs(status["logs"], _swift_log)
            assert isinstance(status["response_url"], str)
        case unknown:
            raise AssertionError(f"unknown state {unknown!r}")


def dart_status(status: Json) -> None:
    """fal_client's QueueStatus for Dart: `logs` may be missing, `response_url` never."""
    assert isinstance(status["response_url"], str)
    match status["status"]:
        case "IN_QUEUE":
            assert type(status["queue_position"]) is int
        case "IN_PROGRESS" | "COMPLETED":
            _logs(status.get("logs"), _log)
        case unknown:
            raise AssertionError(f"unknown state {unknown!r}")


def hook_status(status: Json) -> None:
    """What useFalProxy of @fal-proxy/client shows of a status."""
    assert status["status"] in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
    if status["status"] == "IN_QUEUE":
        assert type(status["queue_position"]) is int
    _logs(status.get("logs"), _log)


def swift_message(error: Json) -> str | None:
    """The text of a FalError.httpError: `detail` if it is a text, else Foundation's words for the status."""
    return error["detail"] if isinstance(error.get("detail"), str) else None


def dart_validation_problems(error: Json) -> list[str]:
    """What a ValidationException holds of a 422: without these three keys it is a TypeError instead."""
    assert type(error["status"]) is int
    assert isinstance(error["message"], str)
    assert all(isinstance(problem["type"], str) for problem in error["body"])
    return [problem["msg"] for problem in error["body"]]


def _logs(logs: list[Json] | None, check: Callable[[Json], None]) -> None:
    for log in logs or []:
        check(log)


def _log(log: Json) -> None:
    assert isinstance(log["message"], str) and isinstance(log["timestamp"], str)


def _swift_log(log: Json) -> None:
    _log(log)
    assert log["labels"]["level"] in LOG_LEVELS

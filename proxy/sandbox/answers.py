"""What a model run comes to: its own status and body, and fal's names for the ways in which it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DOCS = "https://docs.fal.ai/errors/#"
#: fal's own failures: `{"detail": "text", "error_type": …}`.
PLATFORM_ERRORS = {
    "request_timeout": 504,
    "startup_timeout": 504,
    "runner_scheduling_failure": 503,
    "runner_connection_timeout": 503,
    "runner_disconnected": 503,
    "runner_connection_refused": 503,
    "runner_connection_error": 503,
    "runner_incomplete_response": 502,
    "runner_server_error": 500,
    "internal_error": 500,
    "client_disconnected": 499,
    "client_cancelled": 499,
    "bad_request": 400,
    "concurrent_requests_limit": 429,
}
#: A model's failures: `{"detail": [{"loc", "msg", "type", "url", …}]}`.
MODEL_ERRORS = {
    "internal_server_error": 500,
    "generation_timeout": 504,
    "downstream_service_error": 400,
    "downstream_service_unavailable": 500,
    "content_policy_violation": 422,
    "no_media_generated": 422,
    "image_too_small": 422,
    "image_too_large": 422,
    "image_load_error": 422,
    "file_download_error": 422,
    "file_too_large": 422,
    "unsupported_image_format": 422,
}
_RETRYABLE = frozenset({"concurrent_requests_limit", "runner_scheduling_failure", "runner_disconnected"})


@dataclass(frozen=True)
class Answer:
    """The end of a run: what `GET …/requests/{id}` hands out, and what the status says of it."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    error_type: str | None = None


def success(body: Mapping[str, Any], compute_seconds: float) -> Answer:
    return Answer(200, body, {"x-fal-billable-units": f"{compute_seconds:g}"})


def refuse(details: Sequence[Mapping[str, Any]], status: int = 422) -> Answer:
    """Answer as a model that refuses its input, or fails in its own words."""
    return Answer(
        status,
        {"detail": [{**detail, "url": DOCS + detail["type"]} for detail in details]},
        {"x-fal-billable-units": "0"},
        error=f"Invalid status code: {status}",
        error_type=details[0]["type"],
    )


def platform_failure(error_type: str, text: str | None = None) -> Answer:
    """Answer as fal itself that fails, by one of its own names.

    Raises:
        KeyError: fal has no such failure.
    """
    text = text or error_type.replace("_", " ").capitalize()
    headers = {"x-fal-error-type": error_type}
    if error_type in _RETRYABLE:
        headers["x-fal-needs-retry"] = "1"
    if error_type == "request_timeout":
        headers["x-fal-request-timeout-type"] = "user"
    body = {"detail": text, "error_type": error_type}
    return Answer(PLATFORM_ERRORS[error_type], body, headers, error=text, error_type=error_type)


def failure(error_type: str) -> Answer:
    """Answer with any failure by its name, fal's or the model's.

    Raises:
        ValueError: there is no failure of that name.
    """
    if error_type in PLATFORM_ERRORS:
        return platform_failure(error_type)
    if error_type in MODEL_ERRORS:
        detail = {"loc": ["body"], "msg": error_type.replace("_", " ").capitalize(), "type": error_type}
        return refuse([detail], MODEL_ERRORS[error_type])
    raise ValueError(f"no such failure: {error_type}")

"""JSON answers of the sandbox."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from proxy.sandbox.answers import Answer


def reply(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, request_id: str | None = None
) -> Response:
    """Make a JSON response with fal's id of the request on it."""
    named = {"x-fal-request-id": request_id or str(uuid.uuid4()), **(headers or {})}
    return Response(orjson.dumps(body), status, named, media_type="application/json")


def reply_with(answer: Answer, request_id: str | None = None) -> Response:
    return reply(answer.body, answer.status, answer.headers, request_id=request_id)

"""The response to an expected failure."""

from __future__ import annotations

import orjson
from starlette.responses import Response

from proxy.errors import ProxyError


def respond(error: ProxyError, request_id: str) -> Response:
    """Turn a failure into an answer: always the same JSON shape, with the headers that mirror it."""
    body = error.body() | {"request_id": request_id}
    headers = {**error.headers, "x-fal-error-type": error.code}
    if error.scope is not None:
        body["scope"] = error.scope
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
        headers["retry-after"] = str(error.retry_after)
    return Response(orjson.dumps(body), error.status, headers, media_type="application/json")

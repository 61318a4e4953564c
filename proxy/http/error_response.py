"""The response to an expected failure."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Scope

from proxy.errors import ProxyError
from proxy.http.scope import values_of
from proxy.upstream import sse
from proxy.upstream.headers import EVENT_STREAM, JSON

#: How fal's client for the JVM asks for the states of a job: no other one sends these in two lines.
_JVM_ACCEPT = [JSON, EVENT_STREAM]


def respond(error: ProxyError, request_id: str) -> Response:
    """Turn a failure into an answer: always the same JSON shape, with the headers that mirror it."""
    body, headers = _describe(error, request_id)
    return Response(orjson.dumps(body), error.status, headers, media_type=JSON)


def hangs_on(error: ProxyError, scope: Scope) -> bool:
    """Return whether a caller would wait for ever after an answer of this status.

    fal's client for the JVM does after any that is no stream. Refusals that an address has a budget of keep their
    status all the same; these are the others, which say that the caller did nothing wrong.
    """
    return (error.status == 429 or error.status >= 500) and values_of(scope, b"accept") == _JVM_ACCEPT


def respond_in_stream(error: ProxyError, request_id: str) -> Response:
    """Turn a failure into the only event of a stream. Its state is none that clients know, and says what is wrong:
    the client for the JVM raises an error with it.
    """
    body, headers = _describe(error, request_id)
    data = orjson.dumps(body | {"status": f"{error.code}: {error.message}"})
    return Response(sse.encode(data, name="error"), 200, headers, media_type=EVENT_STREAM)


def _describe(error: ProxyError, request_id: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON of a failure, and its headers."""
    body = error.body() | {"request_id": request_id}
    headers = {**error.headers, "x-fal-error-type": error.code}
    if error.scope is not None:
        body["scope"] = error.scope
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
        headers["retry-after"] = str(error.retry_after)
    return body, headers

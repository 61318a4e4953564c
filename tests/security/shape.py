"""The one shape of errors (for every surface, route and failure), and the parts of a valid call."""

from __future__ import annotations

import json

from tests.security.wire import Answer
from tests.support.images import PIXEL

#: Makes the sandbox answer at once.
FAST = "[[pace run_seconds=0 queue_positions=0 seconds_per_position=0 words_per_second=100000]]"

INPUT = {"prompt": f"{FAST} What is it?", "image_url": PIXEL}
BODY = json.dumps(INPUT, separators=(",", ":")).encode()


def assert_refusal(answer: Answer, status: int, code: str, *, has_body: bool = True) -> None:
    """The answer is a refusal of the proxy's own: this status and code, and all of the shape."""
    assert (answer.status, answer.all("x-fal-error-type")) == (status, [code]), answer
    assert answer.all("content-type") == ["application/json"]
    assert answer.all("cache-control") == ["no-store"]
    assert answer.all("x-content-type-options") == ["nosniff"]
    if not has_body:
        assert answer.body == b""
        return
    body = answer.json()
    assert body["error_type"] == code
    assert isinstance(body["message"], str) and body["message"]
    if code == "invalid_input":
        assert body["detail"] and all(set(one) == {"loc", "msg", "type"} for one in body["detail"])
    else:
        assert body["detail"] == body["message"]
    assert [body["request_id"]] == answer.all("x-request-id")
    assert answer.all("retry-after") == [str(body["retry_after"]) for _ in {"retry_after"} & set(body)]
    extra = {"invalid_input": {"status", "body"}, "not_found": {"status"}}.get(code, set())
    assert set(body) - {"retry_after", "scope"} == {"detail", "message", "error_type", "request_id"} | extra

"""What the comparison's tests call, and what they look for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from tests.clients.expectations import ENDPOINT
from tests.comparison.contestants import Contestant, call
from tests.support.sandbox import SandboxControl

RUN = f"https://fal.run/{ENDPOINT}"
QUEUE = f"https://queue.fal.run/{ENDPOINT}"


def submitted(proxy: Contestant, input: Mapping[str, Any]) -> str:
    """The request id of a new job of alice's."""
    request_id: str = assert_success(call(proxy, "POST", QUEUE, json=input)).json()["request_id"]
    return request_id


def assert_success(answer: httpx.Response) -> httpx.Response:
    assert answer.is_success, f"answered {answer.status_code}"
    return answer


def assert_refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, f"answered {answer.status_code}"


def assert_fal_not_reached(sandbox: SandboxControl) -> None:
    reached = [f"{request['method']} {request['host']} {request['path']}" for request in sandbox.requests()]
    assert not reached, f"fal was reached: {', '.join(reached)}"

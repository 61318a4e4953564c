"""A webhook arrives once the job is done, and its signature holds against the published key."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.sandbox.conftest import Fal
from tests.support.servers import running
from tests.support.waiting import wait_until


class Receiver:
    """What arrived at a webhook, and the statuses with which it answers before it accepts."""

    def __init__(self) -> None:
        self.url = ""
        self.arrived: list[tuple[dict[str, str], bytes]] = []
        self.failures: list[int] = []

    async def receive(self, request: Request) -> Response:
        self.arrived.append((dict(request.headers), await request.body()))
        return Response(status_code=self.failures.pop() if self.failures else 200)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with running(Starlette(routes=[Route("/hook", receiver.receive, methods=["POST"])])) as url:
        receiver.url = f"{url}/hook"
        yield receiver


def _wait_for_delivery(receiver: Receiver, times: int = 1) -> dict[str, Any]:
    wait_until(lambda: len(receiver.arrived) >= times)
    message: dict[str, Any] = orjson.loads(receiver.arrived[-1][1])
    return message


def test_a_result_is_delivered_and_signed(fal: Fal, receiver: Receiver) -> None:
    job = fal.submit(query=f"?fal_webhook={receiver.url}")
    message = _wait_for_delivery(receiver)
    assert message == {
        "request_id": job["request_id"],
        "gateway_request_id": job["request_id"],
        "status": "OK",
        "payload": fal.client.get(job["response_url"]).json(),
    }
    headers, body = receiver.arrived[0]
    signed = [headers[f"x-fal-webhook-{name}"] for name in ("request-id", "user-id", "timestamp")]
    (key,) = fal.client.get("/rest/.well-known/jwks.json").json()["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    text = "\n".join([*signed, hashlib.sha256(body).hexdigest()]).encode()
    public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), text)


def test_a_failed_run_is_delivered_as_an_error(fal: Fal, receiver: Receiver) -> None:
    fal.submit(query=f"?fal_webhook={receiver.url}", image_url="data:,x")
    message = _wait_for_delivery(receiver)
    assert (message["status"], message["error"]) == ("ERROR", "Invalid status code: 422")
    assert message["payload"]["detail"][0]["type"] == "image_load_error"


def test_a_delivery_that_failed_is_tried_again(fal: Fal, receiver: Receiver) -> None:
    receiver.failures = [302]
    job = fal.submit(query=f"?fal_webhook={receiver.url}")
    assert _wait_for_delivery(receiver, times=2)["request_id"] == job["request_id"]
    assert receiver.arrived[0][1] == receiver.arrived[1][1]

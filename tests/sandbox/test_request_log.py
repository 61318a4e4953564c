"""The record shows what arrived, as it arrived; and the control routes answer."""

from __future__ import annotations

import hashlib
import json
import socket
from typing import Any

import httpx
import pytest

from proxy.sandbox.app import SANDBOX_KEY
from tests.sandbox.conftest import Fal
from tests.support.waiting import wait_until


def test_a_request_is_recorded_as_it_arrived(fal: Fal) -> None:
    body = json.dumps({"b": 1, "a": [None, "é"]}).encode()
    address = httpx.URL(fal.url)
    with socket.create_connection((address.host, address.port or 0), timeout=60) as connection:
        connection.sendall(
            b"POST /run/fal-ai%2Fllava-next//x?b=2&a=%20&a HTTP/1.1\r\n"
            b"Host: here\r\nX-Two: 1\r\nX-One: a\r\nx-two: 2\r\n"
            + f"Authorization: Key {SANDBOX_KEY}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        while connection.recv(65536):
            pass
    (request,) = fal.requests()
    assert {
        name: request[name] for name in ("host", "method", "path", "query", "body_size", "body_sha256", "json")
    } == {
        "host": "run",
        "method": "POST",
        "path": "/fal-ai%2Fllava-next//x",
        "query": "b=2&a=%20&a",
        "body_size": len(body),
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "json": {"b": 1, "a": [None, "é"]},
    }
    assert request["headers"][:4] == [["host", "here"], ["x-two", "1"], ["x-one", "a"], ["x-two", "2"]]
    assert (request["answered"], request["ended"]) == (404, "complete")


def test_requests_are_oldest_first_and_can_be_forgotten(fal: Fal) -> None:
    for name in ("a", "b", "c"):
        fal.client.get(f"/run/x/{name}")
    requests = fal.requests()
    assert [request["path"] for request in requests] == ["/x/a", "/x/b", "/x/c"]
    assert [request["id"] for request in requests] == sorted(request["id"] for request in requests)
    assert [request["at"] for request in requests] == sorted(request["at"] for request in requests)
    assert fal.client.delete("/_sandbox/requests").json() == []
    assert fal.requests() == []


def test_refused_requests_are_recorded_and_control_requests_are_not(fal: Fal) -> None:
    fal.client.post("/queue/x/y", headers={"cookie": "a=b"})
    fal.client.get("/_sandbox/jobs")
    (request,) = fal.requests()
    assert (request["host"], request["answered"]) == ("queue", 400)
    assert ["cookie", "a=b"] in request["headers"]


def test_a_body_that_is_no_json_is_recorded_as_null(fal: Fal) -> None:
    fal.client.post("/run/fal-ai/llava-next", content=b"{")
    assert (fal.requests()[-1]["json"], fal.requests()[-1]["body_size"]) == (None, 1)


def test_a_body_that_is_too_large_is_refused_and_recorded(fal: Fal) -> None:
    answer = fal.client.post("/run/fal-ai/llava-next", content=(b"x" * 2**20 for _ in range(33)))
    assert (answer.status_code, fal.requests()[-1]["body_size"]) == (413, 33 * 2**20)


def test_a_caller_that_leaves_in_the_middle_of_its_body_is_recorded(fal: Fal) -> None:
    address = httpx.URL(fal.url)
    with socket.create_connection((address.host, address.port or 0)) as connection:
        connection.sendall(b"POST /run/fal-ai/llava-next HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
    wait_until(lambda: [request["ended"] for request in fal.requests()] == ["left"])
    assert (fal.requests()[-1]["body_size"], fal.requests()[-1]["answered"]) == (4, None)


def test_the_pace_of_coming_jobs_can_be_changed_and_brought_back(fal: Fal) -> None:
    before = fal.client.get("/_sandbox/pace").json()
    assert fal.client.post("/_sandbox/pace", json={"queue_positions": 7, "hold": "IN_QUEUE"}).json() == {
        **before, "queue_positions": 7, "hold": "IN_QUEUE",
    }  # fmt: skip
    assert fal.submit()["queue_position"] == 6
    assert fal.client.delete("/_sandbox/pace").json() == before


@pytest.mark.parametrize("body", [{"speed": 1}, {"hold": "NEVER"}, [1], "x"])
def test_a_malformed_pace_is_refused(fal: Fal, body: Any) -> None:
    assert fal.client.post("/_sandbox/pace", json=body).status_code == 422


def test_jobs_are_listed_as_they_stand(fal: Fal) -> None:
    job = fal.submit("[[pace hold=IN_QUEUE queue_positions=1]]")
    listed = fal.client.get("/_sandbox/jobs").json()[-1]
    assert listed == {
        "id": job["request_id"],
        "kind": "queue",
        "endpoint": "fal-ai/llava-next",
        "created": listed["created"],
        "status": "IN_QUEUE",
        "queue_position": 0,
        "held": True,
    }


@pytest.mark.parametrize("order", [{}, {"state": "nonsense"}, {"state": "fail", "error_type": "nonsense"}])
def test_a_malformed_order_is_refused(fal: Fal, order: dict[str, str]) -> None:
    assert fal.move(fal.submit("[[pace hold=IN_QUEUE]]"), **order).status_code == 422


def test_completed_and_unknown_jobs_cannot_be_moved(fal: Fal) -> None:
    assert fal.move(fal.finished(), state="IN_QUEUE").status_code == 422
    assert fal.move({"request_id": "unknown"}, state="go").status_code == 404


def test_a_job_can_be_frozen_where_it_is(fal: Fal) -> None:
    job = fal.submit("[[pace queue_positions=5 hold=IN_QUEUE]]")
    fal.move(job, state="hold")
    assert fal.client.get(job["status_url"]).json() == fal.client.get(job["status_url"]).json()

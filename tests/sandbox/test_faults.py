"""Every fault, as it looks on the wire."""

from __future__ import annotations

import gzip
import json
import select
import socket
import time
from typing import Any

import httpx
import pytest

from proxy.sandbox.app import SANDBOX_KEY
from proxy.sandbox.fault_kinds import FAULT_KINDS
from proxy.sandbox.refusals import REFUSALS
from tests.sandbox.conftest import Fal, documents
from tests.support.waiting import wait_until

RUN = "/run/fal-ai/llava-next"
QUIET_SECONDS = 0.15


def _parts(answer: bytes) -> tuple[str, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode("latin-1").lower(), body


def _chunks(body: bytes) -> list[bytes]:
    """The chunks of a chunked body, the closing empty one included if it is there."""
    found = []
    while body:
        size, _, body = body.partition(b"\r\n")
        found.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return found


def test_drop_before_sends_nothing_and_does_nothing(wire: Fal) -> None:
    jobs = len(wire.client.get("/_sandbox/jobs").json())
    assert wire.raw("POST", "/queue/fal-ai/llava-next", wire.input("[[fault drop=before]]")) == b""
    assert len(wire.client.get("/_sandbox/jobs").json()) == jobs
    (request,) = wire.requests()
    assert (request["answered"], request["ended"], request["json"]["prompt"]) == (
        None,
        "dropped",
        "[[fault drop=before]]",
    )


def test_drop_lost_creates_the_job_and_sends_nothing(wire: Fal) -> None:
    jobs = len(wire.client.get("/_sandbox/jobs").json())
    assert wire.raw("POST", "/queue/fal-ai/llava-next", wire.input("[[fault drop=lost]]")) == b""
    assert len(wire.client.get("/_sandbox/jobs").json()) == jobs + 1


def test_drop_during_sends_the_head_and_half_the_body(wire: Fal) -> None:
    head, body = _parts(wire.raw("POST", RUN, wire.input("[[fault drop=during]]")))
    assert head.startswith("http/1.1 200")
    length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length"))
    assert len(body) == length // 2


def test_drop_after_sends_the_whole_body_but_no_end(wire: Fal) -> None:
    head, body = _parts(wire.raw("POST", RUN, wire.input("[[fault drop=after]]")))
    assert "transfer-encoding: chunked" in head
    (chunk,) = _chunks(body)
    assert json.loads(chunk)["partial"] is False


def test_drop_at_cuts_a_stream_at_that_byte(wire: Fal) -> None:
    _, body = _parts(wire.raw("POST", RUN + "/stream", wire.input("[[fault drop_at=100]]")))
    chunks = _chunks(body)
    assert sum(map(len, chunks)) == 100
    assert chunks[-1] != b""


def test_the_usual_answer_ends_properly(wire: Fal) -> None:
    _, body = _parts(wire.raw("POST", RUN + "/stream", wire.input(max_tokens=2)))
    assert len(_chunks(body)) == 3
    assert _chunks(body)[-1] == b""


@pytest.mark.parametrize("size", [1, 5000, 100_000])
def test_cut_hangs_up_when_that_much_has_arrived(wire: Fal, size: int) -> None:
    wanted = {"content_type": "image/png", "file_name": "a"}
    place = wire.client.post("/rest/storage/upload/initiate", json=wanted).json()
    wire.fault("cut", bytes=size, on={"host": "cdn"}, times=1)
    put = {"url": place["upload_url"], "content": bytes(100_000)}
    with pytest.raises(httpx.TransportError):
        httpx.put(**put, trust_env=False, verify=False, timeout=60)
    assert wire.requests()[-1]["ended"] == "dropped" and wire.requests()[-1]["body_size"] >= size
    assert wire.client.get(place["file_url"]).status_code == 404
    assert httpx.put(**put, trust_env=False, verify=False, timeout=60).status_code == 200


def test_hanging_up_does_not_trouble_the_server(wire: Fal, caplog: pytest.LogCaptureFixture) -> None:
    for fault in ("drop=before", "drop=lost", "drop=during", "drop=after", "drop_at=10"):
        wire.raw("POST", RUN, wire.input(f"[[fault {fault}]]"))
    assert not caplog.records
    assert wire.run().status_code == 200


def test_hang_never_answers(wire: Fal) -> None:
    with _send_call(wire, RUN, "[[fault hang]]") as connection:
        wait_until(lambda: bool(wire.requests()))
        assert _is_silent(connection)
    wait_until(lambda: wire.requests()[-1]["ended"] == "left")
    assert wire.requests()[-1]["answered"] is None


@pytest.mark.parametrize("events", [0, 2])
def test_stall_sends_the_head_and_some_events_then_nothing(wire: Fal, events: int) -> None:
    with _send_call(wire, RUN + "/stream", f"[[fault stall={events}]]") as connection:
        wait_until(lambda: wire.requests()[-1:] != [] and wire.requests()[-1]["answered"] == 200)
        received = b""
        while received.count(b"data: ") < events or b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        assert _is_silent(connection)
        assert received.count(b"data: ") == events
    wait_until(lambda: wire.requests()[-1]["ended"] == "left")


def test_stall_at_falls_silent_at_that_byte(wire: Fal) -> None:
    with _send_call(wire, RUN + "/stream", "[[fault stall_at=100]]") as connection:
        received = b""
        while sum(map(len, _chunks(received.partition(b"\r\n\r\n")[2]))) < 100:
            received += connection.recv(65536)
        assert _is_silent(connection)
        assert sum(map(len, _chunks(received.partition(b"\r\n\r\n")[2]))) == 100
    wait_until(lambda: wire.requests()[-1]["ended"] == "left")


def test_split_cuts_inside_every_multibyte_character(wire: Fal) -> None:
    _, body = _parts(wire.raw("POST", RUN + "/stream", wire.input("naïve? [[fault split]]")))
    chunks = _chunks(body)
    assert any(chunk.endswith(b"\xc3") for chunk in chunks[:-1])
    assert [chunk[:1] for chunk in chunks if _is_cut(chunk)] != []
    assert documents(b"".join(chunks).decode())[-1]["output"].endswith("naïve?")


def test_chunk_sends_one_byte_at_a_time(wire: Fal) -> None:
    _, body = _parts(wire.raw("POST", RUN + "/stream", wire.input("[[fault chunk=1]]", max_tokens=3)))
    *chunks, end = _chunks(body)
    assert {len(chunk) for chunk in chunks} == {1}
    assert end == b""
    assert documents(b"".join(chunks).decode())[-1] == {"output": "A PNG picture", "partial": False}


def test_garbage_puts_an_event_that_is_no_json_among_the_others(wire: Fal) -> None:
    text = wire.client.post(RUN + "/stream", json=wire.input("[[fault garbage=2]]", max_tokens=3)).text
    datas = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert [datas.index(data) for data in datas if not data.endswith("}")] == [2]


def test_duplicate_sends_every_status_event_twice(fal: Fal) -> None:
    job = fal.finished("[[fault duplicate on=status-stream]]")
    assert [event["status"] for event in fal.events(job)] == ["COMPLETED"] * 2


def test_reorder_swaps_events_and_loses_none(fal: Fal) -> None:
    text = fal.client.post(RUN + "/stream", json=fal.input("[[fault reorder]]", max_tokens=5)).text
    assert [len(event["output"].split()) for event in documents(text)] == [2, 1, 4, 3, 5]


@pytest.mark.parametrize("path", [RUN, RUN + "/stream"])
def test_gzip_is_sent_though_identity_was_asked_for(wire: Fal, path: str) -> None:
    with wire.client.stream(
        "POST", path, json=wire.input("[[fault gzip]]"), headers={"accept-encoding": "identity"}
    ) as answer:
        packed = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert "You asked:" in gzip.decompress(packed).decode()


@pytest.mark.parametrize("reason", REFUSALS)
def test_refuse_answers_with_each_of_fals_refusals(fal: Fal, reason: str) -> None:
    status, detail, error_type = REFUSALS[reason]
    answer = fal.run(f"[[fault refuse={reason}]]")
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)
    assert answer.json().get("error_type") == error_type == answer.headers.get("x-fal-error-type")
    # fal asks for a repetition where only the account's other calls stand in the way.
    assert (answer.headers.get("x-fal-needs-retry") == "1") == (reason == "concurrency_limit")


@pytest.mark.parametrize(
    ("marker", "status", "body"),
    [
        ("status=401", 401, {"detail": "invalid key credentials"}),
        ("status=429", 429, {"detail": "Concurrent requests limit", "error_type": "concurrent_requests_limit"}),
        ("status=503", 503, {"detail": "Runner connection error", "error_type": "runner_connection_error"}),
        ("status=418", 418, {"detail": "The sandbox was asked for a 418"}),
    ],
)
def test_status_answers_in_fals_own_words(fal: Fal, marker: str, status: int, body: dict[str, Any]) -> None:
    answer = fal.run(f"[[fault {marker}]]")
    assert (answer.status_code, answer.json()) == (status, body)
    assert answer.headers.get("x-fal-error-type") == body.get("error_type")
    assert (answer.headers.get("x-fal-needs-retry") == "1") == (status in (429,))
    assert answer.headers["x-fal-request-id"]


@pytest.mark.parametrize("status", [402, 403, 500, 502, 504])
def test_status_has_json_with_a_detail_for_every_failure(fal: Fal, status: int) -> None:
    answer = fal.run(f"[[fault status={status}]]")
    assert (answer.status_code, type(answer.json()["detail"])) == (status, str)


def test_status_takes_any_body_and_headers(fal: Fal) -> None:
    fal.fault("status", status=503, body=[1, {"a": None}], headers={"retry-after": 7}, times=1)
    answer = fal.run()
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, [1, {"a": None}], "7")
    fal.fault("status", status=200, text="not json", content_type="text/html", times=1)
    answer = fal.run()
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (
        200,
        "not json",
        "text/html; charset=utf-8",
    )


def test_nginx_is_html_without_fals_request_id(fal: Fal) -> None:
    answer = fal.run("[[fault nginx]]")
    assert (answer.status_code, answer.headers["server"]) == (502, "nginx")
    assert "<center>nginx</center>" in answer.text
    assert "x-fal-request-id" not in answer.headers


def test_redirect_points_elsewhere(fal: Fal) -> None:
    answer = fal.run("[[fault redirect=https://other.example/x status=307]]")
    assert (answer.status_code, answer.headers["location"]) == (307, "https://other.example/x")


def test_huge_is_as_large_as_asked(fal: Fal) -> None:
    answer = fal.run("[[fault huge=3000000]]")
    assert len(answer.content) == 3_000_000
    assert set(answer.json()) == {"output"}


def test_headers_are_set_on_the_usual_answer(fal: Fal) -> None:
    fal.fault("headers", headers={"content-type": "text/plain", "x-more": "a" * 9000})
    answer = fal.run()
    assert (answer.headers["content-type"], len(answer.headers["x-more"])) == ("text/plain", 9000)
    assert answer.json()["partial"] is False


def test_delay_comes_before_the_answer(fal: Fal) -> None:
    begin = time.monotonic()
    assert fal.run("[[fault delay=0.1]]").status_code == 200
    assert time.monotonic() - begin >= 0.1


def test_a_caller_who_hangs_up_in_a_delay_gets_no_job(wire: Fal) -> None:
    with _send_call(wire, RUN, "[[fault delay=600]]"):
        wait_until(lambda: bool(wire.requests()))
    wait_until(lambda: wire.requests()[-1]["ended"] == "left")
    assert wire.requests()[-1]["answered"] is None


def test_faults_can_be_combined(fal: Fal) -> None:
    answer = fal.run("[[fault fail=runner_disconnected]] [[fault gzip]]")
    assert (answer.status_code, answer.headers["content-encoding"]) == (503, "gzip")


def test_a_marker_waits_for_the_operation_it_names(fal: Fal) -> None:
    job = fal.finished("[[fault status=500 on=result times=1]] [[fault status=503 on=status]]")
    assert [fal.client.get(job["response_url"]).status_code for _ in range(3)] == [500, 200, 200]
    assert [fal.client.get(job["status_url"]).status_code for _ in range(2)] == [503, 503]
    assert fal.client.get(job["status_url"] + "/stream").status_code == 200
    assert fal.client.put(job["cancel_url"]).status_code == 400


def test_a_fault_strikes_as_often_as_requested(fal: Fal) -> None:
    fal.fault("status", status=502, times=2)
    assert [fal.run().status_code for _ in range(3)] == [502, 502, 200]
    fal.fault("status", status=500, times=None)
    assert [fal.run().status_code for _ in range(3)] == [500, 500, 500]
    fal.client.delete("/_sandbox/faults")
    assert fal.run().status_code == 200


@pytest.mark.parametrize(
    ("on", "strikes"),
    [
        ({}, {"run", "submit", "initiate"}),
        ({"host": "queue"}, {"submit"}),
        ({"method": "POST", "path_contains": "initiate"}, {"initiate"}),
        ({"operation": "run"}, {"run"}),
        ({"method": "PUT"}, set()),
        ({"host": "run", "path_contains": "llavav15"}, set()),
    ],
)
def test_a_fault_strikes_only_where_requested(fal: Fal, on: dict[str, str], strikes: set[str]) -> None:
    fal.fault("status", status=500, on=on)
    struck = {
        "run": fal.run().status_code,
        "submit": fal.client.post("/queue/fal-ai/llava-next", json=fal.input()).status_code,
        "initiate": fal.client.post(
            "/rest/storage/upload/initiate", json={"file_name": "a", "content_type": "image/png"}
        ).status_code,
    }
    assert {name for name, status in struck.items() if status == 500} == strikes


def test_a_fault_strikes_an_upload_after_its_body_was_read(wire: Fal) -> None:
    wire.fault("drop", when="before", on={"host": "cdn", "method": "PUT"})
    begun = wire.client.post("/rest/storage/upload/initiate", json={"file_name": "a", "content_type": "image/png"})
    with pytest.raises(httpx.RemoteProtocolError):
        wire.client.put(begun.json()["upload_url"], content=b"x" * 5_000_000)
    assert (wire.requests()[-1]["body_size"], wire.requests()[-1]["ended"]) == (5_000_000, "dropped")
    assert wire.client.get(begun.json()["file_url"]).status_code == 404


@pytest.mark.parametrize(
    "marker", ["[[fault nonsense]]", "[[fault fail=nonsense]]", "[[fault drop=sometime]]", "[[fault gzip on=lunch]]",
               "[[pace speed=1]]", "[[pace run_seconds=soon]]"],
)  # fmt: skip
def test_a_malformed_marker_is_answered_with_an_explanation(fal: Fal, marker: str) -> None:
    for path in (RUN, RUN + "/stream", "/queue/fal-ai/llava-next"):
        assert fal.client.post(path, json=fal.input(marker)).status_code == 400


@pytest.mark.parametrize(
    "document", [{}, {"fault": "nonsense"}, {"fault": "gzip", "on": {"colour": "red"}}, {"fault": "gzip", "times": "x"}]
)
def test_a_malformed_fault_is_refused(fal: Fal, document: dict[str, Any]) -> None:
    assert fal.client.post("/_sandbox/faults", json=document).status_code == 422


def test_every_fault_is_shown_here() -> None:
    import pathlib

    text = pathlib.Path(__file__).read_text()
    assert [name for name in FAULT_KINDS if f"fault {name}" not in text and f'fault("{name}"' not in text] == []


def _send_call(fal: Fal, path: str, prompt: str) -> socket.socket:
    body = json.dumps(fal.input(prompt)).encode()
    address = httpx.URL(fal.url)
    connection = socket.create_connection((address.host, address.port or 0), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Key {SANDBOX_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def _is_silent(connection: socket.socket) -> bool:
    return not select.select([connection], [], [], QUIET_SECONDS)[0]


def _is_cut(chunk: bytes) -> bool:
    return bool(chunk) and 0x80 <= chunk[0] < 0xC0

"""Only its submitter can reach a job: for others the answer is, byte for byte, that of a job that does not exist."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from proxy.upstream.file_urls import CDN_PATH
from tests.security.calls import SURFACES, call, submit
from tests.security.hostile import NEXT, NOBODYS
from tests.security.shape import assert_refusal
from tests.security.wire import Answer, Wire
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

#: Another endpoint that all callers here may call: the job's id under it is a wrong address.
OTHER = "fal-ai/llavav15-13b"
CALLS = [
    ("GET", "status?logs=1"),
    ("GET", "status/"),
    ("GET", "status/stream"),
    ("GET", ""),
    ("GET", "response"),
    ("PUT", "cancel"),
]


def ask(wire: Wire, surface: str, token: str, method: str, tail: str, request_id: str, app: str = NEXT) -> Answer:
    path = "/".join(filter(None, ["queue", app, "requests", request_id, tail]))
    return call(wire, surface, token, method, path, headers={"x-request-id": "the-same-for-all"})


def without_date(answer: Answer) -> tuple[object, ...]:
    return answer.status, [header for header in answer.headers if header[0] != "date"], answer.body


def surfaces_of(stranger: str) -> tuple[str, ...]:
    """A tenant key is not accepted in paths."""
    return ("protocol", "hosts") if "key" in stranger else SURFACES


@pytest.mark.parametrize("owner", ["alice", "a tenant key"])
def test_a_job_of_another_caller_looks_like_one_that_does_not_exist(stack: Stack, wire: Wire, owner: str) -> None:
    callers = {
        "alice": stack.token(),
        "bob of the same tenant": stack.token("bob"),
        "alice of another tenant": stack.token(tenant="globex"),
        "Alice, in another case": stack.token("Alice"),
        "a tenant key": stack.tenant_key(),
        "a key of another tenant": stack.tenant_key("globex"),
    }
    job = submit(wire, callers.pop(owner))
    stack.sandbox.forget()
    for stranger, token in callers.items():
        for surface in surfaces_of(stranger):
            for method, tail in CALLS:
                refused = ask(wire, surface, token, method, tail, job)
                assert_refusal(refused, 404, "not_found")
                never = ask(wire, surface, token, method, tail, NOBODYS)
                assert without_date(refused) == without_date(never), (stranger, surface, method, tail)
    assert not stack.sandbox.requests()


def test_a_job_under_another_endpoint_is_not_found_even_by_its_owner(stack: Stack, wire: Wire) -> None:
    token = stack.token()
    job = submit(wire, token)
    stack.sandbox.forget()
    for surface in SURFACES:
        for method, tail in CALLS:
            refused = ask(wire, surface, token, method, tail, job, OTHER)
            assert_refusal(refused, 404, "not_found")
            never = ask(wire, surface, token, method, tail, NOBODYS, OTHER)
            assert without_date(refused) == without_date(never), (surface, method, tail)
    assert not stack.sandbox.requests()


def test_the_owner_reaches_a_job_with_any_of_their_sessions(stack: Stack, wire: Wire) -> None:
    job = submit(wire, stack.token())
    for surface in SURFACES:
        for method, tail in CALLS:
            answer = ask(wire, surface, stack.token(), method, tail, job)
            assert answer.status in (200, 202, 400), (surface, method, tail, answer)
            assert answer.status != 400 or answer.json() in (
                {"status": "ALREADY_COMPLETED"},
                {"detail": "Request is still in progress"},
            )
    assert {call["path"].split("/")[4] for call in stack.sandbox.requests()[1:]} == {job}


def test_jobs_that_were_not_cancelled_go_on(stack: Stack, wire: Wire) -> None:
    """A stranger's cancel is answered as for an unknown job, and it also does nothing."""
    token = stack.token()
    job = submit(wire, token)
    assert ask(wire, "hosts", stack.token("bob"), "PUT", "cancel", job).status == 404
    stack.sandbox.move_job(job, "COMPLETED")
    assert ask(wire, "hosts", token, "GET", "", job).json()["output"]


def test_a_session_narrowed_to_other_endpoints_cannot_reach_own_jobs(stack: Stack, wire: Wire) -> None:
    job = submit(wire, stack.token())
    narrowed = stack.token(endpoints=[OTHER])
    for method, tail in CALLS:
        assert_refusal(ask(wire, "hosts", narrowed, method, tail, job), 403, "endpoint_not_allowed")


def test_a_narrowed_session_sees_the_jobs_of_its_endpoints_only(stack: Stack, wire: Wire) -> None:
    """In every form: what it lists, and what it reads by the id of a job."""
    owner = f"nora-{time.monotonic_ns()}"
    job = submit(wire, stack.token(owner))
    stack.clock.advance(1)
    other = submit(wire, stack.token(owner), OTHER)
    narrowed = stack.token(owner, endpoints=[NEXT])
    with stack.client(narrowed) as client, stack.client(stack.token(owner)) as whole:
        assert [one["id"] for one in client.get("/v1/jobs").json()["jobs"]] == [job]
        assert {one["id"] for one in whole.get("/v1/jobs?limit=1").json()["jobs"]} == {other}
        assert [one["id"] for one in client.get("/v1/jobs?limit=1").json()["jobs"]] == [job]
        assert client.get(f"/v1/jobs/{job}").status_code == 200
        stack.sandbox.forget()
        for method, tail in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            never = client.request(method, f"/v1/jobs/{NOBODYS}{tail}", headers={"x-request-id": "the-same"})
            refused = client.request(method, f"/v1/jobs/{other}{tail}", headers={"x-request-id": "the-same"})
            assert (refused.status_code, refused.content) == (404, never.content), (method, tail)
    assert not stack.sandbox.requests()


def test_a_session_without_endpoints_can_do_nothing(stack: Stack, wire: Wire) -> None:
    job = submit(wire, stack.token())
    stack.sandbox.forget()
    upload = {"content_type": "image/png", "file_name": "a.png"}
    with stack.client(stack.token(endpoints=[])) as nothing:
        assert nothing.get("/v1/jobs").json() == {"jobs": [], "next_cursor": None}
        assert nothing.get("/v1/endpoints").json() == {"endpoints": []}
        assert nothing.get(f"/v1/jobs/{job}").status_code == 404
        for answer in (
            nothing.post(f"/fal/run/{NEXT}", json={}),
            nothing.post("/v1/jobs", json={"endpoint": NEXT, "input": {}}),
            nothing.get(f"/fal/queue/{NEXT}/requests/{job}/status"),
            nothing.post("/fal/rest/storage/upload/initiate", json=upload),
            nothing.post("/fal/rest/storage/upload/initiate-multipart", json=upload),
            nothing.post("/fal/rest/storage/auth/token?storage_type=fal-cdn-v3", json={}),
            nothing.post("/v1/uploads", content=b"x", headers={"content-type": "image/png"}),
        ):
            assert (answer.status_code, answer.json()["error_type"]) == (403, "endpoint_not_allowed")
    assert not stack.sandbox.requests()


def test_a_narrowed_session_uploads_if_it_may_call_something(stack: Stack) -> None:
    with stack.client(stack.token(endpoints=[OTHER])) as narrowed:
        upload = {"content_type": "image/png", "file_name": "a.png"}
        assert narrowed.post("/fal/rest/storage/upload/initiate", json=upload).status_code == 200
        token = narrowed.post("/fal/rest/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()
    with stack.client(token["token"]) as sender:
        begun = sender.post(f"{CDN_PATH}/files/upload/multipart", headers={"content-type": "image/png"})
        assert begun.status_code == 200, begun.text


def test_ownership_survives_a_restart(sandbox: SandboxControl, tmp_path: Path) -> None:
    with proxy_in_front_of(sandbox, tmp_path) as before, Wire(before.url) as wire:
        job = submit(wire, before.token())
    with proxy_in_front_of(sandbox, tmp_path) as after, Wire(after.url) as wire:
        sandbox.forget()
        for stranger in (after.token("bob"), after.token(tenant="globex"), after.tenant_key()):
            for method, tail in CALLS:
                refused = ask(wire, "hosts", stranger, method, tail, job)
                assert_refusal(refused, 404, "not_found")
                assert without_date(refused) == without_date(ask(wire, "hosts", stranger, method, tail, NOBODYS))
        assert not sandbox.requests()
        for method, tail in CALLS:
            assert ask(wire, "hosts", after.token(), method, tail, job).status in (200, 202, 400)
        asked = [record["path"].partition(job)[2] for record in sandbox.requests()]
        assert set(asked) == {"", "/cancel", "/status/stream"} and asked.count("/status/stream") == 1

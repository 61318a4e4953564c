"""What breaks with the official proxy, each as one check of what a proxy in front of fal has to do.

The checks look at what came back and, in the sandbox's record, at what arrived at "fal".
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import httpx
import pytest

from proxy.sandbox.app import SANDBOX_KEY
from proxy.sandbox.auth import UNWANTED_HEADERS
from tests.clients.expectations import BROKEN_PICTURE, ENDPOINT, HELD, asked, describes_the_picture
from tests.comparison.checks import QUEUE, RUN, assert_fal_not_reached, assert_refused, assert_success, submitted
from tests.comparison.conftest import Contest
from tests.comparison.contestants import CONNECTION_BROKE, call
from tests.comparison.entrants import HALVED_KEY, compared, everywhere
from tests.support.images import PIXEL_PNG
from tests.support.sandbox import Record, SandboxControl

pytestmark = pytest.mark.tools

INITIATE = "/storage/upload/initiate"


# 1. The scheme of the target is never looked at, and neither is whether it is a URL that can be fetched.


@compared(everywhere("fal was reached: POST run"))
def test_1_target_without_tls(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", f"http://fal.run/{ENDPOINT}", json=asked())
        assert_fal_not_reached(sandbox)
        assert_refused(answer)


@pytest.mark.parametrize("target", [f"https://someone:secret@fal.run/{ENDPOINT}", "not a URL"], ids=["user", "no-url"])
@compared({"express": CONNECTION_BROKE, "hono": "answered 500"})
def test_1_target_that_cannot_be_fetched(contest: Contest, sandbox: SandboxControl, target: str) -> None:
    with contest() as proxy:
        assert_refused(call(proxy, "POST", target, json=asked()))
        assert_fal_not_reached(sandbox)


@compared({"express": CONNECTION_BROKE})
def test_1_visitor_cannot_end_the_server(contest: Contest) -> None:
    with contest() as proxy:
        # The test above checks the visitor's answer.
        with contextlib.suppress(AssertionError):
            call(proxy, "POST", "not a URL", user=None, json=asked())
        assert describes_the_picture(assert_success(call(proxy, "POST", RUN, json=asked())).json()["output"])


# 2. The browser's own Authorization goes to fal, instead of the key.


@compared(everywhere("fal was shown the caller's session"), configuration="documented")
def test_2_session_is_not_shown_to_fal(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, json=asked())
        session = proxy.credential("alice")["authorization"].removeprefix("Bearer ")
        assert session not in json.dumps(sandbox.requests()), "fal was shown the caller's session"
        assert_success(answer)


# 3. A key in two halves is not used, though the package reads it.


@compared(everywhere("fal was shown 'Key undefined'"), configuration="bare", key=HALVED_KEY)
def test_3_key_in_two_halves(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, json=asked())
        shown = _header(_only(sandbox), "authorization")
        assert shown == f"Key {SANDBOX_KEY}", f"fal was shown {shown!r}"
        assert_success(answer)


# 4. Every caller is let in, and to any endpoint.


@compared(everywhere("fal was reached: POST run"), configuration="bare")
def test_4_visitor_by_default(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, user=None, json=asked())
        assert_fal_not_reached(sandbox)
        assert_refused(answer)


@compared(dict.fromkeys(("express", "hono"), "fal was reached: POST run"), configuration="documented")
def test_4_visitor_where_unauthorized_requests_are_not_allowed(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, user=None, json=asked())
        assert_fal_not_reached(sandbox)
        assert_refused(answer)


@compared(everywhere("fal was reached: POST run /fal-ai/flux/dev"), configuration="bare")
def test_4_any_endpoint_by_default(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", "https://fal.run/fal-ai/flux/dev", json={"prompt": "a cat"})
        assert_fal_not_reached(sandbox)
        assert_refused(answer)


# 5. The allowed endpoints are checked for POST alone, and the owner of a job is never checked.


@pytest.mark.parametrize("target", ["https://fal.run/fal-ai/flux/dev", f"{RUN}/health"], ids=["endpoint", "path"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
@compared(everywhere("fal was reached"))
def test_5_endpoint_not_on_the_list(contest: Contest, sandbox: SandboxControl, method: str, target: str) -> None:
    with contest() as proxy:
        answer = call(proxy, method, target, content="{}" if method == "PUT" else None)
        assert_fal_not_reached(sandbox)
        assert_refused(answer)


@pytest.mark.parametrize("method, operation", [("GET", "/status"), ("GET", ""), ("PUT", "/cancel")])
@compared(everywhere("fal was reached"))
def test_5_job_of_another_caller(contest: Contest, sandbox: SandboxControl, method: str, operation: str) -> None:
    with contest() as proxy:
        job = submitted(proxy, asked())
        sandbox.forget()
        content = "{}" if method == "PUT" else None
        answer = call(proxy, method, f"{QUEUE}/requests/{job}{operation}", user="mallory", content=content)
        assert_fal_not_reached(sandbox)
        assert answer.status_code == 404


# 6. Uploads are only known in the form that the newest clients use.


@pytest.mark.parametrize(
    "target",
    [
        f"https://rest.fal.ai{INITIATE}",
        f"https://rest.alpha.fal.ai{INITIATE}",
        f"https://rest.alpha.fal.ai{INITIATE}?storage_type=fal-cdn-v3",
        f"https://rest.alpha.fal.ai{INITIATE}?storage_type=gcs",
    ],
    ids=["no-query", "old-host-no-query", "old-host", "old-host-gcs"],
)
@compared(everywhere("answered 400"))
def test_6_upload_of_older_clients(contest: Contest, target: str) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", target, json={"content_type": "image/png", "file_name": "cat.png"})
        assert set(assert_success(answer).json()) == {"file_url", "upload_url"}


@compared(everywhere("answered 400"))
def test_6_upload_of_a_large_file(contest: Contest) -> None:
    with contest() as proxy:
        begin = f"https://rest.fal.ai{INITIATE}-multipart?storage_type=fal-cdn-v3"
        wanted = {"content_type": "image/png", "file_name": "cat.png"}
        place = assert_success(call(proxy, "POST", begin, json=wanted)).json()
        part = assert_success(httpx.put(f"{place['upload_url']}/1", content=PIXEL_PNG, timeout=60)).json()
        assert_success(httpx.post(f"{place['upload_url']}/complete", json={"parts": [part]}, timeout=60))
        assert assert_success(httpx.get(place["file_url"], timeout=60)).content == PIXEL_PNG


# 7. A stream is requested as JSON.


@compared(everywhere("fal was asked for 'application/json'"))
def test_7_stream_is_asked_for_as_one(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        call(proxy, "POST", f"{RUN}/stream", headers={"accept": "text/event-stream"}, json=asked())
        _asked_for_events(_only(sandbox))


@compared(everywhere("fal was asked for 'application/json'"))
def test_7_status_stream_is_asked_for_as_one(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        job = submitted(proxy, asked())
        sandbox.forget()
        target = f"{QUEUE}/requests/{job}/status/stream"
        call(proxy, "GET", target, headers={"accept": "text/event-stream"})
        _asked_for_events(sandbox.requests()[0])


# 8. The Express adapter answers 200, whatever fal did.


@compared({"express": "answered 200 for fal's 422"})
def test_8_status_of_a_failure(contest: Contest) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, json=asked(image_url=BROKEN_PICTURE))
        assert answer.json()["detail"][0]["loc"] == ["body", "image_url"]
        assert answer.status_code == 422, f"answered {answer.status_code} for fal's 422"


@compared({"express": "answered 200 for fal's 202"})
def test_8_status_of_an_unfinished_job(contest: Contest) -> None:
    with contest() as proxy:
        answer = call(proxy, "GET", f"{QUEUE}/requests/{submitted(proxy, asked(HELD))}/status")
        assert answer.json()["status"] in ("IN_QUEUE", "IN_PROGRESS")
        assert answer.status_code == 202, f"answered {answer.status_code} for fal's 202"


# 9. The Hono adapter forgets the headers that are meant for fal, and like Remix's cannot cancel.


@compared({"hono": "fal received the priority None"})
def test_9_priority_reaches_fal(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        call(proxy, "POST", QUEUE, headers={"x-fal-queue-priority": "low"}, json=asked())
        sent = _header(_only(sandbox), "x-fal-queue-priority")
        assert sent == "low", f"fal received the priority {sent}"


@compared({"hono": "answered 500", "remix": "answered 500"})
def test_9_cancel_without_a_body(contest: Contest) -> None:
    with contest() as proxy:
        job = submitted(proxy, asked(HELD))
        answer = call(proxy, "PUT", f"{QUEUE}/requests/{job}/cancel")
        assert assert_success(answer).json() == {"status": "CANCELLATION_REQUESTED"}


# 10. Internal headers of fal are passed on to the browser.


@compared(everywhere("fal's header was handed on: access-control-allow-credentials"))
def test_10_headers_of_fal(contest: Contest) -> None:
    with contest() as proxy:
        answer = assert_success(call(proxy, "POST", RUN, json=asked()))
        handed_on = [name for name, value in sorted(UNWANTED_HEADERS.items()) if answer.headers.get(name) == value]
        assert not handed_on, f"fal's header was handed on: {', '.join(handed_on)}"


@compared({"hono": "the answer cannot be unpacked"})
def test_10_packed_answer(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        sandbox.fault("gzip")
        answer = assert_success(call(proxy, "POST", RUN, json=asked()))
        assert describes_the_picture(answer.json()["output"])


# 11. Every header that begins with x-fal- goes to fal.


@compared(dict.fromkeys(("express", "remix", "svelte"), "fal was shown"))
def test_11_headers_of_the_caller(contest: Contest, sandbox: SandboxControl) -> None:
    unwanted = {"x-fal-user-id": "another-team", "x-fal-store-io": "0", "x-fal-cdn-authorization": "Bearer x"}
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, headers=unwanted, json=asked())
        names = {name for name, _ in _only(sandbox)["headers"]}
        # The preload renames the target's header; see there.
        shown = names & {*unwanted, "x-fal-target-url", "received-x-fal-target-url"}
        assert not shown, f"fal was shown {', '.join(sorted(shown))}"
        assert_success(answer)


# 12. Bodies are of any size and any kind.


@compared(dict.fromkeys(("hono", "remix", "svelte"), "fal was reached: POST run"))
def test_12_body_of_thirteen_megabytes(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        picture = "data:image/png;base64," + "A" * (13 * 2**20)
        answer = call(proxy, "POST", RUN, json={"prompt": "What is this?", "image_url": picture})
        assert_fal_not_reached(sandbox)
        assert answer.status_code == 413


@compared({"express": "fal was reached", "hono": "answered 500", "remix": "answered 500", "svelte": "fal was reached"})
def test_12_body_that_is_not_json(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, headers={"content-type": "text/plain"}, content="What is this?")
        assert_fal_not_reached(sandbox)
        assert_refused(answer)


@compared(everywhere("fal was reached: POST run"))
def test_12_input_that_the_model_does_not_take(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        answer = call(proxy, "POST", RUN, json=asked(max_tokens=1e9))
        assert_fal_not_reached(sandbox)
        assert answer.status_code == 422


# 13. If fal cannot be reached, the caller gets no error, and on Express the whole server ends.


@compared({"express": CONNECTION_BROKE, "hono": "not JSON"})
def test_13_fal_hangs_up(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        sandbox.fault("drop", drop="before")
        answer = call(proxy, "POST", RUN, json=asked())
        assert answer.status_code >= 500
        assert answer.headers["content-type"] == "application/json", "not JSON"
        assert answer.json()["detail"]


def _only(sandbox: SandboxControl) -> Record:
    requests: Sequence[Record] = sandbox.requests()
    assert len(requests) == 1, f"fal was called {len(requests)} times"
    return requests[0]


def _header(request: Record, name: str) -> str | None:
    return next((value for given, value in request["headers"] if given == name), None)


def _asked_for_events(request: Record) -> None:
    accept = _header(request, "accept") or ""
    assert "text/event-stream" in accept, f"fal was asked for {accept!r}"

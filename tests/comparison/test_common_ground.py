"""What both proxies do right, for a fair comparison: a failed check of `test_flaws` then has no other cause."""

from __future__ import annotations

import httpx
import pytest

from tests.clients.expectations import PICTURE, asked, describes_the_picture
from tests.comparison.checks import QUEUE, RUN, assert_fal_not_reached, assert_refused, assert_success, submitted
from tests.comparison.conftest import Contest
from tests.comparison.contestants import call
from tests.comparison.entrants import compared, everywhere
from tests.support.sandbox import SandboxControl

pytestmark = pytest.mark.tools

both = compared(everywhere(""))


@both
def test_run(contest: Contest) -> None:
    with contest() as proxy:
        assert describes_the_picture(assert_success(call(proxy, "POST", RUN, json=asked())).json()["output"])


@both
def test_job_from_submit_to_result(contest: Contest) -> None:
    with contest() as proxy:
        job = f"{QUEUE}/requests/{submitted(proxy, asked())}"
        events = call(proxy, "GET", f"{job}/status/stream", headers={"accept": "text/event-stream"}).text
        assert '"COMPLETED"' in events
        assert call(proxy, "GET", f"{job}/status").json()["status"] == "COMPLETED"
        assert describes_the_picture(call(proxy, "GET", job).json()["output"])


@both
def test_stream(contest: Contest) -> None:
    with contest() as proxy:
        answer = assert_success(call(proxy, "POST", f"{RUN}/stream", json=asked()))
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.count("data: ") > 2


@both
def test_upload_of_newest_clients(contest: Contest) -> None:
    with contest() as proxy:
        initiate = "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3"
        slot = call(proxy, "POST", initiate, json={"content_type": "image/png", "file_name": "cat.png"}).json()
        content = PICTURE.read_bytes()
        assert_success(
            httpx.put(slot["upload_url"], content=content, headers={"content-type": "image/png"}, timeout=60)
        )
        answer = call(proxy, "POST", RUN, json=asked(image_url=slot["file_url"]))
        assert describes_the_picture(answer.json()["output"])


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/fal-ai/llava-next",
        "https://fal.run.evil.example/fal-ai/llava-next",
        "https://fal.run@evil.example/fal-ai/llava-next",
        "https://evil.example/#fal.run/fal-ai/llava-next",
        "https://fal.run:8443/fal-ai/llava-next",
    ],
)
@both
def test_hosts_that_are_not_fal(contest: Contest, sandbox: SandboxControl, target: str) -> None:
    with contest() as proxy:
        assert_refused(call(proxy, "POST", target, json=asked()))
        assert_fal_not_reached(sandbox)


@both
def test_post_to_an_endpoint_not_on_the_list(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        assert_refused(call(proxy, "POST", "https://fal.run/fal-ai/flux/dev", json={"prompt": "a cat"}))
        assert_fal_not_reached(sandbox)


@both
def test_visitor_without_a_session(contest: Contest, sandbox: SandboxControl) -> None:
    with contest() as proxy:
        assert call(proxy, "POST", RUN, user=None, json=asked()).status_code == 401
        assert_fal_not_reached(sandbox)


@both
def test_cookies_and_addresses_stay_here(contest: Contest, sandbox: SandboxControl) -> None:
    private = {
        "cookie": "app=1",
        "x-forwarded-for": "192.0.2.7",
        "origin": "https://app.example",
        "referer": "https://x",
    }
    with contest() as proxy:
        call(proxy, "POST", RUN, headers=private, json=asked())
        (request,) = sandbox.requests()
        assert not {name for name, _ in request["headers"]} & set(private)

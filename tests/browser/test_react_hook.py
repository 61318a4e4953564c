"""useFalProxy of @fal-proxy/client in a page with React, in Chromium, at an origin of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page
from playwright.sync_api import Route as RoutedRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from proxy.sandbox.jobs import LOG_LINES
from tests.browser.conftest import CHELSEA
from tests.clients.expectations import BROKEN_PICTURE, HELD, SLOWLY, asked, describes_the_picture
from tests.examples.projects import node_project
from tests.support.limited import NEXT, limited_proxy, per, plan
from tests.support.sandbox import Record, SandboxControl
from tests.support.servers import free_port, running
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

HERE = Path(__file__).parent
ESBUILD = HERE.parents[1] / "proxy" / "playground" / "web" / "node_modules" / ".bin" / "esbuild"
PROTOCOL = "**/api/fal/proxy"
WAITING = "[[pace hold=IN_QUEUE queue_positions=2 seconds_per_position=0]]"
LOGS = [f"INFO:{line}" for line in LOG_LINES]


@pytest.fixture(scope="module")
def script() -> Iterator[Path]:
    """The component as an app bundles it."""
    with node_project() as project:
        source, out = project / "page.jsx", project / "page.js"
        source.write_text((HERE / "react_hook.jsx").read_text())
        options = ["--bundle", "--jsx=automatic", '--define:process.env.NODE_ENV="development"', f"--outfile={out}"]
        subprocess.run([ESBUILD, source, *options, "--log-level=warning"], check=True, env=os.environ, timeout=60)
        yield out


@dataclass
class Component:
    """A page with the component; its backend gives sessions to one user, or refuses them with `refusal`."""

    page: Page
    stack: Stack
    refusal: dict[str, Any] = field(default_factory=dict)

    def start(self, action: str, prompt: str = "", *, upload: bool = False, **more: Any) -> None:
        """Call a function of the hook with an input, without waiting for its end."""
        picture = "await picture()" if upload else "input.image_url"
        call = f"call.{action}({{...input, image_url: {picture}}})"
        self.page.evaluate(f"async (input) => {{ window.ended = {call}; }}", asked(prompt, **more))

    def act(self, script: str) -> Any:
        return self.page.evaluate(script)

    def wait_for(self, status: str) -> dict[str, Any]:
        wait_until(lambda: self.states()[-1]["status"] == status, lambda: f"not {status}: {self.states()}")
        return self.states()[-1]

    def states(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.page.evaluate("states")
        return found

    def statuses(self) -> list[str]:
        """What was shown, each status once."""
        return list(dict.fromkeys(state["status"] for state in self.states()))

    @contextlib.contextmanager
    def holding(self, path: str) -> Iterator[list[RoutedRequest]]:
        """Requests that leave the page in the block wait until its end."""
        held: list[RoutedRequest] = []
        self.page.route(path, lambda request: held.append(request))
        yield held
        for request in held:
            request.continue_()
        self.page.unroute(path)

    def pump_until(self, held: list[RoutedRequest]) -> None:
        wait_until(lambda: self.act("true") and held, "the page sends nothing")

    def request_id(self) -> str:
        self.page.wait_for_function("states.at(-1).requestId")
        id_: str = self.states()[-1]["requestId"]
        return id_

    def job(self) -> str:
        """What fal says of the job that is shown."""
        (job,) = [job for job in self.stack.sandbox.jobs() if job["id"] == self.request_id()]
        status: str = job["status"]
        return status

    def calls(self, host: str) -> list[Record]:
        """What fal was asked to run."""
        return [one for one in self.stack.sandbox.requests() if (one["host"], one["method"]) == (host, "POST")]


@contextlib.contextmanager
def showing(stack: Stack, chromium: Browser, script: Path, platform: str = "") -> Iterator[Component]:
    """The component in a page of its own; the script `platform` runs before all others."""

    def index(_: Request) -> Response:
        return HTMLResponse('<!doctype html><title>Ask</title><main></main><script src="page.js"></script>')

    def session(_: Request) -> Response:
        if component.refusal:
            return JSONResponse(component.refusal, 403)
        return JSONResponse({"token": stack.token(), "expires_at": "2999-01-01T00:00:00Z"})

    def file(request: Request) -> Response:
        return FileResponse({"/page.js": script, "/chelsea.png": CHELSEA}[request.url.path])

    files = [Route(path, file) for path in ("/page.js", "/chelsea.png")]
    app = Starlette(routes=[Route("/", index), Route("/session", session, methods=["POST"]), *files])
    with running(app, port=urlsplit(stack.other_origin).port), chromium.new_context() as context:
        component = Component(context.new_page(), stack)
        component.page.add_init_script(platform)
        component.page.goto(f"{stack.other_origin}/?proxy={stack.url}&endpoint={NEXT}")
        # React renders after the page has loaded.
        component.page.wait_for_function("window.call")
        yield component


@pytest.fixture
def component(stack: Stack, chromium: Browser, script: Path) -> Iterator[Component]:
    with showing(stack, chromium, script) as component:
        yield component


def test_a_job_is_shown_from_the_upload_to_the_result(component: Component) -> None:
    component.start("submit", WAITING, upload=True)
    wait_until(lambda: component.states()[-1]["position"] == 0, lambda: f"not in front: {component.states()}")
    component.stack.sandbox.move_job(component.request_id(), "IN_PROGRESS")
    assert component.wait_for("running")["position"] is None
    component.stack.sandbox.move_job(component.request_id(), "COMPLETED")
    done = component.wait_for("done")
    assert component.statuses() == ["idle", "uploading", "queued", "running", "done"]
    assert describes_the_picture(done["result"]["output"]) and done["logs"] == LOGS
    assert [state["busy"] for state in component.states()] == [
        state["status"] in ("uploading", "queued", "running") for state in component.states()
    ]
    assert component.act("ended")["result"] == done["result"]


def test_nothing_is_uploaded_of_an_input_without_files(component: Component) -> None:
    component.start("submit")
    assert describes_the_picture(component.wait_for("done")["result"]["output"])
    assert "uploading" not in component.statuses()


def test_a_direct_run_is_shown(component: Component) -> None:
    component.start("run", upload=True)
    done = component.wait_for("done")
    assert component.statuses() == ["idle", "uploading", "running", "done"]
    assert describes_the_picture(done["result"]["output"]) and done["requestId"]


@pytest.mark.parametrize("how", ["cut", "refused"])
def test_a_broken_stream_is_followed_by_polls(component: Component, how: str) -> None:
    log = {"message": LOGS[0], "level": "INFO", "timestamp": "2026-01-01T00:00:00"}
    event = f"data: {json.dumps({'status': 'IN_PROGRESS', 'logs': [log]})}\n\n"
    headers = {"access-control-allow-origin": "*", "content-type": "text/event-stream"}

    def break_streams(route: RoutedRequest) -> None:
        if not route.request.headers["x-fal-target-url"].endswith("/status/stream?logs=1"):
            route.continue_()
        elif how == "cut":
            route.fulfill(body=event, headers=headers)
        else:
            route.abort()

    component.page.route(PROTOCOL, break_streams)
    component.start("submit", SLOWLY)
    done = component.wait_for("done")
    assert describes_the_picture(done["result"]["output"]) and done["logs"] == LOGS


#: What React Native does not have.
POORER = """
delete AbortSignal.prototype.throwIfAborted;
delete Crypto.prototype.randomUUID;
Object.defineProperty(Response.prototype, "body", { value: undefined });
"""


def test_a_platform_without_streams(stack: Stack, chromium: Browser, script: Path) -> None:
    with showing(stack, chromium, script, POORER) as component:
        component.start("submit", SLOWLY, upload=True)
        done = component.wait_for("done")
        assert describes_the_picture(done["result"]["output"]) and done["logs"] == LOGS
        assert component.statuses() == ["idle", "uploading", "queued", "running", "done"]


def test_a_page_that_was_offline_follows_its_job_again(component: Component) -> None:
    component.start("submit", HELD)
    component.wait_for("running")
    job = component.request_id()
    component.page.route(PROTOCOL, lambda route: route.abort())
    component.stack.sandbox.move_job(job, "COMPLETED")
    # The stream that was open brings the end; the result has to be fetched.
    assert component.wait_for("failed")["error"]["error_type"] == "network_error"
    component.page.unroute_all()
    component.act(f"void call.follow('{job}')")
    assert describes_the_picture(component.wait_for("done")["result"]["output"])
    assert len(component.calls("queue")) == 1


def test_a_submit_that_is_repeated_runs_once(component: Component) -> None:
    """A gateway in front loses the answer to the first."""
    answers = []

    def lose_one(route: RoutedRequest) -> None:
        is_submit = route.request.method == "POST"
        if is_submit and not answers:
            answers.append(route.fetch().json())
            route.fulfill(status=504, content_type="text/plain", headers={"access-control-allow-origin": "*"})
        else:
            route.continue_()

    component.page.route(PROTOCOL, lose_one)
    component.start("submit")
    assert component.wait_for("done")["requestId"] == answers[0]["request_id"]
    assert len(component.calls("queue")) == 1


def test_cancelling_a_job_in_the_queue(component: Component) -> None:
    component.start("submit", WAITING)
    component.request_id()
    assert component.act("call.cancel()") is True
    component.wait_for("cancelled")
    assert component.job() == "COMPLETED" and component.act("ended")["status"] == "cancelled"


def test_cancelling_a_job_that_fal_finishes_nevertheless(component: Component) -> None:
    """It is paid for, so its result is shown."""
    component.start("submit", "[[pace hold=IN_PROGRESS heeds_cancel=false]]")
    component.wait_for("running")
    assert component.act("call.cancel()") is True
    component.stack.sandbox.move_job(component.request_id(), "COMPLETED")
    assert describes_the_picture(component.wait_for("done")["result"]["output"])


def test_cancelling_before_fal_has_taken_the_job(component: Component) -> None:
    with component.holding(PROTOCOL) as held:
        component.start("submit", HELD)
        component.pump_until(held)
        component.act("void (window.cancelled = call.cancel())")
    component.wait_for("cancelled")
    assert component.act("cancelled") is True and len(component.calls("queue")) == 1


def test_cancelling_an_upload(component: Component) -> None:
    with component.holding("**/uploads/**") as held:
        component.start("submit", upload=True)
        component.pump_until(held)
        assert component.act("call.cancel()") is True
        component.wait_for("cancelled")
    component.act("ended")
    assert component.statuses() == ["idle", "uploading", "cancelled"] and component.calls("queue") == []


def test_cancelling_a_direct_run(component: Component) -> None:
    component.start("run", "[[pace hold=IN_PROGRESS]]")
    component.wait_for("running")
    assert component.act("call.cancel()") is True
    assert component.wait_for("cancelled") and component.act("ended")["status"] == "cancelled"


def test_there_is_nothing_to_cancel_before_and_after_a_call(component: Component) -> None:
    assert component.act("call.cancel()") is False
    component.start("submit")
    component.wait_for("done")
    assert component.act("call.cancel()") is False and component.states()[-1]["status"] == "done"


def test_a_cancel_that_does_not_reach_the_proxy(component: Component) -> None:
    component.start("submit", HELD)
    component.wait_for("running")
    component.page.route(PROTOCOL, lambda route: route.abort())
    assert component.act("call.cancel()") is False
    component.page.unroute_all()
    component.stack.sandbox.move_job(component.request_id(), "COMPLETED")
    assert component.wait_for("done")


def test_the_newest_call_is_shown(component: Component) -> None:
    component.start("submit", HELD)
    component.wait_for("running")
    first = component.request_id()
    component.start("submit", "What now?")
    assert "What now?" in component.wait_for("done")["result"]["output"]
    component.stack.sandbox.move_job(first, "COMPLETED")
    assert component.request_id() != first


def test_reset_and_leaving_the_page_follow_no_longer(component: Component) -> None:
    for stop in ("call.reset()", "leave()"):
        component.start("submit", HELD)
        component.wait_for("running")
        with component.page.expect_event("requestfailed") as stream:
            component.act(stop)
        assert stream.value.headers["x-fal-target-url"].endswith("/status/stream?logs=1")
        assert component.act("ended")["status"] == "running"
        assert component.states()[-1]["status"] == ("idle" if stop == "call.reset()" else "running")


def test_a_wrong_input_names_its_field(component: Component) -> None:
    component.start("submit", max_tokens="many")
    error = component.wait_for("failed")["error"]
    assert (error["error_type"], error["status"], list(error["fields"])) == ("invalid_input", 422, ["max_tokens"])


def test_an_error_of_the_model_is_shown(component: Component) -> None:
    component.start("submit", image_url=BROKEN_PICTURE)
    error = component.wait_for("failed")["error"]
    assert (error["error_type"], list(error["fields"])) == ("image_load_error", ["image_url"])
    assert error["message"] == error["fields"]["image_url"] != ""


def test_a_refusal_says_when_to_try_again(
    sandbox: SandboxControl, chromium: Browser, script: Path, tmp_path: Path
) -> None:
    plans = {"acme": plan(quotas=[per("subject", "requests", 1)])}
    origins = {"PROXY_ALLOWED_ORIGINS": f"http://localhost:{free_port()}"}
    with limited_proxy(sandbox, tmp_path, plans, environ=origins) as stack:
        here = replace(stack, other_origin=origins["PROXY_ALLOWED_ORIGINS"])
        with showing(here, chromium, script) as component:
            component.start("submit")
            component.wait_for("done")
            component.start("submit")
            error = component.wait_for("failed")["error"]
    assert error["error_type"] == "quota_exceeded" and 0 < error["retry_after"] <= 86_400


def test_a_refusal_of_the_backend_is_shown(component: Component) -> None:
    component.refusal |= {"error_type": "signed_out", "message": "Sign in first."}
    component.start("submit")
    error = component.wait_for("failed")["error"]
    assert (error["error_type"], error["message"], error["status"]) == ("signed_out", "Sign in first.", 403)
    component.refusal.clear()
    component.start("submit")
    assert component.wait_for("done")
